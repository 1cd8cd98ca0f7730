//! How long a queue's thread looks for work by itself before it sleeps.
//!
//! Who looks finds a request without the driver having to kick, which costs the guest an exit, and without being woken, but uses the
//! processor meanwhile. So it is done where it found something the last times, up to a limit, and less and less often where it was in vain.
//! How long a thread has slept tells little of that: to be woken takes longer than the limit where the processor had gone to sleep as well.

use std::time::{Duration, Instant};

/// Most waits in a row during which nobody looks.
const REST: u32 = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Polling {
    /// How long to look; zero if nobody is to look at all.
    most: Duration,
    /// Waits left during which nobody looks.
    rest: u32,
    /// How many they are after a time in vain: twice as many the next time, a few less each time that something was found. So most times must
    /// find something for it to go on.
    rested: u32,
}

impl Polling {
    pub(super) fn new(most: Duration) -> Self {
        Polling { most, rest: 0, rested: 0 }
    }

    /// There is nothing to do now. Until when to look for something; `None` for not at all.
    pub(super) fn begin(&mut self, now: impl FnOnce() -> Instant) -> Option<Instant> {
        if self.most.is_zero() {
            return None;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        Some(now() + self.most)
    }

    /// Something was found by looking.
    pub(super) fn found(&mut self) {
        self.rested = self.rested.saturating_sub(1 + self.rested / 8);
    }

    /// Nothing was.
    pub(super) fn in_vain(&mut self) {
        self.rested = (2 * self.rested).clamp(1, REST);
        self.rest = self.rested;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    /// Waits once, where something comes after this many microseconds; how long was looked, and whether that found it.
    fn wait(polling: &mut Polling, micros: u64) -> (Duration, bool) {
        let start = Instant::now();
        let comes = start + Duration::from_micros(micros);
        match polling.begin(|| start) {
            Some(until) if comes <= until => {
                polling.found();
                (comes - start, true)
            }
            Some(until) => {
                polling.in_vain();
                (until - start, false)
            }
            None => (Duration::ZERO, false),
        }
    }

    #[test]
    fn work_that_comes_soon_is_found_by_looking() {
        let mut polling = Polling::new(MOST);
        assert!((0..10).all(|_| wait(&mut polling, 30).1));
        // A pause costs one chance.
        assert_eq!(wait(&mut polling, 10_000), (MOST, false));
        let tries: Vec<bool> = (0..10).map(|_| wait(&mut polling, 30).1).collect();
        assert_eq!(tries, [[false; 1].as_slice(), &[true; 9]].concat());
        // After a time in which nothing came soon it takes a while.
        (0..1000).for_each(|_| {
            wait(&mut polling, 500);
        });
        let found = |waits: u32, polling: &mut Polling| (0..waits).filter(|_| wait(polling, 30).1).count();
        assert!(found(16 * REST, &mut polling) > 64);
        assert_eq!(found(100, &mut polling), 100);
    }

    #[test]
    fn work_that_comes_soon_half_of_the_times_is_mostly_waited_for() {
        let mut polling = Polling::new(MOST);
        let (mut looked, mut passed) = (Duration::ZERO, Duration::ZERO);
        for n in 0..10_000_u64 {
            // Neither by turns nor in any order that matters.
            let micros = if n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0 { 30 } else { 90 };
            looked += wait(&mut polling, micros).0;
            passed += Duration::from_micros(micros);
        }
        assert!(looked < passed / 10, "{looked:?} of {passed:?}");
    }

    #[test]
    fn looking_in_vain_costs_little() {
        for micros in [60, 100, 150, 199, 500, 1_000_000] {
            let mut polling = Polling::new(MOST);
            let looked: Duration = (0..1000).map(|_| wait(&mut polling, micros).0).sum();
            let share = looked.as_secs_f64() / Duration::from_micros(1000 * micros).as_secs_f64();
            assert!(share < 0.03, "{share} of the time, with something every {micros} us");
        }
    }

    #[test]
    fn with_a_limit_of_nothing_nobody_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        for _ in 0..100 {
            assert_eq!(wait(&mut polling, 0), (Duration::ZERO, false));
        }
    }
}
