//! A queue while a device serves it: what is taken from its rings, what is given back, and who is told of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::{DriverLink, Ledger};
use crate::limit::LogLimit;
use crate::ram::RamMap;
use crate::{Ram, guest_warn};

/// A queue that a driver has made ready. It moves into the thread that serves it.
pub struct LiveQueue {
    /// The ring, with EVENT_IDX set as negotiated.
    pub queue: Queue,
    /// Guest memory.
    pub ram: Ram,
    /// Readable when the driver has kicked.
    pub kick: EventFd,
    /// The way back to the driver.
    pub link: Arc<dyn DriverLink>,
    /// The queue's number.
    pub index: u16,
    /// Where it is written down which chains are under way, if it is.
    pub ledger: Option<Box<dyn Ledger>>,
    /// Chains that are marked as used and that the driver does not see yet.
    unseen: u16,
    /// The used ring's index up to which the driver was told, or did not want to be.
    told: u16,
}

/// What is wrong with a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// It cannot be read or written, or its index jumped.
    #[error(transparent)]
    Ring(#[from] virtio_queue::Error),
    /// A chain begins outside of the table.
    #[error("chain {head} of {size}")]
    Head {
        /// Where it begins.
        head: u16,
        /// Descriptors in the table.
        size: u16,
    },
}

/// A chain of descriptors over one state of the memory map.
pub type Chain<'a> = DescriptorChain<&'a RamMap>;

/// Set by a driver that polls for used buffers (virtio 1.3 §2.7.6); of no meaning with EVENT_IDX.
const AVAIL_F_NO_INTERRUPT: u16 = 1;

static BROKEN: LogLimit = LogLimit::new();

/// A place in a ring.
fn address(ring: u64, offset: u64) -> Result<GuestAddress, RingError> {
    Ok(GuestAddress(ring).checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow)?)
}

impl LiveQueue {
    /// A queue without a ledger, from the state that `queue` is in.
    pub fn new(queue: Queue, ram: Ram, kick: EventFd, link: Arc<dyn DriverLink>, index: u16) -> Self {
        let told = queue.next_used();
        LiveQueue { queue, ram, kick, link, index, ledger: None, unseen: 0, told }
    }

    /// Takes the next available chain; `None` when there is none, or when the rings are broken, which is reported to the driver.
    pub fn pop<'a>(&mut self, map: &'a RamMap) -> Option<Chain<'a>> {
        match self.take(map) {
            Ok(next) => next,
            Err(e) => {
                self.broken(e);
                None
            }
        }
    }

    /// Takes the next available chain, if there is one.
    ///
    /// # Errors
    /// The ring is broken; whoever took from it decides what becomes of the queue.
    pub fn take<'a>(&mut self, map: &'a RamMap) -> Result<Option<Chain<'a>>, RingError> {
        let next = self.queue.iter(map)?.next();
        if let Some(chain) = &next {
            let (head, size) = (chain.head_index(), self.queue.size());
            // It could not even be given back.
            if head >= size {
                return Err(RingError::Head { head, size });
            }
            if let Some(ledger) = &mut self.ledger {
                ledger.taken(head);
            }
        }
        Ok(next)
    }

    /// Marks a chain as used, with the number of bytes written to it.
    pub fn push(&mut self, map: &RamMap, head: u16, written: u32) {
        if let Err(e) = self.give_back(map, head, written) {
            self.broken(e);
        }
    }

    /// Marks a chain as used, as [`LiveQueue::push`] does.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn give_back(&mut self, map: &RamMap, head: u16, written: u32) -> Result<(), RingError> {
        if let Some(ledger) = &mut self.ledger {
            ledger.giving_back(head);
        }
        self.mark(map, head, written)?;
        self.publish(map)?;
        if let Some(ledger) = &mut self.ledger {
            ledger.given_back(head, self.queue.next_used());
        }
        Ok(())
    }

    /// Marks a chain as used, as [`LiveQueue::push`] does, but the driver does not see it before the next [`LiveQueue::show`],
    /// [`LiveQueue::push`] or [`LiveQueue::signal`]: for chains that belong together, and because a driver that looks at the index all the
    /// time takes the line of memory away from who writes it.
    ///
    /// A ledger knows of one at a time: with one the driver sees it at once.
    pub fn put(&mut self, map: &RamMap, head: u16, written: u32) {
        let put = match self.ledger {
            Some(_) => self.give_back(map, head, written),
            None => self.mark(map, head, written),
        };
        if let Err(e) = put {
            self.broken(e);
        }
    }

    /// Has the driver see what was [put](LiveQueue::put), all of it at once.
    pub fn show(&mut self, map: &RamMap) {
        if let Err(e) = self.publish(map) {
            self.broken(e);
        }
    }

    /// How many chains were put that the driver does not see.
    pub fn unseen(&self) -> u16 {
        self.unseen
    }

    /// Writes an element of the used ring (virtio 1.3 §2.7.8).
    fn mark(&mut self, map: &RamMap, head: u16, written: u32) -> Result<(), RingError> {
        let size = self.queue.size();
        if head >= size {
            return Err(RingError::Head { head, size });
        }
        // A driver that offers a chain again and again may have more used than there are.
        if self.unseen == size {
            self.publish(map)?;
        }
        let place = self.queue.next_used().wrapping_add(self.unseen) % size;
        let element = u64::from(head) | u64::from(written) << 32;
        let at = address(self.queue.used_ring(), 4 + 8 * u64::from(place))?;
        map.write_obj(element.to_le(), at).map_err(virtio_queue::Error::GuestMemory)?;
        self.unseen += 1;
        Ok(())
    }

    /// Moves the used ring's index past what was marked.
    fn publish(&mut self, map: &RamMap) -> Result<(), RingError> {
        if self.unseen == 0 {
            return Ok(());
        }
        let index = self.queue.next_used().wrapping_add(std::mem::take(&mut self.unseen));
        self.queue.set_next_used(index);
        let at = address(self.queue.used_ring(), 2)?;
        Ok(map.store(index.to_le(), at, Ordering::Release).map_err(virtio_queue::Error::GuestMemory)?)
    }

    /// Interrupts if the driver asked to be told of what was marked as used; once a batch.
    pub fn signal(&mut self, map: &RamMap) {
        match self.wants_interrupt(map) {
            Ok(true) => self.link.queue_used(self.index),
            Ok(false) => {}
            Err(e) => self.broken(e),
        }
    }

    /// Whether the driver is to be told of what was marked as used since this was asked last (virtio 1.3 §2.7.7).
    fn wants_interrupt(&mut self, map: &RamMap) -> Result<bool, RingError> {
        self.publish(map)?;
        // What the driver wants is read after it can see what it is to be told of.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        let read = |offset| {
            let at = address(ring, offset)?;
            let value = map.load(at, Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
            Ok::<_, RingError>(u16::from_le(value))
        };
        if !self.queue.event_idx_enabled() {
            return Ok(read(0)? & AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = read(4 + 2 * u64::from(self.queue.size()))?;
        let now = self.queue.next_used();
        let before = std::mem::replace(&mut self.told, now);
        // The index has gone past what was asked for.
        Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
    }

    fn broken(&self, why: impl fmt::Display) {
        guest_warn!(BROKEN, "queue {}: {why}", self.index);
        self.link.needs_reset();
    }

    /// Asks the driver not to kick while the queue is being served.
    pub fn quiet<M: GuestMemory>(&mut self, map: &M) {
        if let Err(e) = self.queue.disable_notification(map) {
            log::debug!("queue {}: {e}", self.index);
        }
    }

    /// Asks the driver to kick again; `true` if something became available meanwhile and the queue must be served once more.
    pub fn listen<M: GuestMemory>(&mut self, map: &M) -> bool {
        self.queue.enable_notification(map).unwrap_or(false)
    }

    /// The state to give back from [`Virtio::stop_queue`].
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }
}

#[cfg(test)]
mod tests;
