//! What is drawn: values, addresses, lengths that are more likely than others to hurt.

use super::Attack;
use crate::io::Region;
use crate::random::Random;
use crate::virtio::queue::DESCRIPTOR;

/// Draws.
pub(super) trait Picks {
    /// Whether one in `n`.
    fn one_in(&mut self, n: u64) -> bool;
    /// A value of any width.
    fn value(&mut self) -> u64;
    /// 1, 2, 4 or 8.
    fn width(&mut self) -> u64;
    /// The length of a buffer.
    fn length(&mut self) -> u32;
}

impl Picks for Random {
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn value(&mut self) -> u64 {
        let bits = self.next();
        match bits % 8 {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (bits >> 8 & 63),
            3 => (1u64 << (bits >> 8 & 63)).wrapping_sub(1),
            4 | 5 => bits >> 8 & 0xf,
            6 => bits >> 8 & 0xffff,
            _ => bits.rotate_left(17),
        }
    }

    fn width(&mut self) -> u64 {
        1 << self.below(4)
    }

    fn length(&mut self) -> u32 {
        match self.below(12) {
            0 => 0,
            1 => u32::MAX,
            2 => 1,
            3 => self.below(1 << 20) as u32,
            4 => self.value() as u32,
            5..=8 => (self.below(16) as u32) << 9,
            _ => self.below(5000) as u32,
        }
    }
}

impl Attack<'_> {
    /// Where a buffer or a ring may lie that a device writes to: the playground, or where no RAM is.
    pub(super) fn address(&mut self) -> u64 {
        let random = &mut self.random;
        match random.below(24) {
            0 => self.beyond,
            1 => self.beyond - 256,
            2 => u64::MAX - 255,
            3 => u64::MAX - random.below(8192),
            4 => 0xfee0_0000,
            5 => 0xfec0_0000,
            6 => 0xe800_0000 + (random.below(32) << 15),
            7 => 0xc000_0000 + random.below(0x2800_0000),
            8 => 1 << 45 | random.next() >> 20,
            9 => 0xf800_0000,
            _ => self.in_play(),
        }
    }

    /// Where one may lie that a device reads: everything of the guest's, and the above.
    pub(super) fn readable_address(&mut self) -> u64 {
        match self.random.below(12) {
            0 => 0,
            1 => 0xf_0000,
            2 => 0xa_0000 - 128,
            3 => self.random.below(self.beyond),
            _ => self.address(),
        }
    }

    /// Somewhere in the playground, aligned or not.
    pub(super) fn in_play(&mut self) -> u64 {
        let offset = self.random.below(self.play.len() - 8192);
        self.play.base() + if self.random.one_in(3) { offset } else { offset & !0xfff }
    }

    /// Room for a table of so many descriptors.
    pub(super) fn table(&mut self, links: u64) -> Region {
        let len = links * DESCRIPTOR;
        let at = self.random.below((self.tables.len() - len) / DESCRIPTOR) * DESCRIPTOR;
        self.tables.part(at, len)
    }

    /// Where a table may be said to lie: where tables are, or where no RAM is.
    pub(super) fn table_address(&mut self) -> u64 {
        let address = self.address();
        if self.play.contains(address) { self.table(1).base() } else { address }
    }

    /// The part of the playground at an address in it.
    pub(super) fn part_at(&self, address: u64, len: u64) -> Region {
        self.play.part(address - self.play.base(), len)
    }
}
