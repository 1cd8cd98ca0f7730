//! Writes of which the guest tells what it was promised, for machines that are killed meanwhile: whoever has the image afterwards knows
//! from the last whole line what must be in it.
//!
//! Writes are numbered. Write `n` goes to the sectors that [`place`] says and leaves its stamp there, or zeroes. A line `HELD n` says that
//! all writes before `n` were answered, and then flushed; and before that line no write `n + WINDOW` was asked for. Since the slots of
//! `WINDOW` writes in a row are not the same, each sector is as the last of the promised writes left it, or as one later write does.
//!
//! `probe.first` (1) is the number of the first write; `probe.through=on`: the driver takes no flush and no choice, so that an answered
//! write is a promise by itself. It goes on until it is told to end as `load` is.

use super::Machine;
use super::load::told_to_end;
use crate::io::Region;
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, Disk, SECTOR, pattern, stamp};
use crate::virtio::queue::Buffer;

/// Places for writes, each of up to eight sectors: a power of two.
const SLOTS: u64 = 2048;
const SLOT_SECTORS: u64 = 8;
/// Writes that may have been asked for beyond what was promised.
const WINDOW: u64 = 512;
/// Answered writes that are worth a flush and a line.
const WORTH: u64 = 64;
const DEPTH: usize = 32;
/// No write.
const FREE: u64 = u64::MAX;

/// Where a write goes, how many sectors it has, and whether it leaves zeroes.
fn place(number: u64) -> (u64, u64, bool) {
    let dice = pattern(number, 0, 0);
    let count = 1 + dice % SLOT_SECTORS;
    let within = (dice >> 8) % (SLOT_SECTORS - count + 1);
    // Odd, so that every slot has its turn, and far from the last one.
    let slot = number.wrapping_mul(1021) % SLOTS;
    (slot * SLOT_SECTORS + within, count, (dice >> 16).is_multiple_of(8))
}

/// One of the requests that may be under way, each with memory of its own; the last one is for flushes.
#[derive(Debug, Clone, Copy)]
struct Job {
    number: u64,
    head: u16,
    header: Region,
    state: Region,
    data: Region,
}

struct Writer {
    disk: Disk,
    jobs: [Job; DEPTH + 1],
    next: u64,
    held: u64,
}

impl Writer {
    fn open(machine: &mut Machine) -> Result<Writer, Stop> {
        let through = machine.start.option("through").is_some_and(|o| o == "on");
        let wanted = Disk::USUAL & !if through { blk::F_FLUSH } else { 0 };
        let disk = super::blk::open_with(machine, wanted | blk::F_WRITE_ZEROES)?;
        check!(disk.capacity >= SLOTS * SLOT_SECTORS, "the disk has {} sectors", disk.capacity);
        let first = machine.start.number("first").unwrap_or(1).max(1);
        let mut take = || Job {
            number: FREE,
            head: 0,
            header: machine.arena.take(16, 16),
            state: machine.arena.take(1, 1),
            data: machine.arena.take(SLOT_SECTORS * SECTOR, 4096),
        };
        Ok(Writer { disk, jobs: core::array::from_fn(|_| take()), next: first, held: first })
    }

    /// Whether the driver can flush, and so has to.
    fn flushes(&self) -> bool {
        self.disk.device.features & blk::F_FLUSH != 0
    }

    /// The first write that is not answered.
    fn unanswered(&self) -> u64 {
        self.jobs[..DEPTH].iter().map(|job| job.number).min().unwrap_or(FREE).min(self.next)
    }

    /// Asks for something in the place `at`, which is free.
    fn ask(
        &mut self,
        at: usize,
        number: u64,
        kind: u32,
        sector: u64,
        data: Option<Region>,
    ) -> Result<(), Stop> {
        let job = &mut self.jobs[at];
        job.header.write32(0, kind);
        job.header.write64(8, sector);
        job.state.write8(0, blk::UNANSWERED);
        let chain = [
            Buffer::readable(job.header),
            Buffer::readable(data.unwrap_or(job.header)),
            Buffer::writable(job.state),
        ];
        let without = [chain[0], chain[2]];
        let head = self.disk.queue.add(if data.is_some() { &chain } else { &without });
        job.head = head.ok_or_else(|| Stop::Fail(text!("the queue is full")))?;
        job.number = number;
        Ok(())
    }

    fn ask_write(&mut self, at: usize) -> Result<(), Stop> {
        let (sector, count, zeroes) = place(self.next);
        let buffer = self.jobs[at].data;
        let (kind, sector, data) = if zeroes && self.disk.device.features & blk::F_WRITE_ZEROES != 0 {
            buffer.write64(0, sector);
            buffer.write32(8, count as u32);
            // Every other may be freed.
            buffer.write32(12, self.next as u32 & 1);
            (blk::T_WRITE_ZEROES, 0, buffer.part(0, 16))
        } else {
            let number = if zeroes { 0 } else { self.next };
            (0..count).for_each(|i| stamp::write(buffer.part(i * SECTOR, SECTOR), sector + i, number));
            (blk::T_OUT, sector, buffer.part(0, count * SECTOR))
        };
        self.ask(at, self.next, kind, sector, Some(data))?;
        self.next += 1;
        Ok(())
    }

    /// Takes what is done, and asks for more. How much was done.
    fn step(&mut self) -> Result<u64, Stop> {
        let mut done = 0;
        while let Some((head, _)) = self.disk.queue.pop() {
            let at = self.jobs.iter().position(|job| job.number != FREE && job.head == head);
            let Some(at) = at else { fail!("head {head} is completed, which was not asked") };
            let job = &mut self.jobs[at];
            check!(job.state.read8(0) == blk::OK, "write {}: status {}", job.number, job.state.read8(0));
            let number = core::mem::replace(&mut job.number, FREE);
            if at == DEPTH {
                self.tell(number);
            }
            done += 1;
        }
        let answered = self.unanswered();
        if answered >= self.held + WORTH {
            if !self.flushes() {
                self.tell(answered);
            } else if self.jobs[DEPTH].number == FREE {
                self.ask(DEPTH, answered, blk::T_FLUSH, 0, None)?;
            }
        }
        for at in 0..DEPTH {
            if self.jobs[at].number == FREE && self.next < self.held + WINDOW {
                self.ask_write(at)?;
            }
        }
        self.disk.queue.kick();
        Ok(done)
    }

    fn tell(&mut self, held: u64) {
        self.held = held;
        println!("HELD {held}");
    }
}

/// The test.
pub(super) fn promise(machine: &mut Machine) -> Outcome {
    let mut writer = Writer::open(machine)?;
    let (mut done, mut look) = (0, 0);
    loop {
        done += writer.step()?;
        if done >= look {
            if told_to_end() {
                return Ok(text!("held={}", writer.held));
            }
            look = done + 1000;
        }
    }
}
