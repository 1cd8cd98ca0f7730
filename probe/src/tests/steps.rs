//! Writing and reading all of every disk, step by step as somebody at COM1 says, while disks of the host fill up or fail.
//!
//! `w` writes every sector of all disks, one chunk after the other, with the stamp of the next round, and flushes; it tells `WROTE n ok=n
//! failed=n flush=STATUS` for each disk. `r` reads all, and tells `READ n ok=n failed=n wrong=n`: a sector is wrong if it is not as the last
//! write that succeeded and was flushed left it, nor as one that came later. `q` ends it.

use super::Machine;
use crate::console::typed;
use crate::io::Region;
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, Disk, SECTOR, stamp};
use crate::virtio::queue::Buffer;

/// Sectors of a request.
const CHUNK: u64 = 128;

struct Steps {
    disk: Disk,
    data: Region,
    /// The oldest round that each chunk may be of, as far as is flushed, and if the next flush succeeds; a word each.
    sure: Region,
    next: Region,
    round: u64,
}

impl Steps {
    fn open(machine: &mut Machine, nth: u64) -> Result<Option<Steps>, Stop> {
        let disk = Disk::open(&machine.bus, &mut machine.arena, machine.clock, nth, Disk::USUAL);
        let Some(disk) = disk.map_err(Stop::Fail)? else { return Ok(None) };
        let mut take = |length| machine.arena.take(length, 4096);
        let chunks = disk.capacity / CHUNK;
        let (data, sure, next) = (take(CHUNK * SECTOR), take(chunks * 8), take(chunks * 8));
        Ok(Some(Steps { disk, data, sure, next, round: 0 }))
    }

    fn chunks(&self) -> u64 {
        self.disk.capacity / CHUNK
    }

    /// One request, which may succeed or fail, but nothing else.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Result<bool, Stop> {
        let (status, _) = self.disk.request(kind, sector, data).map_err(Stop::Fail)?;
        check!(status <= blk::IO_ERROR, "request {kind} at {sector}: status {status}");
        Ok(status == blk::OK)
    }

    fn write(&mut self, nth: usize) -> Result<(), Stop> {
        self.round += 1;
        let mut counts = [0; 2];
        for chunk in 0..self.chunks() {
            let (first, data) = (chunk * CHUNK, self.data);
            (0..CHUNK).for_each(|i| stamp::write(data.part(i * SECTOR, SECTOR), first + i, self.round));
            let ok = self.ask(blk::T_OUT, first, &[Buffer::readable(data)])?;
            if ok {
                self.next.write64(chunk * 8, self.round);
            }
            counts[usize::from(!ok)] += 1;
        }
        let flushed = self.ask(blk::T_FLUSH, 0, &[])?;
        for chunk in 0..self.chunks() {
            let [from, to] = if flushed { [self.next, self.sure] } else { [self.sure, self.next] };
            to.write64(chunk * 8, from.read64(chunk * 8));
        }
        println!("WROTE {nth} ok={} failed={} flush={}", counts[0], counts[1], u8::from(!flushed));
        Ok(())
    }

    fn read(&mut self, nth: usize) -> Result<(), Stop> {
        let (mut counts, mut wrong) = ([0; 2], 0);
        for chunk in 0..self.chunks() {
            let (first, data) = (chunk * CHUNK, self.data);
            data.fill(0xcc);
            let ok = self.ask(blk::T_IN, first, &[Buffer::writable(data)])?;
            counts[usize::from(!ok)] += 1;
            let may = self.sure.read64(chunk * 8)..=self.round;
            let good =
                |i| stamp::read(data.part(i * SECTOR, SECTOR), first + i).is_some_and(|n| may.contains(&n));
            wrong += if ok { (0..CHUNK).filter(|i| !good(*i)).count() } else { 0 };
        }
        println!("READ {nth} ok={} failed={} wrong={wrong}", counts[0], counts[1]);
        Ok(())
    }
}

/// The test.
pub(super) fn steps(machine: &mut Machine) -> Outcome {
    let mut disks = [const { None }; 2];
    for (nth, disk) in disks.iter_mut().enumerate() {
        *disk = Steps::open(machine, nth as u64)?;
    }
    println!("# ready for steps");
    loop {
        let Some(letter) = typed() else {
            core::hint::spin_loop();
            continue;
        };
        if letter == b'q' {
            return Ok(text!(""));
        }
        for (nth, disk) in disks.iter_mut().enumerate() {
            match (letter, disk) {
                (b'w', Some(disk)) => disk.write(nth)?,
                (b'r', Some(disk)) => disk.read(nth)?,
                _ => (),
            }
        }
    }
}
