//! The buffers of a descriptor chain, for system calls that read from or write to guest memory directly.
//!
//! A chain is believed in nothing: it may be cut short, leave RAM, wrap, mix directions or have any length. Whatever a
//! [`Gathered`] holds is mapped guest memory. What is in it may change at any time.

use std::marker::PhantomData;

use device::LiveQueue;
use device::ram::RamMap;
use device::virtio::Chain;
use vm_memory::{GuestMemory, Permissions};

/// Most pieces of one chain: the kernel takes no more in one call (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// The next available chain. When there is none the driver is asked to kick, and the queue looked at once more, for what
/// it may have offered just before.
pub fn next_chain<'a>(queue: &mut LiveQueue, map: &'a RamMap) -> Option<Chain<'a>> {
    match queue.pop(map) {
        // Once is enough, and on a broken ring, where there seems to be something for ever, no more than that is safe.
        None if queue.listen(map) => queue.pop(map),
        next => next,
    }
}

/// Which way data goes through a chain's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The driver wrote them, the device reads.
    ToDevice,
    /// The device writes them, the driver reads.
    ToDriver,
}

/// Why a chain cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// The chain is empty, loops, or leads to a descriptor that does not exist or cannot be read.
    #[error("the descriptor chain is broken")]
    Broken,
    /// A buffer is for the other direction.
    #[error("a buffer of the chain is for the other direction")]
    Direction,
    /// A buffer is not, or not wholly, in RAM.
    #[error("a buffer of the chain is outside of RAM")]
    OutsideRam,
    /// There are more than [`MAX_PIECES`].
    #[error("the chain has too many buffers")]
    TooMany,
}

/// Room for the pieces of one chain, kept between chains so that none is allocated per request.
#[derive(Debug, Default)]
pub struct Pieces(Vec<libc::iovec>);

// SAFETY: the pointers are only reachable through a `Gathered`, which borrows the memory they point to; between those
// they are cleared or overwritten, never read.
unsafe impl Send for Pieces {}

impl Pieces {
    /// Room for the largest chain.
    pub fn new() -> Self {
        Pieces(Vec::with_capacity(MAX_PIECES + 1))
    }

    /// Collects all buffers of `chain`, which must be for `direction`, one after the other.
    ///
    /// # Errors
    /// The chain cannot be used as a whole.
    pub fn gather<'a>(
        &'a mut self,
        map: &'a RamMap,
        chain: Chain<'a>,
        direction: Direction,
    ) -> Result<Gathered<'a>, BadChain> {
        self.0.clear();
        let mut length = 0usize;
        let mut ended = false;
        let access = match direction {
            Direction::ToDevice => Permissions::Read,
            Direction::ToDriver => Permissions::Write,
        };
        for descriptor in chain {
            if descriptor.is_write_only() != (direction == Direction::ToDriver) {
                return Err(BadChain::Direction);
            }
            ended = !descriptor.has_next();
            let slices = GuestMemory::get_slices(map, descriptor.addr(), descriptor.len() as usize, access)
                .map_err(|_| BadChain::OutsideRam)?;
            for slice in slices {
                let slice = slice.map_err(|_| BadChain::OutsideRam)?;
                if self.0.len() == MAX_PIECES {
                    return Err(BadChain::TooMany);
                }
                let guard = slice.ptr_guard_mut();
                self.0.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
                // The iterator ends a chain before it reaches 4 GiB.
                length += guard.len();
            }
        }
        // The iterator stops at whatever it cannot follow; only the last descriptor of a chain says that it is the last.
        if !ended {
            return Err(BadChain::Broken);
        }
        Ok(Gathered { pieces: &mut self.0, length, map: PhantomData })
    }
}

/// The buffers of one chain, mapped for as long as the memory map is held.
pub struct Gathered<'a> {
    pieces: &'a mut Vec<libc::iovec>,
    length: usize,
    map: PhantomData<&'a RamMap>,
}

impl Gathered<'_> {
    /// Bytes in all.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The buffers in order. Each is mapped guest memory: the kernel may read it, and write it if the chain was gathered
    /// for [`Direction::ToDriver`].
    pub fn iovecs(&self) -> &[libc::iovec] {
        self.pieces
    }

    /// As [`Gathered::iovecs`], with one more buffer at the end, which tells that something did not fit.
    pub(crate) fn iovecs_and<'b>(&'b mut self, spill: &'b mut [u8]) -> &'b [libc::iovec] {
        self.pieces.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
        self.pieces
    }

    /// Cuts the buffers down to their first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        let mut left = length;
        self.pieces.retain_mut(|piece| {
            piece.iov_len = piece.iov_len.min(left);
            left -= piece.iov_len;
            piece.iov_len > 0
        });
        self.length = length - left;
    }

    /// Reads the first bytes; returns how many there were, at most `out.len()`.
    pub fn read(&self, out: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces.iter() {
            for i in 0..piece.iov_len.min(out.len() - done) {
                // SAFETY: `i` is within the piece, which is mapped guest memory; the guest may write it meanwhile, hence volatile.
                out[done] = unsafe { piece.iov_base.cast::<u8>().add(i).read_volatile() };
                done += 1;
            }
        }
        done
    }

    /// Writes `bytes` at `offset`; returns how many fitted. Only on a chain gathered for [`Direction::ToDriver`].
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for piece in self.pieces.iter() {
            let start = skip.min(piece.iov_len);
            skip -= start;
            for i in start..piece.iov_len.min(start.saturating_add(bytes.len() - done)) {
                // SAFETY: `i` is within the piece, which is mapped guest memory for the device to write; volatile as above.
                unsafe { piece.iov_base.cast::<u8>().add(i).write_volatile(bytes[done]) };
                done += 1;
            }
        }
        done
    }
}
