//! Scattered memory, and positioned reads and writes on it that are carried on until they are complete.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The most segments that one system call takes (`UIO_MAXIOV`).
pub(crate) const MAX_SEGMENTS: usize = 1024;

/// A piece of memory that belongs to somebody else, usually the guest.
///
/// It is only an address and a length: whoever hands it to an [`Engine`](crate::Engine) promises that it stays valid.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Segment(libc::iovec);

// SAFETY: a segment is only a number to this crate; it is dereferenced by the kernel, under the promise that the caller
// of the engine's unsafe functions makes, which does not depend on a thread.
unsafe impl Send for Segment {}

impl Segment {
    /// The memory of `len` bytes at `base`.
    pub fn new(base: *mut u8, len: usize) -> Self {
        Segment(libc::iovec { iov_base: base.cast(), iov_len: len })
    }

    /// Where it begins.
    pub fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:p}+{:#x}", self.0.iov_base, self.0.iov_len)
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the image to memory.
    Read,
    /// From memory to the image.
    Write,
}

/// Bytes in all segments together; `None` if the sum does not fit.
pub(crate) fn total(segments: &[Segment]) -> Option<u64> {
    segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.len() as u64))
}

/// Drops the first `count` bytes from `segments`, of which those before `first` are used up. Returns the new `first`.
pub(crate) fn advance(segments: &mut [Segment], mut first: usize, mut count: usize) -> usize {
    while let Some(segment) = segments.get_mut(first) {
        if count < segment.len() {
            // A wrapping add: the pointer is not used for access here and stays within the segment anyway.
            *segment = Segment::new(segment.base().wrapping_add(count), segment.len() - count);
            break;
        }
        count -= segment.len();
        first += 1;
    }
    first
}

/// Moves all bytes of `segments`, starting at `offset` of the file, in as few calls as the kernel allows. Reading past
/// the end is an error: an image does not shrink while it is open unless somebody tampers with it.
///
/// # Safety
/// The memory that the segments name must be valid for the call, for writing if `direction` is `Read`.
pub(crate) unsafe fn transfer(
    file: &File,
    direction: Direction,
    mut offset: u64,
    segments: &mut [Segment],
) -> io::Result<()> {
    let mut first = advance(segments, 0, 0);
    while first < segments.len() {
        let rest = &segments[first..];
        let count = rest.len().min(MAX_SEGMENTS);
        let position =
            libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let (fd, vector) = (file.as_raw_fd(), rest.as_ptr().cast::<libc::iovec>());
        // SAFETY: `vector` points to `count` iovecs (Segment is transparent), and the caller vouches for what they name.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv(fd, vector, count as libc::c_int, position),
                Direction::Write => libc::pwritev(fd, vector, count as libc::c_int, position),
            }
        };
        match usize::try_from(moved) {
            Ok(0) => return Err(short(direction)),
            Ok(moved) => {
                offset += moved as u64;
                first = advance(segments, first, moved);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Reads into `segment` what the file has from `offset` on, which must be at least so many bytes, and fills the rest with zeros.
///
/// # Safety
/// The memory that the segment names must be valid for writing for the call.
pub(crate) unsafe fn read_to_end(file: &File, offset: u64, segment: Segment, least: u64) -> io::Result<()> {
    let mut done = 0;
    while done < segment.len() {
        let position = libc::off_t::try_from(offset + done as u64)
            .map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let rest = segment.base().wrapping_add(done);
        // SAFETY: the rest of the segment's memory, for which the caller vouches.
        let moved = unsafe { libc::pread(file.as_raw_fd(), rest.cast(), segment.len() - done, position) };
        match usize::try_from(moved) {
            Ok(0) => break,
            Ok(moved) => done += moved,
            Err(_) => {
                let error = io::Error::last_os_error();
                // A direct read that goes on in the middle of a block was at the end.
                if error.raw_os_error() == Some(libc::EINVAL) && done > 0 {
                    break;
                }
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    if (done as u64) < least {
        return Err(short(Direction::Read));
    }
    // SAFETY: as above.
    unsafe { segment.base().wrapping_add(done).write_bytes(0, segment.len() - done) };
    Ok(())
}

/// Copies `count` bytes between `buffer` and the segments from number `first` on. Returns the new `first`.
///
/// # Safety
/// `buffer` has `count` bytes; the segments have at least as many, valid for writing if `direction` is `Read`.
pub(crate) unsafe fn copy(
    mut buffer: *mut u8,
    mut count: usize,
    direction: Direction,
    segments: &mut [Segment],
    mut first: usize,
) -> usize {
    while count > 0 && first < segments.len() {
        let segment = segments[first];
        let step = segment.len().min(count);
        // SAFETY: `step` is within both. The guest may change its side meanwhile; then it gets what it deserves, for the
        // bytes mean nothing to us.
        unsafe {
            match direction {
                Direction::Read => std::ptr::copy(buffer, segment.base(), step),
                Direction::Write => std::ptr::copy(segment.base(), buffer, step),
            }
            buffer = buffer.add(step);
        }
        count -= step;
        first = advance(segments, first, step);
    }
    first
}

/// The error for a transfer that makes no progress.
pub(crate) fn short(direction: Direction) -> io::Error {
    match direction {
        Direction::Read => io::Error::new(io::ErrorKind::UnexpectedEof, "the image ends before its size"),
        Direction::Write => io::Error::from(io::ErrorKind::WriteZero),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_skips_what_was_moved_and_empty_segments() {
        let mut memory = [0u8; 64];
        let base = memory.as_mut_ptr();
        let at = |start: usize, len: usize| Segment::new(base.wrapping_add(start), len);
        let whole = [at(0, 10), at(10, 0), at(20, 6)];

        let mut segments = whole;
        assert_eq!(advance(&mut segments, 0, 4), 0);
        assert_eq!((segments[0].base(), segments[0].len()), (base.wrapping_add(4), 6));

        let mut segments = whole;
        assert_eq!(advance(&mut segments, 0, 10), 2, "the empty one is passed over");
        assert_eq!(advance(&mut segments, 2, 6), 3);
        assert_eq!(total(&whole), Some(16));
        assert_eq!(total(&[at(0, usize::MAX), at(0, 1)]), None);
    }
}
