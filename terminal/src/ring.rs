//! Output that nobody takes yet.

use std::collections::VecDeque;

/// Bytes kept at most.
pub const CAPACITY: usize = 1 << 20;

/// Memory kept while the ring is empty.
const IDLE: usize = 4096;

/// The last [`CAPACITY`] bytes written.
#[derive(Debug, Default)]
pub(crate) struct Ring(VecDeque<u8>);

impl Ring {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends, and drops the oldest bytes beyond the capacity.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(CAPACITY)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(CAPACITY);
        self.0.drain(..excess);
        self.0.extend(bytes);
    }

    /// The oldest bytes, as far as they are contiguous.
    pub(crate) fn front(&self) -> &[u8] {
        self.0.as_slices().0
    }

    /// Forgets the `count` oldest bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.0.drain(..count);
        if self.0.is_empty() {
            self.0.shrink_to(IDLE);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0 = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_bytes_and_gives_memory_back() {
        let mut ring = Ring::default();
        ring.push(&vec![1; CAPACITY]);
        ring.push(b"xyz");
        ring.push(&[]);
        let mut all = Vec::new();
        while !ring.is_empty() {
            let part = ring.front().to_vec();
            ring.consume(part.len());
            all.extend(part);
        }
        assert_eq!(all.len(), CAPACITY);
        assert!(all.ends_with(b"\x01xyz"));
        assert!(ring.0.capacity() <= IDLE);
        ring.push(&vec![7; 3 * CAPACITY]);
        assert_eq!(ring.0.len(), CAPACITY);
        ring.clear();
        assert!(ring.is_empty());
    }
}
