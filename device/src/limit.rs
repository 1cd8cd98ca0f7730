//! Logging that a guest cannot flood.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Records let through in any one second.
pub const BURST: u64 = 5;

/// Lets a few records a second through and counts the others.
#[derive(Debug, Default)]
pub struct LogLimit {
    second: AtomicU64,
    within: AtomicU64,
    dropped: AtomicU64,
}

impl LogLimit {
    /// A limit that has let nothing through yet.
    pub const fn new() -> Self {
        LogLimit { second: AtomicU64::new(0), within: AtomicU64::new(0), dropped: AtomicU64::new(0) }
    }

    /// Whether one more record may be written; `Some(n)` if so, with the number dropped since the last that was.
    pub fn pass(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if self.second.swap(now, Ordering::Relaxed) != now {
            self.within.store(0, Ordering::Relaxed);
        }
        if self.within.fetch_add(1, Ordering::Relaxed) < BURST {
            Some(self.dropped.swap(0, Ordering::Relaxed))
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

/// Warns about something the guest did, at a limited rate; the first argument is the [`LogLimit`].
#[macro_export]
macro_rules! guest_warn {
    ($limit:expr, $($arg:tt)+) => {
        if let Some(dropped) = $limit.pass() {
            if dropped == 0 {
                log::warn!($($arg)+);
            } else {
                log::warn!("{} ({dropped} like it not shown)", format_args!($($arg)+));
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_few_records_a_second() {
        let limit = LogLimit::new();
        let passed = (0..10_000).filter(|_| limit.pass().is_some()).count() as u64;
        // The loop may straddle the end of a second.
        assert!((BURST..=2 * BURST).contains(&passed), "{passed}");
    }
}
