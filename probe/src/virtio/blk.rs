//! A virtio block driver with one queue (virtio 1.3, 5.2).

use super::queue::{Buffer, Queue};
use super::{Device, F_EVENT_IDX, F_INDIRECT, NO_VECTOR, kind};
use crate::arena::Arena;
use crate::clock::Clock;
use crate::io::Region;
use crate::text::Text;

pub(crate) const SECTOR: u64 = 512;

pub(crate) const F_SEG_MAX: u64 = 1 << 2;
pub(crate) const F_READ_ONLY: u64 = 1 << 5;
pub(crate) const F_BLK_SIZE: u64 = 1 << 6;
pub(crate) const F_FLUSH: u64 = 1 << 9;
pub(crate) const F_TOPOLOGY: u64 = 1 << 10;
pub(crate) const F_CONFIG_WCE: u64 = 1 << 11;
pub(crate) const F_MQ: u64 = 1 << 12;
pub(crate) const F_DISCARD: u64 = 1 << 13;
pub(crate) const F_WRITE_ZEROES: u64 = 1 << 14;

pub(crate) const T_IN: u32 = 0;
pub(crate) const T_OUT: u32 = 1;
pub(crate) const T_FLUSH: u32 = 4;
pub(crate) const T_GET_ID: u32 = 8;
pub(crate) const T_DISCARD: u32 = 11;
pub(crate) const T_WRITE_ZEROES: u32 = 13;

pub(crate) const OK: u8 = 0;
pub(crate) const IO_ERROR: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;

/// A status no device writes: the request was not answered.
pub(crate) const UNANSWERED: u8 = 0xee;

/// A started disk.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) device: Device,
    pub(crate) queue: Queue,
    /// Size in 512-byte sectors.
    pub(crate) capacity: u64,
    clock: Clock,
    header: Region,
    status: Region,
    table: Region,
}

impl Disk {
    /// Opens and starts the `nth` disk with as much of `features` as it offers. `Ok(None)`: there is no such disk.
    pub(crate) fn open(
        bus: &crate::pci::Bus,
        arena: &mut Arena,
        clock: Clock,
        nth: u64,
        features: u64,
    ) -> Result<Option<Disk>, Text> {
        let Some(device) = Device::find(bus, kind::BLOCK, nth) else { return Ok(None) };
        Disk::on(device?, arena, clock, features, NO_VECTOR).map(Some)
    }

    /// Starts a disk with as much of `features` as it offers, and the interrupt `vector` for its queue.
    pub(crate) fn on(
        mut device: Device,
        arena: &mut Arena,
        clock: Clock,
        features: u64,
        vector: u16,
    ) -> Result<Disk, Text> {
        device.negotiate(features | F_READ_ONLY)?;
        let queue = device.queue(arena, 0, 256, vector)?;
        device.start()?;
        let config =
            device.config.ok_or_else(|| text!("{}: no device configuration", device.function.bdf))?;
        let capacity = config.read64(0);
        Ok(Disk {
            device,
            queue,
            capacity,
            clock,
            header: arena.take(16, 16),
            status: arena.take(1, 1),
            table: arena.take(16 * 64, 16),
        })
    }

    /// The features that a plain driver takes.
    pub(crate) const USUAL: u64 = F_FLUSH | F_BLK_SIZE | F_SEG_MAX | F_TOPOLOGY | F_INDIRECT | F_EVENT_IDX;

    pub(crate) fn read_only(&self) -> bool {
        self.device.features & F_READ_ONLY != 0
    }

    /// One request, done to the end: its status and the length that the device says it wrote.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Result<(u8, u32), Text> {
        self.submit(kind, sector, data, false)
    }

    /// The same through an indirect table.
    pub(crate) fn request_indirect(
        &mut self,
        kind: u32,
        sector: u64,
        data: &[Buffer],
    ) -> Result<(u8, u32), Text> {
        self.submit(kind, sector, data, true)
    }

    fn submit(&mut self, kind: u32, sector: u64, data: &[Buffer], indirect: bool) -> Result<(u8, u32), Text> {
        let mut chain = [Buffer::readable(self.header); 64];
        let len = data.len() + 2;
        assert!(len <= chain.len(), "{} segments", data.len());
        chain[1..len - 1].copy_from_slice(data);
        chain[len - 1] = Buffer::writable(self.status);
        self.fill_header(kind, sector);
        let head = if indirect {
            self.queue.add_indirect(self.table, &chain[..len])
        } else {
            self.queue.add(&chain[..len])
        };
        let head = head.ok_or_else(|| text!("the queue is full"))?;
        self.queue.kick();
        let (done, written) = self.device.complete(&mut self.queue, &self.clock)?;
        if done != head {
            return Err(text!("{head} was asked, {done} is done"));
        }
        Ok((self.status.read8(0), written))
    }

    /// Prepares the header and clears the status, for chains that the caller builds: both regions.
    pub(crate) fn fill_header(&mut self, kind: u32, sector: u64) -> (Region, Region) {
        self.header.write32(0, kind);
        self.header.write32(4, 0);
        self.header.write64(8, sector);
        self.status.write8(0, UNANSWERED);
        (self.header, self.status)
    }

    /// Reads or writes whole sectors and expects success.
    pub(crate) fn transfer(&mut self, kind: u32, sector: u64, data: Region) -> Result<(), Text> {
        let buffer = if kind == T_OUT { Buffer::readable(data) } else { Buffer::writable(data) };
        let (status, written) = self.request(kind, sector, &[buffer])?;
        if status != OK {
            return Err(text!("request {kind} of {} bytes at sector {sector}: status {status}", data.len()));
        }
        let wanted = if kind == T_OUT { 1 } else { data.len() as u32 + 1 };
        if written != wanted {
            return Err(text!("request {kind} at sector {sector}: {written} bytes written, not {wanted}"));
        }
        Ok(())
    }
}

/// The word at `index` of `sector` in the pattern `seed`: what `blk-write` writes and the host checks. SplitMix64's output function
/// over the word's number.
pub(crate) fn pattern(seed: u64, sector: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((sector * 64 + index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What a sector holds whose content is known by a number: the number, then its pattern, then a sum of all; zeroes for the number 0. So
/// a sector that is old, torn, misplaced or another's is told apart.
pub(crate) mod stamp {
    use super::{Region, pattern};

    /// What the first 63 words of a sector add up to.
    fn sum(sector: Region) -> u64 {
        (0..63).fold(0u64, |sum, i| sum.rotate_left(1).wrapping_add(sector.read64(i * 8)))
    }

    /// Fills the buffer of a sector.
    pub(crate) fn write(buffer: Region, sector: u64, number: u64) {
        if number == 0 {
            return buffer.fill(0);
        }
        buffer.write64(0, number);
        (1..63).for_each(|i| buffer.write64(i * 8, pattern(number, sector, i)));
        buffer.write64(63 * 8, sum(buffer));
    }

    /// The number of what a sector holds; nothing if it is not whole.
    pub(crate) fn read(buffer: Region, sector: u64) -> Option<u64> {
        let number = buffer.read64(0);
        let whole = if number == 0 {
            (0..64).all(|i| buffer.read64(i * 8) == 0)
        } else {
            (1..63).all(|i| buffer.read64(i * 8) == pattern(number, sector, i))
                && buffer.read64(63 * 8) == sum(buffer)
        };
        whole.then_some(number)
    }
}
