//! Time from the TSC: how fast it runs, deadlines, stopwatches.

use core::arch::x86_64::{_mm_lfence, _rdtsc};

use crate::trap;

/// The TSC now.
pub(crate) fn ticks() -> u64 {
    // SAFETY: SSE2 and the TSC are part of x86-64; CR4.TSD is clear.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// A clock whose rate is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// TSC ticks per millisecond.
    pub(crate) khz: u64,
    /// Where the rate comes from.
    pub(crate) source: &'static str,
}

impl Clock {
    /// Asks CPUID: the hypervisor's timing leaf, then the CPU's. Without either a slow guess, good for time-outs only.
    pub(crate) fn find() -> Clock {
        let hypervisor = trap::cpuid(1, 0)[2] & 1 << 31 != 0;
        if hypervisor && trap::cpuid(0x4000_0000, 0)[0] >= 0x4000_0010 {
            let khz = u64::from(trap::cpuid(0x4000_0010, 0)[0]);
            if khz != 0 {
                return Clock { khz, source: "leaf 0x40000010" };
            }
        }
        if trap::cpuid(0, 0)[0] >= 0x15 {
            let [denominator, numerator, crystal, _] = trap::cpuid(0x15, 0);
            if denominator != 0 && numerator != 0 && crystal != 0 {
                let khz = u64::from(crystal) * u64::from(numerator) / u64::from(denominator) / 1000;
                return Clock { khz, source: "leaf 0x15" };
            }
        }
        Clock { khz: 4_000_000, source: "a guess" }
    }

    /// Whether the rate is known rather than guessed.
    pub(crate) fn is_known(&self) -> bool {
        self.source != "a guess"
    }

    pub(crate) fn micros_since(&self, start: u64) -> u64 {
        (u128::from(ticks().saturating_sub(start)) * 1000 / u128::from(self.khz)) as u64
    }

    /// Waits until `done` or until `millis` have passed; says whether it was done.
    pub(crate) fn wait(&self, millis: u64, mut done: impl FnMut() -> bool) -> bool {
        let start = ticks();
        let limit = millis * self.khz;
        loop {
            if done() {
                return true;
            }
            if ticks().saturating_sub(start) > limit {
                return false;
            }
            core::hint::spin_loop();
        }
    }

    /// Waits `millis`.
    pub(crate) fn sleep(&self, millis: u64) {
        self.wait(millis, || false);
    }
}
