//! A split virtqueue from the driver's side (virtio 1.3, 2.7). Also the tools to build a bad one.

use crate::arena::Arena;
use crate::io::{self, Region};

pub(crate) const D_NEXT: u16 = 1;
pub(crate) const D_WRITE: u16 = 2;
pub(crate) const D_INDIRECT: u16 = 4;
/// Byte size of a descriptor.
pub(crate) const DESCRIPTOR: u64 = 16;

const LARGEST: usize = 1024;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) len: u32,
    /// Whether the device writes it.
    pub(crate) writable: bool,
}

impl Buffer {
    pub(crate) fn readable(region: Region) -> Buffer {
        Buffer { address: region.base(), len: region.len() as u32, writable: false }
    }

    pub(crate) fn writable(region: Region) -> Buffer {
        Buffer { address: region.base(), len: region.len() as u32, writable: true }
    }
}

/// The three areas, and what the driver knows about them.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) descriptors: Region,
    pub(crate) available: Region,
    pub(crate) used: Region,
    doorbell: Region,
    event_idx: bool,
    free: [u16; LARGEST],
    free_count: usize,
    next_available: u16,
    kicked: u16,
    next_used: u16,
}

impl Queue {
    pub(crate) fn new(arena: &mut Arena, index: u16, size: u16, doorbell: Region, features: u64) -> Queue {
        let entries = u64::from(size);
        let mut free = [0; LARGEST];
        for (i, slot) in free.iter_mut().enumerate() {
            *slot = (usize::from(size) - 1).saturating_sub(i) as u16;
        }
        Queue {
            index,
            size,
            descriptors: arena.take(entries * DESCRIPTOR, 16),
            available: arena.take(6 + entries * 2, 2),
            used: arena.take(6 + entries * 8, 4),
            doorbell,
            event_idx: features & super::F_EVENT_IDX != 0,
            free,
            free_count: usize::from(size).min(LARGEST),
            next_available: 0,
            kicked: 0,
            next_used: 0,
        }
    }

    /// Writes descriptor `index` of the table in `table`.
    pub(crate) fn write_descriptor(table: Region, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let at = index * DESCRIPTOR;
        table.write64(at, address);
        table.write32(at + 8, len);
        table.write16(at + 12, flags);
        table.write16(at + 14, next);
    }

    /// Chains `buffers` in the table and makes them available. `None` if there are too few free descriptors.
    pub(crate) fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || buffers.len() > self.free_count {
            return None;
        }
        let mut next = 0;
        for (i, buffer) in buffers.iter().enumerate().rev() {
            self.free_count -= 1;
            let slot = self.free[self.free_count];
            let more = if i + 1 < buffers.len() { D_NEXT } else { 0 };
            let write = if buffer.writable { D_WRITE } else { 0 };
            Queue::write_descriptor(
                self.descriptors,
                u64::from(slot),
                buffer.address,
                buffer.len,
                more | write,
                next,
            );
            next = slot;
        }
        self.publish(next);
        Some(next)
    }

    /// The same through an indirect table at `table`.
    pub(crate) fn add_indirect(&mut self, table: Region, buffers: &[Buffer]) -> Option<u16> {
        if self.free_count == 0 {
            return None;
        }
        for (i, buffer) in buffers.iter().enumerate() {
            let more = if i + 1 < buffers.len() { D_NEXT } else { 0 };
            let write = if buffer.writable { D_WRITE } else { 0 };
            Queue::write_descriptor(table, i as u64, buffer.address, buffer.len, more | write, i as u16 + 1);
        }
        self.free_count -= 1;
        let slot = self.free[self.free_count];
        let len = buffers.len() as u32 * DESCRIPTOR as u32;
        Queue::write_descriptor(self.descriptors, u64::from(slot), table.base(), len, D_INDIRECT, 0);
        self.publish(slot);
        Some(slot)
    }

    /// Puts `head` into the available ring, whatever it is.
    pub(crate) fn publish(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.available.write16(4 + slot * 2, head);
        self.next_available = self.next_available.wrapping_add(1);
        io::fence();
        self.available.write16(2, self.next_available);
    }

    /// Rings the doorbell, unless the device asked not to be told.
    pub(crate) fn kick(&mut self) {
        io::fence();
        let wanted = if self.event_idx {
            let event = self.used.read16(4 + u64::from(self.size) * 8);
            // Has the index passed `event` since the last time? (2.7.10)
            self.next_available.wrapping_sub(event).wrapping_sub(1)
                < self.next_available.wrapping_sub(self.kicked)
        } else {
            self.used.read16(0) & 1 == 0
        };
        self.kicked = self.next_available;
        if wanted {
            self.ring();
        }
    }

    /// Rings the doorbell.
    pub(crate) fn ring(&self) {
        self.doorbell.write16(0, self.index);
    }

    /// Moves the doorbell to where the BAR went.
    ///
    /// # Safety
    /// There must be no RAM.
    pub(crate) unsafe fn follow(&mut self, from: u64, to: u64) {
        // SAFETY: by this function's contract.
        self.doorbell = unsafe { Region::new(self.doorbell.base() - from + to, self.doorbell.len()) };
    }

    /// Asks for an interrupt at the next completion (`on`), or for none.
    pub(crate) fn want_interrupt(&self, on: bool) {
        if self.event_idx {
            let event = if on { self.next_used } else { self.next_used.wrapping_sub(1) };
            self.available.write16(4 + u64::from(self.size) * 2, event);
        } else {
            self.available.write16(0, u16::from(!on));
        }
        io::fence();
    }

    /// Whether a completion waits.
    pub(crate) fn has_used(&self) -> bool {
        self.used.read16(2) != self.next_used
    }

    /// The next completion without giving its descriptors back: head and length written.
    pub(crate) fn pop_raw(&mut self) -> Option<(u32, u32)> {
        if !self.has_used() {
            return None;
        }
        io::fence();
        let at = 4 + u64::from(self.next_used % self.size) * 8;
        self.next_used = self.next_used.wrapping_add(1);
        Some((self.used.read32(at), self.used.read32(at + 4)))
    }

    /// The next completion: head and length written. Its descriptors are free again.
    pub(crate) fn pop(&mut self) -> Option<(u16, u32)> {
        let (head, len) = self.pop_raw()?;
        assert!(head < u32::from(self.size), "used head {head} of a queue of {}", self.size);
        self.release(head as u16);
        Some((head as u16, len))
    }

    /// Frees the descriptors of a completion that [`pop_raw`](Queue::pop_raw) told of.
    pub(crate) fn release(&mut self, head: u16) {
        let mut slot = head;
        loop {
            assert!(
                self.free_count < usize::from(self.size),
                "the device completed {head}, which it does not have"
            );
            self.free[self.free_count] = slot;
            self.free_count += 1;
            let at = u64::from(slot) * DESCRIPTOR;
            if self.descriptors.read16(at + 12) & D_NEXT == 0 {
                return;
            }
            slot = self.descriptors.read16(at + 14);
        }
    }
}
