//! A shared folder under load, one request at a time, by `probe.op`:
//!
//! * `lookup`: the file `probe` is looked up and its attributes are asked for, by turns;
//! * `create`: a file is made, closed and removed, which is three requests;
//! * `read`, `write`: `probe.size` bytes (131072) of the file `probe`, from its beginning to its end at `probe.file` bytes and again.

use super::{begin, end, millis};
use crate::clock::ticks;
use crate::histogram::Histogram;
use crate::io::Region;
use crate::tests::Machine;
use crate::tests::fs::{Folder, OUT, Open, READ, ROOT, WRITE};
use crate::verdict::{Outcome, Stop};
use crate::virtio::queue::Buffer;

const GETATTR: u32 = 3;
const UNLINK: u32 = 10;
const RELEASE: u32 = 18;
const CREATE: u32 = 35;

/// The file that comes and goes.
const NAME: &[u8] = b"made\0";
/// O_RDWR, O_CREAT and O_EXCL of Linux; a regular file for its owner.
const FLAGS: u32 = 2 | 0o100 | 0o200;
const MODE: u32 = 0o100_600;
/// Bytes that precede a new file's handle in the answer.
const ENTRY: u64 = 128;

fn attributes(folder: &mut Folder, node: u64) -> Result<(), Stop> {
    folder.body().fill(0);
    folder.ask(GETATTR, node, 16, None).map(drop)
}

fn make_and_remove(folder: &mut Folder) -> Result<(), Stop> {
    let body = folder.body();
    body.fill(0);
    body.write32(0, FLAGS);
    body.write32(4, MODE);
    body.store(16, NAME);
    folder.ask(CREATE, ROOT, 16 + NAME.len() as u64, None)?;
    let (node, handle) = (folder.answer.read64(OUT), folder.answer.read64(OUT + ENTRY));
    body.fill(0);
    body.write64(0, handle);
    folder.ask(RELEASE, node, 24, None)?;
    body.store(0, NAME);
    folder.ask(UNLINK, ROOT, NAME.len() as u64, None).map(drop)
}

fn transfer(folder: &mut Folder, file: Open, nth: u64, data: Region, writes: bool) -> Result<(), Stop> {
    let size = data.len();
    let body = folder.place(file, nth % (file.size / size) * size, size);
    if writes {
        folder.ask(WRITE, file.node, body, Some(Buffer::readable(data)))?;
        let written = folder.answer.read32(OUT);
        check!(u64::from(written) == size, "{written} bytes written of {size}");
    } else {
        let read = folder.ask(READ, file.node, body, Some(Buffer::writable(data)))?;
        check!(read == size, "{read} bytes read of {size}");
    }
    Ok(())
}

/// See the module.
pub(in crate::tests) fn folder(machine: &mut Machine) -> Outcome {
    if !machine.clock.is_known() {
        skip!("the TSC's rate is not known");
    }
    let size = machine.start.number("size").unwrap_or(128 << 10).clamp(1, 1 << 20);
    let wanted = machine.start.number("file").unwrap_or(16 << 20).max(size);
    let (clock, limit) = (machine.clock, millis(machine) * machine.clock.khz);
    let op = machine.start.option("op").unwrap_or("lookup");
    let mut folder = Folder::open(machine)?;
    let mut times = Histogram::new(&mut machine.arena);
    let data = machine.arena.take(size, 4096);
    let file = folder.open_file()?;
    check!(file.size == wanted, "the file has {} bytes, not {wanted}", file.size);
    begin(clock);
    let (start, mut count) = (ticks(), 0);
    while ticks() - start < limit {
        let now = ticks();
        match op {
            "create" => make_and_remove(&mut folder)?,
            "read" | "write" => transfer(&mut folder, file, count, data, op == "write")?,
            _ if count % 2 == 0 => folder.look_up().map(drop)?,
            _ => attributes(&mut folder, file.node)?,
        }
        times.add(ticks() - now);
        count += 1;
    }
    let micros = clock.micros_since(start).max(1);
    check!(folder.device.reset(), "the folder does not reset");
    end(clock);
    Ok(text!(
        "op={op} requests={count} ops/s={} p50-ns={} p99-ns={}",
        count * 1_000_000 / micros,
        times.nanos(50, clock),
        times.nanos(99, clock)
    ))
}
