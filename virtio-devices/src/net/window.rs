//! Receive buffers that were taken from the ring and hold no frame yet, in their order. Those that are left at the end of a round go back
//! to the ring, so that a queue that is stopped owes the driver nothing.

use std::collections::VecDeque;

use device::LiveQueue;
use device::ram::RamMap;
use virtio_queue::QueueOwnedT;

use crate::buffers::{BadChain, Direction, Gathered, MAX_PIECES, Pieces, next_chain};

/// A buffer.
#[derive(Debug)]
struct Taken {
    head: u16,
    pieces: usize,
    length: usize,
}

/// How far it could be filled.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// As far as was wanted.
    Enough,
    /// The driver has no more at the moment.
    Dry,
    /// There cannot be more.
    Full,
}

/// Why a buffer is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadBuffer {
    #[error("a receive buffer of {0} bytes")]
    Short(usize),
    #[error("receive buffer: {0}")]
    Chain(#[from] BadChain),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Window {
    pieces: Pieces,
    buffers: VecDeque<Taken>,
    length: usize,
}

impl Window {
    pub(super) fn new() -> Self {
        Window { pieces: Pieces::new(), ..Window::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Takes buffers of at least `least` bytes until there are `wanted` bytes. One that is of no use is given back at once, and told of to
    /// `bad`, if it comes first; else it is left where it is, and there cannot be more for now.
    pub(super) fn fill(
        &mut self,
        queue: &mut LiveQueue,
        map: &RamMap,
        (wanted, least): (usize, usize),
        mut bad: impl FnMut(BadBuffer),
    ) -> Filled {
        while self.length < wanted {
            if self.buffers.len() >= usize::from(queue.queue.state().size)
                || self.pieces.count() >= MAX_PIECES
            {
                return Filled::Full;
            }
            let Some(chain) = next_chain(queue, map) else { return Filled::Dry };
            let (head, before) = (chain.head_index(), self.pieces.count());
            let problem = match self.pieces.append(map, chain, Direction::ToDriver) {
                // One more is for what does not fit.
                Ok(_) if self.pieces.count() >= MAX_PIECES => {
                    self.pieces.truncate(before);
                    BadBuffer::Chain(BadChain::TooMany)
                }
                Ok(length) if length >= least => {
                    let pieces = self.pieces.count() - before;
                    self.buffers.push_back(Taken { head, pieces, length });
                    self.length += length;
                    continue;
                }
                Ok(length) => {
                    self.pieces.truncate(before);
                    BadBuffer::Short(length)
                }
                Err(e) => BadBuffer::Chain(e),
            };
            if !self.buffers.is_empty() {
                queue.queue.go_to_previous_position();
                return Filled::Full;
            }
            bad(problem);
            queue.push(map, head, 0);
        }
        Filled::Enough
    }

    /// All of it, as one buffer.
    pub(super) fn all<'a>(&'a mut self, map: &'a RamMap) -> Gathered<'a> {
        self.pieces.all(map, self.length)
    }

    /// How many buffers a frame of `length` bytes needs, at least one.
    pub(super) fn needed(&self, length: usize) -> usize {
        let mut left = length;
        let full = self.buffers.iter().take_while(|buffer| {
            let more = left > buffer.length;
            left = left.saturating_sub(buffer.length);
            more
        });
        (full.count() + 1).min(self.buffers.len())
    }

    /// Gives the first `count` buffers to the driver, with `length` bytes in them.
    pub(super) fn hand_over(&mut self, queue: &mut LiveQueue, map: &RamMap, count: usize, length: usize) {
        let (mut left, mut pieces) = (length, 0);
        for buffer in self.buffers.drain(..count) {
            let written = left.min(buffer.length);
            left -= written;
            self.length -= buffer.length;
            pieces += buffer.pieces;
            // At most what one frame has.
            queue.push(map, buffer.head, written as u32);
        }
        self.pieces.forget(pieces);
    }

    /// Gives all back to the ring, as if they had not been taken.
    pub(super) fn give_back(&mut self, queue: &mut LiveQueue) {
        for _ in self.buffers.drain(..) {
            queue.queue.go_to_previous_position();
        }
        self.pieces.truncate(0);
        self.length = 0;
    }
}
