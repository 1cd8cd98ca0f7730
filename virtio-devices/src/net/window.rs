//! Receive buffers that were taken from the ring and hold no frame yet, in their order. Those that are left at the end of a round go back
//! to the ring, so that a queue that is stopped owes the driver nothing.

use std::collections::VecDeque;

use device::LiveQueue;
use device::ram::RamMap;
use virtio_queue::{QueueOwnedT, QueueT};

use crate::buffers::{BadChain, Direction, Gathered, MAX_PIECES, Pieces, next_chain};

/// Most buffers of no use that are given back at once: a driver on another processor may offer them faster than that.
const MOST_BAD: usize = 64;

/// A buffer.
#[derive(Debug)]
struct Taken {
    head: u16,
    pieces: usize,
    length: usize,
}

/// What a window is to hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Bytes of all buffers.
    pub(super) bytes: usize,
    /// Bytes that each must have.
    pub(super) least: usize,
    /// Buffers to take at once, where there are as many: the driver offers others in the same lines of memory, and a look at them after it
    /// did has to fetch them anew.
    pub(super) ahead: usize,
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
    /// Not at all: what the driver has is of no use, and there may be more of it. Others have their turn first.
    Tired,
}

/// Why a buffer is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadBuffer {
    #[error("a receive buffer of {0} bytes")]
    Short(usize),
    #[error("receive buffer: {0}")]
    Chain(#[from] BadChain),
}

/// Room for the buffers of a round, kept so that none is allocated for each.
#[derive(Debug)]
pub(super) struct Room {
    pieces: Pieces,
    buffers: VecDeque<Taken>,
}

impl Room {
    pub(super) fn new() -> Self {
        Room { pieces: Pieces::new(), buffers: VecDeque::new() }
    }

    /// An empty window for a round in which `map` is held.
    pub(super) fn open<'a>(&'a mut self, map: &'a RamMap) -> Window<'a> {
        self.pieces.truncate(0);
        self.buffers.clear();
        Window { pieces: &mut self.pieces, buffers: &mut self.buffers, map, length: 0 }
    }
}

/// See the module.
pub(super) struct Window<'a> {
    /// All of this map.
    pieces: &'a mut Pieces,
    buffers: &'a mut VecDeque<Taken>,
    map: &'a RamMap,
    length: usize,
}

impl Window<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Takes buffers of at least `least` bytes until there are `wanted` bytes, and if any had to be taken, more of those that are there, up to
    /// `ahead` buffers. One that is of no use is given back at once, and told of to `bad`, if it comes first; else it is left where it is,
    /// and there cannot be more for now.
    pub(super) fn fill(
        &mut self,
        queue: &mut LiveQueue,
        Wanted { bytes, least, ahead }: Wanted,
        mut bad: impl FnMut(BadBuffer),
    ) -> Filled {
        let ahead = if self.length < bytes { ahead } else { 0 };
        let mut useless = 0;
        loop {
            let enough = self.length >= bytes;
            let end = |otherwise| if enough { Filled::Enough } else { otherwise };
            if enough && self.buffers.len() >= ahead {
                return Filled::Enough;
            }
            if self.buffers.len() >= usize::from(queue.queue.size()) || self.pieces.count() >= MAX_PIECES {
                return end(Filled::Full);
            }
            let map = self.map;
            // The driver is not asked to kick before there is need of more.
            let chain = if enough { queue.pop(map) } else { next_chain(queue, map) };
            let Some(chain) = chain else { return end(Filled::Dry) };
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
                return end(Filled::Full);
            }
            bad(problem);
            queue.push(map, head, 0);
            useless += 1;
            if useless == MOST_BAD {
                return Filled::Tired;
            }
        }
    }

    /// All of it, as one buffer.
    pub(super) fn all(&mut self) -> Gathered<'_> {
        // SAFETY: all pieces were appended by `fill`, from the map that is held here.
        unsafe { self.pieces.all(self.map, self.length) }
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

    /// Gives the first `count` buffers to the driver, with `length` bytes in them. It sees all of them at once, and later:
    /// [`LiveQueue::put`].
    pub(super) fn hand_over(&mut self, queue: &mut LiveQueue, count: usize, length: usize) {
        let (mut left, mut pieces) = (length, 0);
        for buffer in self.buffers.drain(..count) {
            let written = left.min(buffer.length);
            left -= written;
            self.length -= buffer.length;
            pieces += buffer.pieces;
            // At most what one frame has.
            queue.put(self.map, buffer.head, written as u32);
        }
        self.pieces.forget(pieces);
    }

    /// Gives all back to the ring, as if they had not been taken.
    pub(super) fn give_back(self, queue: &mut LiveQueue) {
        for _ in self.buffers.drain(..) {
            queue.queue.go_to_previous_position();
        }
    }
}
