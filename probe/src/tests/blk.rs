//! A disk that behaves, driven by a driver that behaves. Which disk: `probe.blk=N` counts from 0.

use super::Machine;
use crate::io::Region;
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, Disk, SECTOR, pattern};
use crate::virtio::queue::Buffer;

/// Bytes moved by one request of the bulk tests.
const CHUNK: u64 = 64 << 10;

pub(super) fn open_with(machine: &mut Machine, features: u64) -> Result<Disk, Stop> {
    let nth = machine.start.number("blk").unwrap_or(0);
    match Disk::open(&machine.bus, &mut machine.arena, machine.clock, nth, features) {
        Ok(Some(disk)) => Ok(disk),
        Ok(None) => Err(Stop::Skip(text!("there is no disk {nth}"))),
        Err(why) => Err(Stop::Fail(why)),
    }
}

pub(super) fn open(machine: &mut Machine) -> Result<Disk, Stop> {
    open_with(machine, Disk::USUAL)
}

fn open_writable(machine: &mut Machine) -> Result<Disk, Stop> {
    let disk = open(machine)?;
    if disk.read_only() { Err(Stop::Skip(text!("the disk is read-only"))) } else { Ok(disk) }
}

/// Features and configuration.
pub(super) fn info(machine: &mut Machine) -> Outcome {
    let disk = open_with(
        machine,
        Disk::USUAL | blk::F_MQ | blk::F_CONFIG_WCE | blk::F_DISCARD | blk::F_WRITE_ZEROES,
    )?;
    let Some(config) = disk.device.config else { fail!("no device configuration") };
    let features = disk.device.features;
    let queues = if features & blk::F_MQ != 0 { config.read16(34) } else { 1 };
    check!(
        queues == disk.device.queue_count(),
        "{queues} queues by configuration, {} registers",
        disk.device.queue_count()
    );
    let block = if features & blk::F_BLK_SIZE != 0 { config.read32(20) } else { 512 };
    check!(block.is_power_of_two() && block >= 512, "block size {block}");
    Ok(text!(
        "sectors={} block={block} queues={queues} size={} features={features:#x} read-only={}",
        disk.capacity,
        disk.queue.size,
        disk.read_only()
    ))
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 != 0 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
};

/// CRC-32 as in zlib, continued from `crc` (0 to begin).
pub(super) fn crc32(crc: u32, bytes: Region) -> u32 {
    let mut crc = !crc;
    for i in 0..bytes.len() {
        crc = crc >> 8 ^ CRC_TABLE[((crc ^ u32::from(bytes.read8(i))) & 0xff) as usize];
    }
    !crc
}

/// The range that `probe.sector` and `probe.sectors` name; without them the whole disk.
fn range(machine: &Machine, disk: &Disk) -> Result<(u64, u64), Stop> {
    let first = machine.start.number("sector").unwrap_or(0);
    let rest = disk.capacity.saturating_sub(first);
    let count = machine.start.number("sectors").unwrap_or(rest);
    if count == 0 || count > rest {
        return Err(Stop::Fail(text!("{count} sectors from {first} of a disk with {}", disk.capacity)));
    }
    Ok((first, count))
}

/// Reads a range and prints its CRC-32 for the host to compare.
pub(super) fn read(machine: &mut Machine) -> Outcome {
    let mut disk = open(machine)?;
    let (first, count) = range(machine, &disk)?;
    let buffer = machine.arena.take(CHUNK, 4096);
    let (mut crc, mut done) = (0, 0);
    while done < count {
        let step = (CHUNK / SECTOR).min(count - done);
        let data = buffer.part(0, step * SECTOR);
        data.fill(0xcc);
        disk.transfer(blk::T_IN, first + done, data).map_err(Stop::Fail)?;
        crc = crc32(crc, data);
        done += step;
    }
    Ok(text!("sectors={count} crc32={crc:08x}"))
}

/// Writes the pattern of `probe.seed` over a range, flushes, and reads it back. The host checks the image.
pub(super) fn write(machine: &mut Machine) -> Outcome {
    let mut disk = open_writable(machine)?;
    let (first, count) = range(machine, &disk)?;
    let seed = machine.start.number("seed").unwrap_or(1);
    let buffer = machine.arena.take(CHUNK, 4096);
    for check_pass in [false, true] {
        let mut done = 0;
        while done < count {
            let step = (CHUNK / SECTOR).min(count - done);
            let data = buffer.part(0, step * SECTOR);
            let word = |i: u64| pattern(seed, first + done + i / 64, i % 64);
            if check_pass {
                data.fill(0);
                disk.transfer(blk::T_IN, first + done, data).map_err(Stop::Fail)?;
                if let Some(i) = (0..step * 64).find(|&i| data.read64(i * 8) != word(i)) {
                    fail!(
                        "sector {} reads back {:#x} at word {}",
                        first + done + i / 64,
                        data.read64(i * 8),
                        i % 64
                    );
                }
            } else {
                (0..step * 64).for_each(|i| data.write64(i * 8, word(i)));
                disk.transfer(blk::T_OUT, first + done, data).map_err(Stop::Fail)?;
            }
            done += step;
        }
        if !check_pass {
            let (status, _) = disk.request(blk::T_FLUSH, 0, &[]).map_err(Stop::Fail)?;
            check!(status == blk::OK, "flush: status {status}");
        }
    }
    Ok(text!("sectors={count} seed={seed}"))
}

/// A flush by itself succeeds.
pub(super) fn flush(machine: &mut Machine) -> Outcome {
    let mut disk = open(machine)?;
    let (status, written) = disk.request(blk::T_FLUSH, 0, &[]).map_err(Stop::Fail)?;
    check!(status == blk::OK, "status {status}");
    check!(written == 1, "{written} bytes written, not 1");
    Ok(text!(""))
}

/// The identifier, at most 20 bytes; `probe.serial=TEXT` compares it.
pub(super) fn id(machine: &mut Machine) -> Outcome {
    let mut disk = open(machine)?;
    let buffer = machine.arena.take(32, 16);
    buffer.fill(0xcc);
    let (status, _) =
        disk.request(blk::T_GET_ID, 0, &[Buffer::writable(buffer.part(0, 20))]).map_err(Stop::Fail)?;
    check!(status == blk::OK, "status {status}");
    let mut bytes = [0; 32];
    buffer.load(0, &mut bytes);
    check!(bytes[20..] == [0xcc; 12], "more than 20 bytes were written");
    let len = bytes[..20].iter().position(|&b| b == 0).unwrap_or(20);
    let Ok(id) = core::str::from_utf8(&bytes[..len]) else { fail!("no text: {:x?}", &bytes[..20]) };
    if let Some(wanted) = machine.start.option("serial") {
        check!(id == wanted, "the identifier is {id:?}, not {wanted:?}");
    }
    Ok(text!("id={id}"))
}

/// A disk that says it is read-only refuses writes and is not changed by them; a flush is fine.
pub(super) fn read_only(machine: &mut Machine) -> Outcome {
    let mut disk = open(machine)?;
    if !disk.read_only() {
        skip!("the disk is writable");
    }
    let before = machine.arena.take(4096, 4096);
    let after = machine.arena.take(4096, 4096);
    let data = machine.arena.take(4096, 4096);
    data.fill(0xdb);
    disk.transfer(blk::T_IN, 0, before).map_err(Stop::Fail)?;
    let (status, _) = disk.request(blk::T_OUT, 0, &[Buffer::readable(data)]).map_err(Stop::Fail)?;
    check!(status == blk::IO_ERROR, "a write gives status {status}, not 1");
    disk.transfer(blk::T_IN, 0, after).map_err(Stop::Fail)?;
    check!((0..4096).all(|i| before.read8(i) == after.read8(i)), "the disk changed");
    Ok(text!(""))
}

/// Requests that leave the disk are refused, the last sector is not; an unknown request is unsupported.
pub(super) fn out_of_range(machine: &mut Machine) -> Outcome {
    let mut disk = open(machine)?;
    let capacity = disk.capacity;
    let buffer = machine.arena.take(8 * SECTOR, 4096);
    let one = buffer.part(0, SECTOR);
    disk.transfer(blk::T_IN, capacity - 1, one).map_err(Stop::Fail)?;
    let kinds: &[u32] = if disk.read_only() { &[blk::T_IN] } else { &[blk::T_IN, blk::T_OUT] };
    for &kind in kinds {
        for (sector, data) in [
            (capacity, one),
            (capacity - 1, buffer.part(0, 2 * SECTOR)),
            (u64::MAX, one),
            (u64::MAX - 7, buffer),
            (u64::MAX / SECTOR, one),
            (u64::MAX / SECTOR + 1, one),
            (1 << 55, one),
            (1 << 63, one),
        ] {
            let data = if kind == blk::T_OUT { Buffer::readable(data) } else { Buffer::writable(data) };
            let (status, _) = disk.request(kind, sector, &[data]).map_err(Stop::Fail)?;
            check!(
                status == blk::IO_ERROR,
                "request {kind} of {} bytes at {sector:#x}: status {status}",
                data.len
            );
        }
    }
    for kind in [6, 9, 12, 0xffff, u32::MAX] {
        let (status, _) = disk.request(kind, 0, &[Buffer::writable(one)]).map_err(Stop::Fail)?;
        check!(status == blk::UNSUPPORTED, "request type {kind:#x}: status {status}, not 2");
    }
    disk.transfer(blk::T_IN, 0, one).map_err(Stop::Fail)?;
    Ok(text!("capacity={capacity}"))
}

/// Many small buffers, direct and through an indirect table, read what one large buffer reads.
pub(super) fn segments(machine: &mut Machine) -> Outcome {
    let mut disk = open(machine)?;
    let len = 16 * SECTOR;
    check!(disk.capacity >= 16, "the disk has {} sectors", disk.capacity);
    let whole = machine.arena.take(len, 4096);
    disk.transfer(blk::T_IN, 0, whole).map_err(Stop::Fail)?;
    let indirect_offered = disk.device.features & crate::virtio::F_INDIRECT != 0;
    for indirect in [false, true] {
        if indirect && !indirect_offered {
            continue;
        }
        // Lengths that are no sectors and addresses that are not aligned, adding up to whole sectors.
        let scattered = machine.arena.take(2 * len, 4096);
        let pieces = [1u64, 511, 512, 3, 1021, 512, 2048, 7, 505, 3072];
        let mut parts = [Buffer::writable(scattered); 10];
        let mut at = 1;
        for (part, piece) in parts.iter_mut().zip(pieces) {
            *part = Buffer::writable(scattered.part(at, piece));
            at += piece + 5;
        }
        let total: u64 = pieces.iter().sum();
        check!(total == len, "the pieces add up to {total}");
        let (status, written) = if indirect {
            disk.request_indirect(blk::T_IN, 0, &parts)
        } else {
            disk.request(blk::T_IN, 0, &parts)
        }
        .map_err(Stop::Fail)?;
        check!(
            status == blk::OK && u64::from(written) == len + 1,
            "status {status}, {written} bytes written"
        );
        let mut wanted = 0;
        let mut at = 1;
        for piece in pieces {
            for i in 0..piece {
                let (a, b) = (scattered.read8(at + i), whole.read8(wanted + i));
                check!(a == b, "byte {} is {a:#x}, not {b:#x} (indirect {indirect})", wanted + i);
            }
            wanted += piece;
            at += piece + 5;
        }
    }
    Ok(text!("indirect={indirect_offered}"))
}

/// The ring full of requests at once, each completed exactly once, several rounds, so indices wrap.
pub(super) fn full_ring(machine: &mut Machine) -> Outcome {
    let mut disk = open_with(machine, Disk::USUAL & !crate::virtio::F_INDIRECT)?;
    let depth = u64::from(disk.queue.size / 3);
    let headers = machine.arena.take(depth * 16, 16);
    let data = machine.arena.take(depth * SECTOR, 4096);
    let states = machine.arena.take(depth, 1);
    let rounds = 70_000 / depth;
    for round in 0..rounds {
        states.fill(blk::UNANSWERED);
        for i in 0..depth {
            headers.write32(i * 16, blk::T_IN);
            headers.write64(i * 16 + 8, (round + i) % disk.capacity);
            let chain = [
                Buffer::readable(headers.part(i * 16, 16)),
                Buffer::writable(data.part(i * SECTOR, SECTOR)),
                Buffer::writable(states.part(i, 1)),
            ];
            check!(disk.queue.add(&chain).is_some(), "the queue is full after {i} requests");
        }
        disk.queue.kick();
        for _ in 0..depth {
            disk.device.complete(&mut disk.queue, &machine.clock).map_err(Stop::Fail)?;
        }
        check!(disk.queue.pop().is_none(), "more completions than requests");
        if let Some(i) = (0..depth).find(|&i| states.read8(i) != blk::OK) {
            fail!("round {round}: request {i} has status {:#x}", states.read8(i));
        }
    }
    Ok(text!("depth={depth} rounds={rounds}"))
}

/// Write-zeroes and discard of a few sectors, where offered: zeroes read back, neighbours stay.
pub(super) fn zeroes(machine: &mut Machine) -> Outcome {
    const FIRST: u64 = 16;
    let mut disk = open_with(machine, Disk::USUAL | blk::F_WRITE_ZEROES | blk::F_DISCARD)?;
    let offered = disk.device.features;
    if disk.read_only() || offered & blk::F_WRITE_ZEROES == 0 {
        skip!("the disk offers no write-zeroes");
    }
    check!(disk.capacity >= 64, "the disk has {} sectors", disk.capacity);
    let data = machine.arena.take(32 * SECTOR, 4096);
    let range = machine.arena.take(16, 16);
    data.fill(0xee);
    // Not at the very start: a disk whose format was guessed takes no write there.
    disk.transfer(blk::T_OUT, FIRST, data).map_err(Stop::Fail)?;
    range.write64(0, FIRST + 8);
    range.write32(8, 8);
    let (status, _) = disk.request(blk::T_WRITE_ZEROES, 0, &[Buffer::readable(range)]).map_err(Stop::Fail)?;
    check!(status == blk::OK, "write-zeroes: status {status}");
    disk.transfer(blk::T_IN, FIRST, data).map_err(Stop::Fail)?;
    let hole = 8 * SECTOR..16 * SECTOR;
    let wrong = (0..data.len()).find(|i| data.read8(*i) != if hole.contains(i) { 0 } else { 0xee });
    if let Some(i) = wrong {
        fail!("byte {i} is {:#x}", data.read8(i));
    }
    for (sector, count, flags, kind) in [
        (disk.capacity, 1, 0, blk::T_WRITE_ZEROES),
        (u64::MAX - 1, 8, 0, blk::T_WRITE_ZEROES),
        (0, u32::MAX, 0, blk::T_WRITE_ZEROES),
        (0, 8, 0xffff_fff0, blk::T_WRITE_ZEROES),
        (disk.capacity - 1, 2, 0, blk::T_DISCARD),
    ] {
        if kind == blk::T_DISCARD && offered & blk::F_DISCARD == 0 {
            continue;
        }
        range.write64(0, sector);
        range.write32(8, count);
        range.write32(12, flags);
        let (status, _) = disk.request(kind, 0, &[Buffer::readable(range)]).map_err(Stop::Fail)?;
        check!(status != blk::OK, "request {kind} of {count} at {sector:#x} flags {flags:#x} succeeded");
    }
    Ok(text!("discard={}", offered & blk::F_DISCARD != 0))
}

/// Writes sector 0, and sectors 0 and 1 in one request, as a guest would to put another format's header there. `probe.expect=taken` or
/// `refused` says what should come of it; refused writes leave the sector alone.
pub(super) fn first_sector(machine: &mut Machine) -> Outcome {
    let mut disk = open_writable(machine)?;
    let taken = match machine.start.option("expect") {
        Some("taken") => true,
        Some("refused") => false,
        other => fail!("probe.expect is {other:?}"),
    };
    let before = machine.arena.take(2 * SECTOR, 4096);
    let data = machine.arena.take(2 * SECTOR, 4096);
    let after = machine.arena.take(2 * SECTOR, 4096);
    disk.transfer(blk::T_IN, 0, before).map_err(Stop::Fail)?;
    data.store(0, b"QFI\xfb\0\0\0\x03");
    for len in [SECTOR, 2 * SECTOR] {
        let buffer = Buffer::readable(data.part(0, len));
        let (status, _) = disk.request(blk::T_OUT, 0, &[buffer]).map_err(Stop::Fail)?;
        let wanted = if taken { blk::OK } else { blk::IO_ERROR };
        check!(status == wanted, "a write of {len} bytes: status {status}, not {wanted}");
    }
    disk.transfer(blk::T_IN, 0, after).map_err(Stop::Fail)?;
    let wanted = if taken { data } else { before };
    check!(
        (0..2 * SECTOR).all(|i| after.read8(i) == wanted.read8(i)),
        "the sectors do not hold what they should"
    );
    Ok(text!(""))
}
