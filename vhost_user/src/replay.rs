//! Serving again what a process that died had taken and not given back.
//!
//! Where those chains were in the available ring may have been written over since. So the device is started on a ring that lists just them,
//! in a page of memory of our own, with the driver's descriptors and used ring; and stopped when it has answered all of them.
//! It cannot tell the difference.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use device::ram::RamMap;
use device::{Ledger, LiveQueue, Ram, Virtio};
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::PeerError;
use crate::link::Link;
use crate::memory::Memory;

/// How long it may stand still.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same, when the device has said that it gives up: another ring of it may be meant.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a replay is about.
pub(crate) struct Replay<'a> {
    pub(crate) device: &'a dyn Virtio,
    pub(crate) memory: &'a Memory,
    pub(crate) link: &'a Arc<Link>,
    pub(crate) index: usize,
    /// The driver's ring, as it is going to be served afterwards.
    pub(crate) queue: QueueState,
}

impl Replay<'_> {
    fn failed(&self, what: impl ToString) -> PeerError {
        PeerError::Ring { index: self.index, what: format!("requests under way: {}", what.to_string()) }
    }

    /// Has the chains with these heads served, under the record of their ring.
    ///
    /// # Errors
    /// The device does not start, or does not get on with them.
    pub(crate) fn run(&self, heads: &[u16], ledger: Box<dyn Ledger>) -> Result<(), PeerError> {
        let (map, available) = self.list(heads)?;
        let state = QueueState { avail_ring: available, next_avail: 0, ..self.queue };
        let queue = Queue::try_from(state).map_err(|e| self.failed(e))?;
        let end = state.next_used.wrapping_add(heads.len() as u16);
        let ram = Ram::new(map);
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|e| self.failed(e))?;
        let mut live = LiveQueue::new(queue, ram.clone(), kick, self.link.clone(), self.index as u16);
        live.ledger = Some(ledger);
        self.link.set_whole();
        self.device.start_queue(self.index, live)?;
        let done = self.wait(&ram, state.next_used, end);
        self.device.stop_queue(self.index).ok_or_else(|| self.failed("the device stopped"))?;
        if done { Ok(()) } else { Err(self.failed("the device does not get on with them")) }
    }

    /// Memory with one more region, whose address is returned: an available ring with just these heads.
    fn list(&self, heads: &[u16]) -> Result<(RamMap, u64), PeerError> {
        // Flags, index, entries, event.
        let length = 6 + 2 * u64::from(self.queue.size);
        let place = self.memory.gap(length).ok_or_else(|| self.failed("there is no address left"))?;
        let page = MmapRegion::new(length as usize).map_err(|e| self.failed(e))?;
        let page = GuestRegionMmap::new(page, GuestAddress(place))
            .ok_or_else(|| self.failed("there is no address left"))?;
        let map = self.memory.with(Some(Arc::new(page)));
        let put = |offset: u64, value: u16| {
            map.write_obj(value.to_le(), GuestAddress(place + offset)).map_err(|e| self.failed(e))
        };
        for (entry, head) in heads.iter().enumerate() {
            put(4 + 2 * entry as u64, *head)?;
        }
        // There are at most as many as the ring has descriptors.
        put(2, heads.len() as u16)?;
        Ok((map, place))
    }

    /// Waits until the used ring's index has gone from `from` to `end`; `false` if it stands still.
    fn wait(&self, ram: &Ram, from: u16, end: u16) -> bool {
        let (mut last, mut since) = (from, Instant::now());
        while last != end {
            let Ok(now) = used_index(self.queue.used_ring, ram) else { return false };
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > if self.link.is_broken() { LAST_WORDS } else { PATIENCE } {
                return false;
            } else {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        true
    }
}

/// The index of a used ring, as the driver sees it.
pub(crate) fn used_index(ring: u64, ram: &Ram) -> Result<u16, vm_memory::GuestMemoryError> {
    // A ring is a few hundred kilobytes at most, and lies in memory.
    ram.map().load(GuestAddress(ring.wrapping_add(2)), Ordering::Acquire).map(u16::from_le)
}
