//! What direct I/O asks of memory and positions, and the detour for requests that do not comply.
//!
//! The guest may place its buffers at any byte and start at any sector; the kernel refuses some of that on an
//! `O_DIRECT` descriptor. Such requests go through an aligned buffer, synchronously: they are rare (firmware, mostly), and
//! a read-modify-write must not run beside another one on the same block.

use std::alloc::{self, Layout};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use crate::vectored::{self, Direction, Segment};

/// The size of the detour buffer in bytes. Larger requests take several rounds.
const BUFFER: u64 = 256 << 10;

/// Used where the kernel does not tell: right for every disk and file system that is common.
const CAUTIOUS: Alignment = Alignment { memory: 4096, block: 4096 };

/// What direct I/O on an image demands, in bytes. Both are powers of two; `block` is at most 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Addresses in memory must be multiples of this.
    pub memory: u32,
    /// Positions and lengths must be multiples of this.
    pub block: u32,
}

impl Alignment {
    /// Asks the kernel what direct I/O on `file` demands.
    pub(crate) fn probe(file: &File) -> io::Result<Self> {
        let mut answer = MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: the path is an empty C string, which with AT_EMPTY_PATH means the descriptor itself; the kernel
        // fills the structure that we own.
        let result = unsafe {
            libc::statx(
                file.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_DIOALIGN,
                answer.as_mut_ptr(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeroed at first, and statx is made of integers only, so it is initialised whatever the kernel wrote.
        let answer = unsafe { answer.assume_init() };
        if answer.stx_mask & libc::STATX_DIOALIGN == 0 {
            return Ok(CAUTIOUS);
        }
        let alignment = Alignment { memory: answer.stx_dio_mem_align, block: answer.stx_dio_offset_align };
        if alignment.memory == 0 || alignment.block == 0 {
            // This is how the kernel says that the file does not do direct I/O.
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let sane = |size: u32| size.is_power_of_two() && size <= 64 << 10;
        Ok(if sane(alignment.memory) && sane(alignment.block) { alignment } else { CAUTIOUS })
    }

    /// Whether the kernel takes a request as it is.
    pub(crate) fn accepts(&self, offset: u64, segments: &[Segment]) -> bool {
        let (memory, block) = (self.memory as usize - 1, self.block as usize - 1);
        let loose = segments
            .iter()
            .fold(0, |bits, segment| bits | (segment.base() as usize & memory) | (segment.len() & block));
        loose == 0 && offset.is_multiple_of(u64::from(self.block))
    }
}

/// Moves bytes between an `O_DIRECT` file and memory that is not aligned for it.
///
/// `exclusive` is shared by all engines of the image: it keeps two of these from rewriting one block at once. Requests that
/// the kernel takes as they are need not hold it, for they cover whole blocks.
///
/// # Safety
/// As for [`vectored::transfer`].
pub(crate) unsafe fn detour(
    file: &File,
    alignment: Alignment,
    exclusive: &Mutex<()>,
    direction: Direction,
    offset: u64,
    segments: &mut [Segment],
) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let end = vectored::total(segments).and_then(|len| offset.checked_add(len)).ok_or_else(invalid)?;
    let block = u64::from(alignment.block);
    let mut buffer = Buffer::new(alignment)?;
    let _guard =
        (direction == Direction::Write).then(|| exclusive.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut position, mut first) = (offset, 0);
    while position < end {
        // The window is whole blocks around as much of the request as the buffer takes.
        let start = position - position % block;
        let stop = end.min(start + BUFFER);
        let window = buffer.window((stop - start).next_multiple_of(block));
        let (skip, count) = ((position - start) as usize, (stop - position) as usize);
        let whole = skip == 0 && stop % block == 0;
        if direction == Direction::Read || !whole {
            // What is asked for is there; the rest of the last block need not be.
            let least = if direction == Direction::Read { stop - start } else { 0 };
            // SAFETY: the window is memory of our own, borrowed for the call.
            unsafe { vectored::read_to_end(file, start, window, least)? };
        }
        let middle = window.base().wrapping_add(skip);
        // SAFETY: `middle` has `count` bytes within the window; the caller vouches for the segments.
        first = unsafe { vectored::copy(middle, count, direction, segments, first) };
        if direction == Direction::Write {
            // SAFETY: as above.
            unsafe { vectored::transfer(file, Direction::Write, start, &mut [window])? };
        }
        position = stop;
    }
    Ok(())
}

/// Memory that direct I/O takes.
struct Buffer {
    memory: *mut u8,
    layout: Layout,
}

impl Buffer {
    fn new(alignment: Alignment) -> io::Result<Self> {
        // One block more than a round moves: the window may begin and end in the middle of blocks.
        let size = BUFFER as usize + alignment.block as usize;
        let align = alignment.memory.max(alignment.block) as usize;
        let layout = Layout::from_size_align(size, align).map_err(io::Error::other)?;
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc::alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        Ok(Buffer { memory, layout })
    }

    /// The first `len` bytes.
    fn window(&mut self, len: u64) -> Segment {
        Segment::new(self.memory, self.layout.size().min(len as usize))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout and freed only here.
        unsafe { alloc::dealloc(self.memory, self.layout) }
    }
}
