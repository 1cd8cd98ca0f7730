//! A frame in memory of ours: a small one, which is read there and copied at once, one that found too few buffers, or one of the card's own
//! service. It is kept while its queue is stopped, and goes with its driver.

use std::io;

use net_util::{Tap, VNET_HDR_LEN};

use super::wire::MAX_FRAME;
use crate::buffers::Gathered;

/// See the module. It takes no memory before it is needed.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    length: usize,
}

impl Held {
    /// Bytes of the frame; 0 if there is none.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The frame.
    pub(super) fn frame(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Forgets the frame, and says how long it was.
    pub(super) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.length)
    }

    /// Where the end of a frame can go for [`Held::take_back`], while there is none.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.resize(MAX_FRAME, 0);
        &mut self.bytes
    }

    /// Takes the next frame of the tap, while there is none. Each fits.
    ///
    /// # Errors
    /// What the tap answered; `WouldBlock` if it has none.
    pub(super) fn read(&mut self, tap: &Tap) -> io::Result<()> {
        self.length = tap.read(self.room())?;
        Ok(())
    }

    /// Takes a frame that comes with no header of the device's.
    pub(super) fn put(&mut self, frame: &[u8]) {
        self.bytes.clear();
        self.bytes.resize(VNET_HDR_LEN, 0);
        self.bytes.extend_from_slice(frame);
        self.length = self.bytes.len();
    }

    /// Takes a frame of `length` bytes, of which the first are in `buffers` and the others in the room. `false` if there is none of such a
    /// length.
    pub(super) fn take_back(&mut self, buffers: &Gathered<'_>, length: usize) -> bool {
        let first = buffers.length();
        if length > self.bytes.len() || first > length {
            return false;
        }
        self.bytes.copy_within(..length - first, first);
        buffers.read(0, &mut self.bytes[..first]);
        self.length = length;
        true
    }
}
