//! The buffers of a descriptor chain, for system calls that read from or write to guest memory directly.
//!
//! A chain is believed in nothing: it may be cut short, leave RAM, wrap, mix directions or have any length. Whatever a
//! [`Gathered`] holds is mapped guest memory. What is in it may change at any time.

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use device::LiveQueue;
use device::ram::RamMap;
use device::virtio::Chain;
use vm_memory::{GuestMemory, Permissions, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

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

// SAFETY: the pointers are only reachable through a `Gathered`, which borrows the memory they point to; apart from those they are
// cleared, overwritten or counted, never read.
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
        let length = self.append(map, chain, direction)?;
        Ok(Gathered { pieces: &mut self.0, length, map: PhantomData })
    }

    /// Collects the buffers of `chain` behind those that are there, and returns how many bytes they have.
    ///
    /// # Errors
    /// The chain cannot be used as a whole, or there is no room for it. Nothing of it is there then.
    pub(crate) fn append(
        &mut self,
        map: &RamMap,
        chain: Chain<'_>,
        direction: Direction,
    ) -> Result<usize, BadChain> {
        let before = self.0.len();
        self.collect(map, chain, direction).inspect_err(|_| self.0.truncate(before))
    }

    fn collect(&mut self, map: &RamMap, chain: Chain<'_>, direction: Direction) -> Result<usize, BadChain> {
        let mut length = 0usize;
        let mut ended = false;
        let access = match direction {
            Direction::ToDevice => Permissions::Read,
            Direction::ToDriver => Permissions::Write,
        };
        for (n, descriptor) in chain.enumerate() {
            // Empty ones count too: an indirect table has room for 65535 of them.
            if n == MAX_PIECES {
                return Err(BadChain::TooMany);
            }
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
        Ok(length)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Forgets the first `count`, or all.
    pub(crate) fn forget(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    /// Forgets all but the first `count`.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }

    /// All of them, which have `length` bytes.
    ///
    /// # Safety
    /// All were appended from this map, which was held since then.
    pub(crate) unsafe fn all<'a>(&'a mut self, _map: &'a RamMap, length: usize) -> Gathered<'a> {
        Gathered { pieces: &mut self.0, length, map: PhantomData }
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

    /// Has `use_them` see the buffers as [`Gathered::iovecs`] shows them, with one more at the end for what does not fit.
    pub(crate) fn and<R>(&mut self, spill: &mut [u8], use_them: impl FnOnce(&[libc::iovec]) -> R) -> R {
        self.pieces.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
        let answer = use_them(self.pieces);
        self.pieces.pop();
        answer
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

    /// Reads from `offset` on; returns how many bytes there were, at most `out.len()`.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for piece in self.pieces.iter() {
            let start = skip.min(piece.iov_len);
            skip -= start;
            for i in start..piece.iov_len.min(start.saturating_add(out.len() - done)) {
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
            let part = &bytes[done..done + (piece.iov_len - start).min(bytes.len() - done)];
            // SAFETY: the bytes are within the piece, which is mapped guest memory for the device to write.
            let memory = unsafe { VolatileSlice::new(piece.iov_base.cast::<u8>().add(start), part.len()) };
            memory.copy_from(part);
            done += part.len();
            if done == bytes.len() {
                break;
            }
        }
        done
    }

    /// Has `use_them` see the buffers' bytes from `offset` on, at most `length` of them, as [`Gathered::iovecs`] shows all. None of
    /// what it sees is empty.
    pub(crate) fn part<R>(
        &mut self,
        offset: usize,
        length: usize,
        use_them: impl FnOnce(&[libc::iovec]) -> R,
    ) -> R {
        let mut skip = offset;
        let first = self.pieces.iter().position(|piece| match skip.checked_sub(piece.iov_len) {
            Some(left) => {
                skip = left;
                false
            }
            None => true,
        });
        let Some(first) = first.filter(|_| length > 0) else { return use_them(&[]) };
        let whole = self.pieces[first];
        // SAFETY: `skip` is less than the piece's length.
        self.pieces[first].iov_base = unsafe { whole.iov_base.cast::<u8>().add(skip) }.cast();
        self.pieces[first].iov_len -= skip;
        let mut left = length;
        let mut last = first;
        while self.pieces[last].iov_len < left && last + 1 < self.pieces.len() {
            left -= self.pieces[last].iov_len;
            last += 1;
        }
        let full = self.pieces[last].iov_len;
        self.pieces[last].iov_len = full.min(left);
        let answer = use_them(&self.pieces[first..=last]);
        self.pieces[last].iov_len = full;
        self.pieces[first] = whole;
        answer
    }

    /// Fills the buffers from a descriptor with one read; returns how many bytes it gave. Only on a chain gathered for
    /// [`Direction::ToDriver`].
    ///
    /// # Errors
    /// What the kernel answered; never `Interrupted`.
    pub fn fill_from(&mut self, source: &impl AsRawFd) -> io::Result<usize> {
        loop {
            // SAFETY: the buffers are mapped guest memory for the device to write; there are at most `MAX_PIECES`.
            let count = unsafe {
                libc::readv(source.as_raw_fd(), self.pieces.as_ptr(), self.pieces.len() as libc::c_int)
            };
            match usize::try_from(count) {
                Ok(count) => return Ok(count),
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
    }
}

/// Takes what was written to an event that has fired. There may be nothing left when another took it first.
pub(crate) fn drain_event(event: &EventFd) {
    if let Err(e) = event.read() {
        log::debug!("event: {e}");
    }
}

/// Kicks a queue on behalf of its driver, so that it is served again after others had their turn.
pub(crate) fn kick_again(event: &EventFd) {
    if let Err(e) = event.write(1) {
        // Only a full counter refuses, and then the kick is pending already.
        log::debug!("kick: {e}");
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::{Queue, QueueOwnedT, QueueT};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const END: u64 = 0x10000;

    /// Address, length, whether the device writes.
    type Buffer = (u64, u32, bool);

    /// A chain of these in a table at 0, in memory of two regions with nothing between them.
    fn gather(
        buffers: &[Buffer],
        direction: Direction,
        check: impl FnOnce(&RamMap, Result<Gathered<'_>, BadChain>),
    ) {
        let regions = [(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)];
        let map = RamMap::from_ranges(&regions).unwrap();
        for (i, (address, length, write)) in buffers.iter().enumerate() {
            let next = i + 1;
            let flags = u16::from(*write) << 1 | u16::from(next < buffers.len());
            let at = GuestAddress(16 * i as u64);
            map.write_obj(*address, at).unwrap();
            map.write_obj(*length, GuestAddress(at.0 + 8)).unwrap();
            map.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
            map.write_obj(next as u16, GuestAddress(at.0 + 14)).unwrap();
        }
        map.write_obj(1u16, GuestAddress(0x6002)).unwrap();
        let mut queue = Queue::new(2048).unwrap();
        queue.set_avail_ring_address(Some(0x6000), Some(0));
        queue.set_desc_table_address(Some(0), Some(0));
        queue.set_ready(true);
        let chain = queue.iter(&map).unwrap().next().unwrap();
        check(&map, Pieces::new().gather(&map, chain, direction));
    }

    #[test]
    fn buffers_across_regions_are_read_and_written_in_order() {
        let buffers = [(0x7ffe, 4, true), (0xa000, 0, true), (0x9000, 3, true)];
        gather(&buffers, Direction::ToDriver, |map, gathered| {
            let mut gathered = gathered.unwrap();
            assert_eq!((gathered.length(), gathered.iovecs().len()), (7, 3));
            assert_eq!(gathered.write(1, b"abcdefgh"), 6);
            assert_eq!(gathered.write(7, b"x"), 0);
            let mut bytes = [0; 10];
            assert_eq!(gathered.read(0, &mut bytes), 7);
            assert_eq!(&bytes[..7], b"\0abcdef");
            assert_eq!(gathered.read(5, &mut bytes[..1]), 1);
            assert_eq!(bytes[0], b'e');
            let mut at = [0; 2];
            map.read_slice(&mut at, GuestAddress(0x8000)).unwrap();
            assert_eq!(&at, b"bc");
            gathered.truncate(3);
            assert_eq!((gathered.length(), gathered.read(0, &mut bytes)), (3, 3));
            gathered.truncate(100);
            assert_eq!(gathered.length(), 3);
        });
    }

    #[test]
    fn a_part_is_what_lies_between_two_offsets_and_leaves_the_whole_as_it_was() {
        let buffers = [(0x7ffe, 4, true), (0xa000, 0, true), (0x9000, 3, true)];
        gather(&buffers, Direction::ToDriver, |_, gathered| {
            let mut gathered = gathered.unwrap();
            gathered.write(0, b"abcdefg");
            for (offset, length) in (0..9).flat_map(|o| (0..9).map(move |l| (o, l))) {
                let seen = gathered.part(offset, length, |iovecs| {
                    let mut seen = Vec::new();
                    for piece in iovecs {
                        let start = piece.iov_base.cast::<u8>();
                        // SAFETY: what a part shows is mapped memory, which nobody else uses here.
                        seen.extend((0..piece.iov_len).map(|i| unsafe { start.add(i).read() }));
                    }
                    seen
                });
                let end = (offset + length).min(7);
                assert_eq!(seen, b"abcdefg"[offset.min(end)..end], "{offset} {length}");
            }
            let mut whole = [0; 8];
            assert_eq!((gathered.read(0, &mut whole), &whole), (7, b"abcdefg\0"));
        });
    }

    #[test]
    fn what_no_driver_would_write_is_refused() {
        let cases: [(&[Buffer], Direction, BadChain); 5] = [
            (&[(END - 1, 2, false)], Direction::ToDevice, BadChain::OutsideRam),
            (&[(u64::MAX, 2, false)], Direction::ToDevice, BadChain::OutsideRam),
            (&[(0, 1, true)], Direction::ToDevice, BadChain::Direction),
            (&[(0x7000, 1, true), (0x7000, 1, false)], Direction::ToDriver, BadChain::Direction),
            (&[(0x7000, u32::MAX, false)], Direction::ToDevice, BadChain::OutsideRam),
        ];
        for (buffers, direction, error) in cases {
            gather(buffers, direction, |_, gathered| assert_eq!(gathered.err(), Some(error), "{buffers:x?}"));
        }
        gather(&[(0x7000, 1, false); MAX_PIECES], Direction::ToDevice, |_, g| {
            assert_eq!(g.unwrap().length(), MAX_PIECES);
        });
        for length in [0, 1] {
            gather(&[(0x7000, length, false); MAX_PIECES + 1], Direction::ToDevice, |_, g| {
                assert_eq!(g.err(), Some(BadChain::TooMany));
            });
        }
    }
}
