//! Time from the TSC: how fast it runs, deadlines, stopwatches.

use core::arch::x86_64::{_mm_lfence, _rdtsc};

use crate::acpi::Acpi;
use crate::{io, trap};

/// Milliseconds that something may take which has to come, on a host that has other things to do.
pub(crate) const PATIENCE: u64 = 10_000;

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
    /// The rate as the command line gives it (`probe.khz`), else by CPUID (the hypervisor's timing leaf, then the CPU's), else by
    /// the PM timer. Without any of these a slow guess, good for time-outs only.
    pub(crate) fn find(given: Option<u64>, acpi: Option<&Acpi>) -> Clock {
        if let Some(khz) = given.filter(|khz| *khz != 0) {
            return Clock { khz, source: "the command line" };
        }
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
        match acpi.and_then(Acpi::pm_timer) {
            Some((register, _)) if register.space == 1 => {
                Clock { khz: khz_by_pm_timer(register.address as u16), source: "the PM timer" }
            }
            _ => Clock { khz: 4_000_000, source: "a guess" },
        }
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

/// The TSC's rate, measured for 20 ms against the PM timer's 3.579545 MHz.
fn khz_by_pm_timer(port: u16) -> u64 {
    let (tsc, pm) = (ticks(), io::in32(port));
    loop {
        let passed = u64::from(io::in32(port).wrapping_sub(pm) & 0xff_ffff);
        if passed > 71_590 {
            return (ticks() - tsc) * 3_579_545 / passed / 1000;
        }
    }
}
