//! One place that takes output, and writing to it without waiting.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// What to do with output once the place is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Somebody else will connect: keep it.
    Keep,
    /// Nobody will ever read it: drop it.
    Drop,
    /// It may work again, such as a disk that was full: drop this part only.
    Retry,
}

/// How to write without waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    /// The description is non-blocking, or a file.
    Write,
    /// A socket, whose description may be shared with others and stays as it is.
    Send,
    /// A blocking description that is shared with others: ask, then write so few bytes that they fit.
    Ask(usize),
}

/// One place that takes output.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) manner: Manner,
    pub(crate) loss: Loss,
}

impl Outlet {
    /// Writes as much as is taken at once, at least one byte.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is taken now, else what the kernel answered.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let count = match self.manner {
                Manner::Write => bytes.len(),
                Manner::Send => bytes.len(),
                Manner::Ask(most) => {
                    if !self.ready(Duration::ZERO)? {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    bytes.len().min(most)
                }
            };
            let (fd, data) = (self.fd.as_raw_fd(), bytes.as_ptr().cast());
            let wrote = match self.manner {
                Manner::Send => {
                    // SAFETY: the buffer is valid for `count` bytes, no more than its length.
                    unsafe { libc::send(fd, data, count, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
                }
                // SAFETY: as above.
                _ => unsafe { libc::write(fd, data, count) },
            };
            match usize::try_from(wrote) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => return Ok(count),
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
    }

    /// Waits until something can be written, or an error can be seen.
    pub(crate) fn ready(&self, patience: Duration) -> io::Result<bool> {
        device::ready(self.fd.as_raw_fd(), libc::POLLOUT, patience).map(|events| events != 0)
    }
}
