//! Memory: pages that each hold a stamp, looked at and stamped anew in no order.

use super::Trouble;
use crate::io::Region;
use crate::random::Random;
use crate::tests::Machine;
use crate::verdict::Stop;

const PAGE: u64 = 4096;
/// Stamps in a page, evenly spread.
const STAMPS: u64 = 8;

/// A piece of memory and what it must hold.
#[derive(Debug)]
pub(super) struct MemoryLoad {
    pages: Region,
    /// How often each page was stamped, 32 bits a page.
    counts: Region,
    random: Random,
    done: u64,
}

fn stamp(page: u64, count: u32) -> u64 {
    (page << 32 | u64::from(count)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl MemoryLoad {
    pub(super) fn new(machine: &mut Machine) -> Result<MemoryLoad, Stop> {
        let len = machine.start.number("touch").unwrap_or(8) << 20;
        // The arena panics at what it cannot give; leave the devices' share.
        if len > machine.arena.whole().len() / 2 {
            return Err(Stop::Fail(text!("{len} bytes are too much for the arena")));
        }
        let counts = machine.arena.take(len / PAGE * 4, 4096);
        let pages = machine.arena.take(len, PAGE);
        let mut load = MemoryLoad { pages, counts, random: Random::new(77), done: 0 };
        (0..load.len()).for_each(|page| load.write(page));
        Ok(load)
    }

    fn len(&self) -> u64 {
        self.pages.len() / PAGE
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }

    fn write(&mut self, page: u64) {
        let count = self.counts.read32(page * 4).wrapping_add(1);
        self.counts.write32(page * 4, count);
        for i in 0..STAMPS {
            self.pages.write64(page * PAGE + i * (PAGE / STAMPS), stamp(page, count));
        }
    }

    fn check(&self, page: u64, trouble: &mut Trouble) {
        let wanted = stamp(page, self.counts.read32(page * 4));
        for i in 0..STAMPS {
            let at = page * PAGE + i * (PAGE / STAMPS);
            let found = self.pages.read64(at);
            if found != wanted {
                trouble.note(text!("memory at {:#x}: {found:#x}, not {wanted:#x}", self.pages.base() + at));
                return;
            }
        }
    }

    /// One page.
    pub(super) fn step(&mut self, trouble: &mut Trouble) {
        let page = self.random.below(self.len());
        if self.len() > 0 {
            self.check(page, trouble);
            self.write(page);
            self.done += 1;
        }
    }

    /// All pages.
    pub(super) fn check_all(&self, trouble: &mut Trouble) {
        (0..self.len()).for_each(|page| self.check(page, trouble));
    }
}
