//! What a front end has said of a ring so far.

use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use crate::PeerError;
use crate::memory::Memory;

/// Where the parts of a ring are, as the front end has them in its own address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) descriptors: u64,
    pub(crate) used: u64,
    pub(crate) available: u64,
}

/// A ring.
#[derive(Default)]
pub(crate) struct Ring {
    /// Descriptors; 0 if not said yet.
    pub(crate) size: u16,
    /// Index of the next available chain.
    pub(crate) base: u16,
    pub(crate) addresses: Option<Addresses>,
    pub(crate) kick: Option<EventFd>,
    pub(crate) enabled: bool,
    /// The device serves it.
    pub(crate) live: bool,
}

/// Flags and index before the entries, and the event behind them (virtio 1.3 §2.7.6, §2.7.8).
const AROUND: u64 = 6;

impl Ring {
    /// Whether it is to be served.
    pub(crate) fn ready(&self) -> bool {
        self.enabled && self.kick.is_some() && !self.live
    }

    /// The queue that the device gets, wholly within memory. `index` is the ring's number, for messages.
    pub(crate) fn queue(
        &self,
        index: usize,
        max_size: u16,
        event_idx: bool,
        memory: &Memory,
    ) -> Result<Queue, PeerError> {
        let failed = |what: String| PeerError::Ring { index, what };
        let addresses = self.addresses.ok_or_else(|| failed("started without addresses".to_owned()))?;
        if self.size == 0 {
            return Err(failed("started without a size".to_owned()));
        }
        let size = u64::from(self.size);
        let place = |what: &str, user: u64, length: u64| {
            let found = memory.guest_address(user, length);
            found.ok_or_else(|| failed(format!("{what} at {user:#x} is not in memory")))
        };
        let state = QueueState {
            max_size,
            next_avail: self.base,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: true,
            desc_table: place("descriptor table", addresses.descriptors, 16 * size)?,
            avail_ring: place("available ring", addresses.available, AROUND + 2 * size)?,
            used_ring: place("used ring", addresses.used, AROUND + 8 * size)?,
        };
        Queue::try_from(state).map_err(|e| failed(e.to_string()))
    }
}
