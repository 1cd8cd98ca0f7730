//! How long things took: counts by duration, in buckets whose width is a 64th of the value, so that a million figures take no more room than one.

use crate::arena::Arena;
use crate::clock::Clock;
use crate::io::Region;

/// Bits of a value that tell buckets of one power of two apart.
const FINE: u32 = 6;
const BUCKETS: u64 = (64 - FINE as u64 + 1) << FINE;

/// See the module.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Region,
    total: u64,
}

fn bucket(value: u64) -> u64 {
    match value.checked_ilog2() {
        Some(power) if power >= FINE => u64::from(power - FINE) * (1 << FINE) + (value >> (power - FINE)),
        _ => value,
    }
}

/// The middle of a bucket.
fn middle(bucket: u64) -> u64 {
    let power = (bucket >> FINE).saturating_sub(1);
    let first = (bucket - power * (1 << FINE)) << power;
    first + (1 << power) / 2
}

impl Histogram {
    pub(crate) fn new(arena: &mut Arena) -> Histogram {
        Histogram { counts: arena.take(BUCKETS * 4, 4), total: 0 }
    }

    /// Counts something that took that many ticks of the TSC.
    pub(crate) fn add(&mut self, ticks: u64) {
        let at = bucket(ticks) * 4;
        self.counts.write32(at, self.counts.read32(at).saturating_add(1));
        self.total += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The nanoseconds that this share of them, in percent, took at most; 0 of nothing.
    pub(crate) fn nanos(&self, percent: u64, clock: Clock) -> u64 {
        let mut left = (self.total * percent).div_ceil(100);
        for at in 0..BUCKETS {
            let count = u64::from(self.counts.read32(at * 4));
            if count > 0 && count >= left {
                return (u128::from(middle(at)) * 1_000_000 / u128::from(clock.khz)) as u64;
            }
            left -= count;
        }
        0
    }
}
