//! What went through a network device.

use std::sync::atomic::{AtomicU64, Ordering};

use device::Counters;

/// Counts since the device was built. Frames are counted without their header.
#[derive(Debug, Default)]
pub(super) struct Stats {
    rx_bytes: AtomicU64,
    rx_frames: AtomicU64,
    rx_dropped: AtomicU64,
    tx_bytes: AtomicU64,
    tx_frames: AtomicU64,
    tx_dropped: AtomicU64,
}

impl Stats {
    /// A batch reached the driver, or was lost to its buffers.
    pub(super) fn received(&self, frames: u64, bytes: u64, dropped: u64) {
        add(&[(&self.rx_frames, frames), (&self.rx_bytes, bytes), (&self.rx_dropped, dropped)]);
    }

    /// A batch reached the tap, or was refused.
    pub(super) fn sent(&self, frames: u64, bytes: u64, dropped: u64) {
        add(&[(&self.tx_frames, frames), (&self.tx_bytes, bytes), (&self.tx_dropped, dropped)]);
    }

    /// For `vm.counters`.
    pub(super) fn counters(&self) -> Counters {
        let table = [
            ("rx_bytes", &self.rx_bytes),
            ("rx_frames", &self.rx_frames),
            ("rx_dropped", &self.rx_dropped),
            ("tx_bytes", &self.tx_bytes),
            ("tx_frames", &self.tx_frames),
            ("tx_dropped", &self.tx_dropped),
        ];
        table.into_iter().map(|(name, count)| (name, count.load(Ordering::Relaxed))).collect()
    }
}

fn add(counts: &[(&AtomicU64, u64)]) {
    for (count, more) in counts.iter().filter(|(_, more)| *more > 0) {
        count.fetch_add(*more, Ordering::Relaxed);
    }
}
