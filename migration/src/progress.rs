//! How far a long piece of work is, and how to end it early.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::Error;

/// Shared between who works and who watches; share it in an `Arc`. For one piece of work.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
    begun: OnceLock<Instant>,
}

impl Progress {
    /// Work that has not begun.
    pub fn new() -> Self {
        Progress::default()
    }

    /// Bytes dealt with.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes to deal with, as far as known; 0 before the work begins.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes a second since the work began; 0 before.
    pub fn rate(&self) -> u64 {
        let Some(begun) = self.begun.get() else { return 0 };
        let micros = begun.elapsed().as_micros().max(1);
        u64::try_from(u128::from(self.done()) * 1_000_000 / micros).unwrap_or(u64::MAX)
    }

    /// Asks the work to end soon with [`Error::Cancelled`]. It cannot be taken back.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.begun.get_or_init(Instant::now);
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All is done, also where less was found than was expected.
    pub(crate) fn finish(&self) {
        self.total.store(self.done(), Ordering::Relaxed);
    }
}
