//! Where input goes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A device that can be typed at. Called from the thread that serves the terminal; calls return at once.
pub trait Input: Send + Sync {
    /// Bytes that the device takes now. At 0 the terminal is left alone until [`Terminal::resume`](crate::Terminal::resume).
    fn room(&self) -> usize;

    /// Takes input, at most [`Input::room`] bytes.
    fn put(&self, bytes: &[u8]);

    /// The terminal's size has changed.
    fn resized(&self) {}
}

/// A bounded queue between a terminal and a device's own thread.
pub struct Inbox {
    capacity: usize,
    bytes: Mutex<VecDeque<u8>>,
    event: EventFd,
}

impl Inbox {
    /// A queue of at most `capacity` bytes.
    ///
    /// # Errors
    /// No eventfd could be had.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Inbox { capacity, bytes: Mutex::new(VecDeque::with_capacity(capacity)), event })
    }

    /// Readable after bytes came in; read it before taking them.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes up to `buffer.len()` bytes and tells how many. Whoever takes some calls
    /// [`Terminal::resume`](crate::Terminal::resume) afterwards.
    pub fn take(&self, buffer: &mut [u8]) -> usize {
        let mut bytes = self.lock();
        let count = buffer.len().min(bytes.len());
        for (slot, byte) in buffer.iter_mut().zip(bytes.drain(..count)) {
            *slot = byte;
        }
        count
    }

    /// A copy of what is there.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().iter().copied().collect()
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Forgets what is there.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Input for Inbox {
    fn room(&self) -> usize {
        self.capacity - self.lock().len()
    }

    fn put(&self, bytes: &[u8]) {
        let mut queue = self.lock();
        let room = self.capacity - queue.len();
        queue.extend(&bytes[..bytes.len().min(room)]);
        drop(queue);
        if let Err(e) = self.event.write(1) {
            log::error!("cannot signal console input: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_holds_no_more_than_its_capacity_and_signals() {
        let inbox = Inbox::new(4).unwrap();
        assert!(inbox.event().read().is_err());
        inbox.put(b"abcdef");
        assert_eq!((inbox.room(), inbox.event().read().unwrap()), (0, 1));
        let mut buffer = [0; 3];
        assert_eq!(inbox.take(&mut buffer), 3);
        assert_eq!((&buffer, inbox.room()), (b"abc", 3));
        assert_eq!(inbox.take(&mut buffer), 1);
        assert!(inbox.is_empty());
    }
}
