//! A shared folder (virtio 1.3, 5.11), by as few requests of FUSE as it takes: the file `probe` in it is read, compared with the
//! pattern 7, and written with the pattern `probe.seed` from its middle on.
//!
//! With `probe.again` it then reads until that is refused, as by somebody who does not know the file, does all of it once more, with the seed that
//! follows, and once more after a reset. With `probe.broken` it waits until the device needs a reset and does all of it once more. With `probe.keep` it keeps the file open
//! until its first word is another, and then writes once more.

use super::Machine;
use crate::arena::Arena;
use crate::clock::Clock;
use crate::io::Region;
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::pattern;
use crate::virtio::queue::{Buffer, Queue};
use crate::virtio::{Device, NO_VECTOR, S_NEEDS_RESET, kind};

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
pub(super) const READ: u32 = 15;
pub(super) const WRITE: u32 = 16;
const INIT: u32 = 26;

/// The node of the folder itself.
pub(super) const ROOT: u64 = 1;

/// Bytes of the headers of requests and answers.
const IN: u64 = 40;
pub(super) const OUT: u64 = 16;
/// Bytes for whatever follows.
const ROOM: u64 = 256;

const SECTOR: u64 = 512;
/// Bytes of the file.
const SIZE: u64 = 8192;

/// A folder, and the one request that is under way.
pub(super) struct Folder {
    pub(super) device: Device,
    queue: Queue,
    clock: Clock,
    request: Region,
    pub(super) answer: Region,
    data: Region,
    asked: u64,
    /// Of the last answer.
    error: i32,
}

/// The file, open.
#[derive(Clone, Copy)]
pub(super) struct Open {
    pub(super) node: u64,
    handle: u64,
    pub(super) size: u64,
}

impl Folder {
    pub(super) fn open(machine: &mut Machine) -> Result<Folder, Stop> {
        let Some(device) = Device::find(&machine.bus, kind::FS, 0) else {
            return Err(Stop::Skip(text!("there is no file system")));
        };
        let mut device = device.map_err(Stop::Fail)?;
        let arena: &mut Arena = &mut machine.arena;
        device.negotiate(0).map_err(Stop::Fail)?;
        // The first queue is for requests that must not wait.
        device.queue(arena, 0, 16, NO_VECTOR).map_err(Stop::Fail)?;
        let queue = device.queue(arena, 1, 16, NO_VECTOR).map_err(Stop::Fail)?;
        device.start().map_err(Stop::Fail)?;
        Ok(Folder {
            device,
            queue,
            clock: machine.clock,
            request: arena.take(IN + ROOM, 8),
            answer: arena.take(OUT + ROOM, 8),
            data: arena.take(SIZE, 8),
            asked: 0,
            error: 0,
        })
    }

    /// One request about `node`, whose body is in its place; what the answer's body begins with is in its place then. Data follows
    /// the one or the other.
    pub(super) fn ask(&mut self, what: u32, node: u64, body: u64, data: Option<Buffer>) -> Result<u64, Stop> {
        let sent = data.filter(|data| !data.writable).map_or(0, |data| u64::from(data.len));
        self.asked += 1;
        self.request.part(0, IN).fill(0);
        self.request.write32(0, (IN + body + sent) as u32);
        self.request.write32(4, what);
        self.request.write64(8, self.asked);
        self.request.write64(16, node);
        let mut chain = [Buffer::readable(self.request.part(0, IN + body)); 3];
        let mut len = 1;
        if let Some(data) = data.filter(|data| !data.writable) {
            chain[len] = data;
            len += 1;
        }
        let room = if data.is_some_and(|data| data.writable) { 0 } else { ROOM };
        chain[len] = Buffer::writable(self.answer.part(0, OUT + room));
        len += 1;
        if let Some(data) = data.filter(|data| data.writable) {
            chain[len] = data;
            len += 1;
        }
        let head = self.queue.add(&chain[..len]);
        check!(head.is_some(), "the queue is full");
        self.queue.kick();
        let (done, _) = self.device.complete(&mut self.queue, &self.clock).map_err(Stop::Fail)?;
        check!(Some(done) == head, "{done} is done");
        self.error = self.answer.read32(4) as i32;
        check!(self.error == 0, "request {what}: error {}", self.error);
        check!(self.answer.read64(8) == self.asked, "the answer to another request");
        Ok(u64::from(self.answer.read32(0)) - OUT)
    }

    pub(super) fn body(&self) -> Region {
        self.request.part(IN, ROOM)
    }

    /// The node of the file, and its size.
    pub(super) fn look_up(&mut self) -> Result<(u64, u64), Stop> {
        self.body().store(0, b"probe\0");
        self.ask(LOOKUP, ROOT, 6, None)?;
        Ok((self.answer.read64(OUT), self.answer.read64(OUT + 48)))
    }

    /// Begins the conversation and opens the file.
    pub(super) fn open_file(&mut self) -> Result<Open, Stop> {
        let body = self.body();
        body.fill(0);
        // Version 7.31: no need for more.
        body.write32(0, 7);
        body.write32(4, 31);
        self.ask(INIT, 0, 16, None)?;
        check!(self.answer.read32(OUT) == 7, "FUSE {}", self.answer.read32(OUT));
        let (node, size) = self.look_up()?;
        body.fill(0);
        // For reading and writing.
        body.write32(0, 2);
        self.ask(OPEN, node, 8, None)?;
        Ok(Open { node, handle: self.answer.read64(OUT), size })
    }

    /// Says which part of the file a request is about; the bytes of its body.
    pub(super) fn place(&self, file: Open, offset: u64, size: u64) -> u64 {
        let body = self.body();
        body.fill(0);
        body.write64(0, file.handle);
        body.write64(8, offset);
        body.write32(16, size as u32);
        40
    }

    /// Reads all of the file; its first word.
    fn read(&mut self, file: Open) -> Result<u64, Stop> {
        let body = self.place(file, 0, SIZE);
        let read = self.ask(READ, file.node, body, Some(Buffer::writable(self.data)))?;
        check!(read == SIZE, "{read} bytes read");
        Ok(self.data.read64(0))
    }

    /// Writes the second half.
    fn write(&mut self, file: Open, seed: u64) -> Result<(), Stop> {
        let half = SIZE / 2;
        for at in (half..SIZE).step_by(8) {
            self.data.write64(at, pattern(seed, at / SECTOR, at % SECTOR / 8));
        }
        let body = self.place(file, half, half);
        self.ask(WRITE, file.node, body, Some(Buffer::readable(self.data.part(half, half))))?;
        let written = self.answer.read32(OUT);
        check!(u64::from(written) == half, "{written} bytes written");
        Ok(())
    }

    fn use_file(&mut self, seed: u64) -> Result<Open, Stop> {
        let file = self.open_file()?;
        check!(file.size == SIZE, "the file has {} bytes", file.size);
        self.read(file)?;
        let half = SIZE / 2;
        for at in (0..half).step_by(8) {
            let (word, wanted) = (self.data.read64(at), pattern(7, at / SECTOR, at % SECTOR / 8));
            check!(word == wanted, "word at {at}: {word:#x}, not {wanted:#x}");
        }
        self.write(file, seed)?;
        Ok(file)
    }
}

/// See the module.
pub(super) fn file(machine: &mut Machine) -> Outcome {
    let seed = machine.start.number("seed").unwrap_or(1);
    let [again, broken, keep] =
        ["again", "broken", "keep"].map(|word| machine.start.number(word).unwrap_or(0) != 0);
    let mut folder = Folder::open(machine)?;
    let mut tag = [0; 36];
    match folder.device.config {
        Some(config) => config.load(0, &mut tag),
        None => fail!("there is no device configuration"),
    }
    let file = folder.use_file(seed)?;
    if keep {
        println!("# kept");
        let mut word = folder.read(file);
        let changed = machine.clock.wait(60_000, || {
            word = folder.read(file);
            !matches!(word, Ok(word) if word == pattern(7, 0, 0))
        });
        word?;
        check!(changed, "the file does not change");
        folder.write(file, seed + 1)?;
    }
    if again {
        println!("# used");
        let refused = machine.clock.wait(60_000, || folder.read(file).is_err());
        check!(refused && folder.error < 0, "error {}", folder.error);
        println!("# refused");
        folder.use_file(seed + 1)?;
        drop(folder);
        Folder::open(machine)?.use_file(seed + 2)?;
    } else if broken {
        println!("# used");
        let broken = folder.clock.wait(60_000, || folder.device.status() & S_NEEDS_RESET != 0);
        check!(broken, "the device goes on");
        drop(folder);
        // There is somebody again when the driver begins anew.
        println!("# broken");
        machine.clock.wait(2000, || false);
        Folder::open(machine)?.use_file(seed + 1)?;
    }
    let length = tag.iter().position(|byte| *byte == 0).unwrap_or(tag.len());
    Ok(text!("tag={} size={}", core::str::from_utf8(&tag[..length]).unwrap_or("?"), file.size))
}
