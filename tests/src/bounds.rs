//! What a VMM may take of the host, whatever its guest does: looked at again and again, by a thread, while things happen.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most private memory of a VMM whose guest has shared memory, in KiB: stacks, heap, rings. It has about 2 MiB with a dozen devices.
pub const MEMORY: u64 = 12 << 10;
/// Most open descriptors, with up to a dozen devices.
pub const DESCRIPTORS: u64 = 250;
/// Most threads, the same.
pub const THREADS: u64 = 32;
/// Lines of the log in a second, in the long run. What a guest can have logged is limited at each place that logs
/// (`device::limit::BURST`, 5 a second); nobody reaches many of them at once.
pub const LINES: u64 = 60;
/// Bytes of a line of the log, on the average.
pub const LINE: u64 = 400;

/// What was most of each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Most {
    /// Private memory, in KiB.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// How long it was looked at, in seconds.
    pub seconds: u64,
}

impl Most {
    /// The larger of each.
    #[must_use]
    pub fn or(self, other: Most) -> Most {
        Most {
            memory: self.memory.max(other.memory),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
            seconds: self.seconds + other.seconds,
        }
    }

    /// Checks that it is no more than may be, and neither is the log.
    ///
    /// # Panics
    /// If it is.
    #[track_caller]
    pub fn is_bounded(&self, log: &str) {
        assert!(self.memory > 0, "nobody has looked");
        assert!(self.memory <= MEMORY, "{} KiB of memory: {self:?}", self.memory);
        assert!(self.descriptors <= DESCRIPTORS, "{} descriptors: {self:?}", self.descriptors);
        assert!(self.threads <= THREADS, "{} threads: {self:?}", self.threads);
        let (lines, bytes) = (log.lines().count() as u64, log.len() as u64);
        let most = LINES * (self.seconds + 2);
        assert!(
            lines <= most && bytes <= most * LINE,
            "{lines} lines of {bytes} bytes in {} s:\n{}",
            self.seconds,
            log.chars().take(8000).collect::<String>()
        );
    }
}

/// Looks at a process.
#[derive(Debug)]
pub struct Watch {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Most>,
}

impl Watch {
    /// Begins to look at this one.
    ///
    /// # Panics
    /// If no thread can be started.
    pub fn begin(process: u32) -> Watch {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let watch = move || {
            let (begun, mut most) = (Instant::now(), Most::default());
            while !ended.load(Ordering::Relaxed) {
                most = most.or(look(process).unwrap_or_default());
                std::thread::sleep(Duration::from_millis(20));
            }
            Most { seconds: begun.elapsed().as_secs(), ..most }
        };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(watch);
        Watch { end, thread: thread.expect("a thread can be started") }
    }

    /// Looks no more.
    pub fn end(self) -> Most {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    }
}

/// What it has now; nothing if it has ended.
fn look(process: u32) -> Option<Most> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?.count() as u64;
    Some(Most { memory: number("RssAnon:")?, threads: number("Threads:")?, descriptors, seconds: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_and_what_is_too_much_is_told() {
        let watch = Watch::begin(std::process::id());
        std::thread::sleep(Duration::from_millis(100));
        let most = watch.end();
        assert!(most.memory > 100 && most.descriptors >= 3 && most.threads >= 2, "{most:?}");
        most.is_bounded("one line");
        let told = |most: Most, log: &str| {
            let log = log.to_owned();
            std::panic::catch_unwind(move || most.is_bounded(&log)).is_err()
        };
        assert!(told(Most { memory: MEMORY + 1, ..most }, ""));
        assert!(told(Most { threads: THREADS + 1, ..most }, ""));
        assert!(told(Most::default(), ""));
        assert!(told(most, &"line\n".repeat(LINES as usize * 3)));
    }
}
