//! The descriptors that a program was started with.

use std::io;
use std::os::fd::RawFd;

/// The descriptors that are open now, beyond the standard streams. Asked at the very beginning: they are those that the program was
/// started with.
///
/// # Errors
/// They cannot be listed.
pub fn inherited() -> io::Result<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<RawFd>().ok();
    let all: Vec<RawFd> = entries.flatten().filter_map(number).collect();
    // That of the list itself is closed by now.
    // SAFETY: it only asks whether the descriptor is open.
    let open = |fd: &RawFd| *fd > libc::STDERR_FILENO && unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0;
    Ok(all.into_iter().filter(open).collect())
}

/// Closes those that the program was started with but has no use for.
pub fn close_all_but(inherited: &[RawFd], needed: &[RawFd]) {
    for fd in inherited.iter().filter(|fd| !needed.contains(fd)) {
        // SAFETY: it was open before the program opened anything, nobody named it, and so nothing in the program uses it.
        unsafe { libc::close(*fd) };
    }
}
