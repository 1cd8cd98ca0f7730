//! Waiting for one descriptor for no longer than a time, by poll(2).
//!
//! Whoever serves several descriptors has a [`crate::worker::Watch`]; this is for those who wait for an answer.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Waits until one of `events` (`POLLIN`, `POLLOUT`) of a descriptor is there, and returns those that are: none when the time is over.
/// Errors and hang-ups are always looked for. With no time it only looks.
///
/// # Errors
/// What poll answered.
pub fn ready(fd: RawFd, events: i16, at_most: Duration) -> io::Result<i16> {
    let begun = Instant::now();
    loop {
        let mut entry = libc::pollfd { fd, events, revents: 0 };
        // Rounded up: nobody's time is over early, and again and again.
        let left = at_most.saturating_sub(begun.elapsed()).as_micros().div_ceil(1000);
        let left = i32::try_from(left).unwrap_or(i32::MAX);
        // SAFETY: one valid entry for the call. A number that is no descriptor is told as an event.
        match unsafe { libc::poll(&raw mut entry, 1, left) } {
            // A time may be longer than poll can wait.
            0 if begun.elapsed() < at_most => {}
            0.. => return Ok(entry.revents),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_is_there_is_told_at_once_and_what_is_not_when_the_time_is_over() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let (fd, long) = (there.as_raw_fd(), Duration::from_secs(600));
        let begun = Instant::now();
        assert_eq!(ready(fd, libc::POLLIN, Duration::ZERO).unwrap(), 0);
        assert_eq!(ready(fd, libc::POLLIN, Duration::from_micros(1500)).unwrap(), 0);
        assert!(begun.elapsed() >= Duration::from_micros(1500));
        assert_eq!(ready(fd, libc::POLLOUT, long).unwrap(), libc::POLLOUT);
        here.write_all(b"x").unwrap();
        assert_eq!(ready(fd, libc::POLLIN, long).unwrap(), libc::POLLIN);
        drop(here);
        assert_ne!(ready(fd, 0, long).unwrap() & libc::POLLHUP, 0);
        drop(there);
        assert_eq!(ready(-2, libc::POLLIN, Duration::ZERO).unwrap(), 0, "a negative one is passed over");
    }
}
