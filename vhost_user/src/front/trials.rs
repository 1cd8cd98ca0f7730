//! How long to wait before a program that ended is started again: longer each time, up to a bound, until one has lived for a while.

use std::time::{Duration, Instant};

/// The first time.
const FIRST: Duration = Duration::from_millis(100);

/// The longest time.
const LONGEST: Duration = Duration::from_secs(10);

/// What lived so long is worth as much as the first.
const LIVED: Duration = Duration::from_secs(30);

/// The trials so far.
#[derive(Debug, Default)]
pub(super) struct Trials {
    last: Option<(Instant, Duration)>,
}

impl Trials {
    /// How long to wait with the next.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let wait = match self.last {
            Some((at, wait)) if now.saturating_duration_since(at) < LIVED + wait => (2 * wait).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some((now, wait));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_dies_at_once_is_started_less_and_less_often() {
        let (mut trials, mut now) = (Trials::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..9 {
            waits.push(trials.next(now));
            now += waits[waits.len() - 1];
        }
        assert_eq!(waits[..3], [100, 200, 400].map(Duration::from_millis));
        assert_eq!(waits[7..], [LONGEST; 2]);
        assert_eq!(trials.next(now + LIVED + LONGEST), FIRST);
    }
}
