//! Waiting for any of a few file descriptors.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// A fixed set of descriptors; -1 stands for none.
pub struct Wait(Vec<RawFd>);

impl Wait {
    /// Waits for these.
    pub fn new(fds: &[RawFd]) -> Self {
        Wait(fds.to_vec())
    }

    /// Returns when at least one is readable, or when this much time is over.
    ///
    /// # Errors
    /// What poll answered.
    pub fn ready(&self, limit: Option<Duration>) -> io::Result<()> {
        // Rounded up: nobody's time is over early, and again and again.
        let limit = limit.map_or(-1, |l| i32::try_from(l.as_millis() + 1).unwrap_or(i32::MAX));
        let mut fds: Vec<libc::pollfd> =
            self.0.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
        loop {
            // SAFETY: the array is valid for its length; negative descriptors are ignored by the kernel.
            if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit) } >= 0 {
                return Ok(());
            }
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(e);
            }
        }
    }
}
