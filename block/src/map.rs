//! Where the bytes of a disk are, for formats that do not keep them in order.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use crate::storage::Storage;

/// See [`Map::most_zeroed`]: a second or less where zeros have to be written, of which the kernel takes note in memory.
pub(crate) const MOST_ZEROED: u64 = 1 << 30;

/// Where a range of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a file, from this position on.
    File {
        /// 0 is the image's own; then come those that it builds upon, as in [`Map::below`].
        file: u32,
        /// The position.
        at: u64,
    },
    /// Nowhere: it reads as zeros.
    Zeros,
    /// Compressed: [`Map::read`] knows.
    Elsewhere,
}

/// When a write began, to be told when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(pub(crate) u8);

/// The layout of an image. All engines of the image share it; it may wait for the disk, but never for another caller's I/O to
/// guest memory.
///
/// Ranges are in bytes, within the disk, and of whole sectors.
pub(crate) trait Map: Debug + Send + Sync {
    /// The files that the image builds upon.
    fn below(&self) -> Vec<Arc<Storage>> {
        Vec::new()
    }

    /// Where the bytes from `offset` on are, and for how many of `length` (at least 1) that is so.
    ///
    /// # Errors
    /// The image is corrupt there, or cannot be read.
    fn find(&self, offset: u64, length: u64) -> io::Result<(Place, u64)>;

    /// Makes a place in the file for bytes that are about to be written, and says for how many of `length` that is one run. What was
    /// at the rest of a block of the format stays what it was. The place is nobody else's until [`Map::written`] is called.
    ///
    /// # Errors
    /// As for [`Map::find`], or there is no room.
    fn make_place(&self, offset: u64, length: u64) -> io::Result<(u64, u64, Generation)>;

    /// Reads bytes that are [`Place::Elsewhere`].
    ///
    /// # Errors
    /// As for [`Map::find`].
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Most bytes that one [`Map::zero`] should be for: it changes what is known of each block of the format, or writes zeros, and whoever
    /// asked waits, as does everybody else who needs the map.
    fn most_zeroed(&self) -> u64 {
        MOST_ZEROED
    }

    /// Has a range read as zeros; its space is given back if `may_free`, as far as that can be.
    ///
    /// # Errors
    /// As for [`Map::make_place`].
    fn zero(&self, offset: u64, length: u64, may_free: bool) -> io::Result<()>;

    /// Writes what there is to be known of the writes reported before, so that making the file durable makes them durable.
    ///
    /// # Errors
    /// What the kernel said.
    fn flush(&self) -> io::Result<()>;

    /// A write to a place from [`Map::make_place`] has ended.
    fn written(&self, generation: Generation);

    /// Makes the disk larger.
    ///
    /// # Errors
    /// Why that cannot be; the disk is as before.
    fn grow(&self, size: u64) -> io::Result<()>;
}
