//! How long a queue's thread looks for work by itself before it sleeps.
//!
//! Who looks finds a request without the driver having to kick, which costs the guest an exit, and without being woken, but uses the
//! processor meanwhile. So it is done only where work came soon the last times, for as long as it takes up to a limit, and is left
//! alone for a while where it was in vain. A queue that is idle is never looked at.

use std::time::{Duration, Instant};

/// The time that is tried first.
const LEAST: Duration = Duration::from_micros(4);
/// A wait that is longer than so many times the limit could not have been spared.
const NEAR: u32 = 4;
/// Waits during which nobody looks, after looking for as long as the limit allows was in vain.
const REST: u32 = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Polling {
    /// The limit; zero if nobody is to look at all.
    most: Duration,
    /// How long to look the next time.
    time: Duration,
    /// Waits left during which nobody looks.
    rest: u32,
    /// When there was nothing more to do.
    since: Option<Instant>,
}

impl Polling {
    pub(super) fn new(most: Duration) -> Self {
        Polling { most, time: Duration::ZERO, rest: 0, since: None }
    }

    /// There is nothing to do now. Until when to look for something; `None` for not at all.
    pub(super) fn begin(&mut self, now: impl FnOnce() -> Instant) -> Option<Instant> {
        if self.most.is_zero() {
            return None;
        }
        let since = now();
        self.since = Some(since);
        (!self.time.is_zero()).then(|| since + self.time)
    }

    /// Something was found by looking.
    pub(super) fn found(&mut self) {
        self.since = None;
    }

    /// There is something to do after the thread slept.
    pub(super) fn woken(&mut self, now: impl FnOnce() -> Instant) {
        let Some(since) = self.since.take() else { return };
        if now().saturating_duration_since(since) > self.most * NEAR {
            self.time = Duration::ZERO;
        } else if self.rest > 0 {
            self.rest -= 1;
        } else if self.time < self.most {
            self.time = (self.time * 2).clamp(LEAST.min(self.most), self.most);
        } else {
            (self.time, self.rest) = (Duration::ZERO, REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    /// Waits once, where something comes after this many microseconds; how long was looked, and whether that found it.
    fn wait(polling: &mut Polling, clock: &mut Instant, micros: u64) -> (Duration, bool) {
        let start = *clock;
        let comes = start + Duration::from_micros(micros);
        let until = polling.begin(|| start);
        *clock = comes;
        match until {
            Some(until) if comes <= until => {
                polling.found();
                (comes - start, true)
            }
            other => {
                polling.woken(|| comes);
                (other.map_or(Duration::ZERO, |until| until - start), false)
            }
        }
    }

    #[test]
    fn work_that_comes_soon_is_soon_found_by_looking() {
        let (mut polling, mut clock) = (Polling::new(MOST), Instant::now());
        let tries: Vec<bool> = (0..10).map(|_| wait(&mut polling, &mut clock, 30).1).collect();
        assert_eq!(tries, [[false; 4].as_slice(), &[true; 6]].concat());
        // A pause ends it.
        assert_eq!(wait(&mut polling, &mut clock, 10_000), (MOST.min(Duration::from_micros(32)), false));
        assert_eq!(wait(&mut polling, &mut clock, 30), (Duration::ZERO, false));
    }

    #[test]
    fn looking_in_vain_costs_little() {
        for micros in [60, 100, 150, 199, 500, 1_000_000] {
            let (mut polling, mut clock) = (Polling::new(MOST), Instant::now());
            let begun = clock;
            let looked: Duration = (0..1000).map(|_| wait(&mut polling, &mut clock, micros).0).sum();
            let share = looked.as_secs_f64() / (clock - begun).as_secs_f64();
            assert!(share < 0.03, "{share} of the time, with something every {micros} us");
        }
    }

    #[test]
    fn an_idle_queue_and_a_limit_of_nothing_are_left_alone() {
        let (mut polling, mut clock) = (Polling::new(Duration::ZERO), Instant::now());
        for _ in 0..100 {
            assert_eq!(wait(&mut polling, &mut clock, 1), (Duration::ZERO, false));
        }
        let mut polling = Polling::new(MOST);
        for _ in 0..100 {
            assert_eq!(wait(&mut polling, &mut clock, 1000).0, Duration::ZERO);
        }
    }
}
