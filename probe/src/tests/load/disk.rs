//! A disk: requests of one to eight sectors at random places, and what each sector must hold.
//!
//! A sector holds the [`stamp`] of the write that filled it, or zeroes if nothing was written yet. So a sector that is old, torn, misplaced
//! or another's is told apart, by the guest that knows which number it must be, and by anybody who has the image.

use super::{Trouble, spin};
use crate::io::Region;
use crate::random::Random;
use crate::tests::Machine;
use crate::verdict::Stop;
use crate::virtio::blk::{self, Disk, SECTOR, stamp};
use crate::virtio::queue::{Buffer, Queue};
use crate::virtio::{Device, kind};

/// Sectors of a request at most.
const LARGEST: u64 = 8;
/// No request, in the table from heads to places.
const NONE: u16 = u16::MAX;

/// Words of the place's record: what it does, where, how much.
mod job {
    pub(super) const KIND: u64 = 0;
    pub(super) const SECTOR: u64 = 8;
    pub(super) const SECTORS: u64 = 16;
    pub(super) const LEN: u64 = 24;
    /// Nothing.
    pub(super) const FREE: u64 = u64::MAX;
}

/// A disk under load.
#[derive(Debug)]
pub(super) struct DiskLoad {
    nth: u64,
    disk: Disk,
    random: Random,
    sectors: u64,
    /// Number of the last write of each sector, 32 bits each; 0 for none.
    numbers: Region,
    /// Number of the last one that did not fail. A sector holds this write, or one that came later.
    sure: Region,
    /// Whether a request is at it, a byte each.
    busy: Region,
    jobs: Region,
    headers: Region,
    states: Region,
    data: Region,
    /// The place behind each head, 16 bits each.
    places: Region,
    depth: u64,
    in_flight: u64,
    number: u32,
    done: u64,
}

impl DiskLoad {
    /// The `nth` disk; `None` if there is none that can be written.
    pub(super) fn open(machine: &mut Machine, nth: u64, vector: u16) -> Result<Option<DiskLoad>, Stop> {
        let Some(device) = Device::find(&machine.bus, kind::BLOCK, nth) else { return Ok(None) };
        let device = device.map_err(Stop::Fail)?;
        let disk = Disk::on(device, &mut machine.arena, machine.clock, Disk::USUAL, vector);
        let disk = disk.map_err(Stop::Fail)?;
        if disk.read_only() {
            return Ok(None);
        }
        let number = |name, default| machine.start.number(name).unwrap_or(default);
        let sectors = number("sectors", 8192).min(disk.capacity);
        if sectors < LARGEST {
            return Err(Stop::Fail(text!("disk {nth} has {sectors} sectors")));
        }
        let depth = number("depth", 16).clamp(1, u64::from(disk.queue.size / 3));
        let random = Random::new(number("seed", 1) ^ nth << 32);
        let arena = &mut machine.arena;
        let load = DiskLoad {
            nth,
            random,
            sectors,
            numbers: arena.take(sectors * 4, 4096),
            sure: arena.take(sectors * 4, 4096),
            busy: arena.take(sectors, 64),
            jobs: arena.take(depth * job::LEN, 64),
            headers: arena.take(depth * 16, 64),
            states: arena.take(depth, 64),
            data: arena.take(depth * LARGEST * SECTOR, 4096),
            places: arena.take(u64::from(disk.queue.size) * 2, 64),
            disk,
            depth,
            in_flight: 0,
            number: 0,
            done: 0,
        };
        load.places.fill(0xff);
        (0..depth).for_each(|place| load.jobs.write64(place * job::LEN + job::KIND, job::FREE));
        Ok(Some(load))
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.disk.queue
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight == 0
    }

    fn buffer(&self, place: u64, sectors: u64) -> Region {
        self.data.part(place * LARGEST * SECTOR, sectors * SECTOR)
    }

    /// Compares a sector that was read.
    fn check(&self, buffer: Region, sector: u64, trouble: &mut Trouble) {
        let [sure, wanted] = [self.sure, self.numbers].map(|numbers| u64::from(numbers.read32(sector * 4)));
        let found = stamp::read(buffer, sector);
        if found != Some(wanted) && !found.is_some_and(|found| (sure..wanted).contains(&found)) {
            trouble.note(text!(
                "disk {}: sector {sector} holds write {:#x} (whole: {}), not {sure:#x} to {wanted:#x}",
                self.nth,
                buffer.read64(0),
                found.is_some()
            ));
        }
    }

    /// Takes what is done and, if `more`, asks until `depth` requests are out. How much was done.
    pub(super) fn step(&mut self, more: bool, trouble: &mut Trouble) -> u64 {
        let before = self.done;
        while let Some((head, len)) = self.disk.queue.pop_raw() {
            self.complete(head, len, trouble);
        }
        if more && self.in_flight < self.depth {
            for place in 0..self.depth {
                if self.jobs.read64(place * job::LEN + job::KIND) == job::FREE {
                    self.submit(place, trouble);
                }
            }
            self.disk.queue.kick();
        }
        self.done - before
    }

    fn complete(&mut self, head: u32, len: u32, trouble: &mut Trouble) {
        let nth = self.nth;
        let known = u64::from(head) < self.places.len() / 2;
        let place = if known { self.places.read16(u64::from(head) * 2) } else { NONE };
        if place == NONE {
            trouble.note(text!("disk {nth}: head {head} is completed, which was not asked or is done"));
            return;
        }
        self.places.write16(u64::from(head) * 2, NONE);
        self.disk.queue.release(head as u16);
        let place = u64::from(place);
        let record = self.jobs.part(place * job::LEN, job::LEN);
        let (kind, first, count) =
            (record.read64(job::KIND), record.read64(job::SECTOR), record.read64(job::SECTORS));
        record.write64(job::KIND, job::FREE);
        self.in_flight -= 1;
        self.done += 1;
        let status = self.states.read8(place);
        let wanted = if kind == u64::from(blk::T_IN) { count * SECTOR + 1 } else { 1 };
        // What a read that failed has left in the buffer is not told of, so the status behind it is not either.
        let told = u32::from(kind != u64::from(blk::T_IN));
        let failed = status == blk::IO_ERROR && len == told && trouble.failures_expected;
        if failed {
            trouble.failures += 1;
        } else if status != blk::OK || u64::from(len) != wanted {
            trouble.note(text!(
                "disk {nth}: request {kind} of {count} sectors at {first}: status {status:#x}, {len} bytes"
            ));
        }
        for i in 0..count {
            self.busy.write8(first + i, 0);
            if kind == u64::from(blk::T_OUT) && status == blk::OK {
                self.sure.write32((first + i) * 4, self.numbers.read32((first + i) * 4));
            }
            if kind == u64::from(blk::T_IN) && status == blk::OK {
                self.check(self.buffer(place, count).part(i * SECTOR, SECTOR), first + i, trouble);
            }
        }
    }

    fn submit(&mut self, place: u64, trouble: &mut Trouble) {
        let count = 1 + self.random.below(LARGEST);
        let first = self.random.below(self.sectors - count + 1);
        let dice = self.random.below(32);
        if (first..first + count).any(|sector| self.busy.read8(sector) != 0) {
            return; // somewhere else next time
        }
        let (kind, count) = match dice {
            0 => (blk::T_FLUSH, 0),
            1..=15 => (blk::T_IN, count),
            _ => (blk::T_OUT, count),
        };
        let buffer = self.buffer(place, count);
        for i in 0..count {
            self.busy.write8(first + i, 1);
            if kind == blk::T_OUT {
                // Numbers go round to 1: 0 means nothing.
                self.number = self.number.checked_add(1).unwrap_or(1);
                stamp::write(buffer.part(i * SECTOR, SECTOR), first + i, u64::from(self.number));
                self.numbers.write32((first + i) * 4, self.number);
            }
        }
        if kind == blk::T_IN {
            buffer.fill(0xdd);
        }
        let header = self.headers.part(place * 16, 16);
        header.write32(0, kind);
        header.write64(8, if count == 0 { 0 } else { first });
        let state = self.states.part(place, 1);
        state.write8(0, blk::UNANSWERED);
        let data = if kind == blk::T_OUT { Buffer::readable(buffer) } else { Buffer::writable(buffer) };
        let chain = [Buffer::readable(header), data, Buffer::writable(state)];
        let without = [chain[0], chain[2]];
        let Some(head) = self.disk.queue.add(if count == 0 { &without } else { &chain }) else {
            trouble.note(text!("disk {}: the queue is full", self.nth));
            return;
        };
        let record = self.jobs.part(place * job::LEN, job::LEN);
        record.write64(job::KIND, u64::from(kind));
        record.write64(job::SECTOR, first);
        record.write64(job::SECTORS, count);
        self.places.write16(u64::from(head) * 2, place as u16);
        self.in_flight += 1;
    }

    /// Reads every sector, one request after the other, and compares it; or, if `adopt`, takes what is there for granted as long as it
    /// is whole. How many there are.
    pub(super) fn sweep(&mut self, adopt: bool, trouble: &mut Trouble) -> Result<u64, Stop> {
        let mut sector = 0;
        while sector < self.sectors {
            let count = LARGEST.min(self.sectors - sector);
            let buffer = self.buffer(0, count);
            let (header, state) = self.disk.fill_header(blk::T_IN, sector);
            let chain = [Buffer::readable(header), Buffer::writable(buffer), Buffer::writable(state)];
            let queue = &mut self.disk.queue;
            let added = queue.add(&chain).is_some();
            queue.kick();
            let mut done = None;
            spin(|| {
                done = queue.pop();
                done.is_some()
            });
            if done.is_some() && state.read8(0) == blk::IO_ERROR && trouble.failures_expected {
                trouble.failures += 1;
                continue; // until it does not fail any more
            }
            if !added || done.is_none() || state.read8(0) != blk::OK {
                return Err(Stop::Fail(text!("disk {}: sector {sector} cannot be read", self.nth)));
            }
            for i in 0..count {
                let data = buffer.part(i * SECTOR, SECTOR);
                if adopt {
                    let number = data.read64(0) as u32;
                    self.numbers.write32((sector + i) * 4, number);
                    self.sure.write32((sector + i) * 4, number);
                    self.number = self.number.max(number);
                }
                self.check(data, sector + i, trouble);
            }
            sector += count;
        }
        Ok(self.sectors)
    }
}
