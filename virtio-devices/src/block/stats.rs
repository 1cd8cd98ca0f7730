//! Counting requests.
//!
//! Each queue has its own counters, written by its thread only; they are put together when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use device::Counters;

/// What is counted of one direction.
#[derive(Debug)]
pub(super) struct Count {
    bytes: AtomicU64,
    operations: AtomicU64,
    /// Sum of the latencies in microseconds.
    latency: AtomicU64,
    shortest: AtomicU64,
    longest: AtomicU64,
}

impl Default for Count {
    fn default() -> Self {
        Count {
            bytes: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            shortest: AtomicU64::new(u64::MAX),
            longest: AtomicU64::new(0),
        }
    }
}

impl Count {
    /// Counts a request that was carried out. Only the thread of the queue calls this, hence no read-modify-write.
    pub(super) fn add(&self, bytes: u64, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let raise = |counter: &AtomicU64, by| counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
        raise(&self.bytes, bytes);
        raise(&self.latency, micros);
        raise(&self.operations, 1);
        self.shortest.store(self.shortest.load(Relaxed).min(micros), Relaxed);
        self.longest.store(self.longest.load(Relaxed).max(micros), Relaxed);
    }
}

/// The counters of one queue.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) read: Count,
    pub(super) write: Count,
}

/// What `vm.counters` says of the queues together.
pub(super) fn counters(queues: &[Stats]) -> Counters {
    let mut all = Counters::new();
    all.extend(summary(
        queues.iter().map(|queue| &queue.read),
        ["read_bytes", "read_ops", "read_latency_min", "read_latency_max", "read_latency_avg"],
    ));
    all.extend(summary(
        queues.iter().map(|queue| &queue.write),
        ["write_bytes", "write_ops", "write_latency_min", "write_latency_max", "write_latency_avg"],
    ));
    all
}

fn summary<'a>(
    counts: impl Iterator<Item = &'a Count> + Clone,
    names: [&'static str; 5],
) -> [(&'static str, u64); 5] {
    let sum = |field: fn(&Count) -> &AtomicU64| {
        counts.clone().fold(0u64, |sum, count| sum.wrapping_add(field(count).load(Relaxed)))
    };
    let operations = sum(|count| &count.operations);
    let shortest = counts.clone().map(|count| count.shortest.load(Relaxed)).min().unwrap_or(u64::MAX);
    let longest = counts.clone().map(|count| count.longest.load(Relaxed)).max().unwrap_or(0);
    // These odd values stand for "none yet" (contract api.md, vm.counters).
    let (longest, average) = match sum(|count| &count.latency).checked_div(operations) {
        Some(average) => (longest, average),
        None => (u64::MAX, u64::MAX / 10_000),
    };
    let [bytes_name, operations_name, min_name, max_name, avg_name] = names;
    [
        (bytes_name, sum(|count| &count.bytes)),
        (operations_name, operations),
        (min_name, shortest),
        (max_name, longest),
        (avg_name, average),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_request_the_contract_wants_odd_values() {
        let none = counters(&[Stats::default(), Stats::default()]);
        assert_eq!(none["read_ops"], 0);
        assert_eq!(none["write_latency_min"], u64::MAX);
        assert_eq!(none["write_latency_max"], u64::MAX);
        assert_eq!(none["write_latency_avg"], 1_844_674_407_370_955);
        assert_eq!(none.len(), 10);
    }

    #[test]
    fn queues_are_put_together() {
        let queues = [Stats::default(), Stats::default()];
        queues[0].read.add(512, Duration::from_micros(10));
        queues[1].read.add(1024, Duration::from_micros(40));
        let all = counters(&queues);
        assert_eq!(all["read_bytes"], 1536);
        assert_eq!(all["read_ops"], 2);
        assert_eq!((all["read_latency_min"], all["read_latency_max"], all["read_latency_avg"]), (10, 40, 25));
        assert_eq!(all["write_ops"], 0);
    }
}
