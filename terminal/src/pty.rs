//! Pseudo-terminals.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::tty;

/// What is opened for one: the users' ends, and the ends that they come from.
pub(crate) const PATHS: [&str; 2] = ["/dev/pts", MULTIPLEXER];

const MULTIPLEXER: &str = "/dev/ptmx";

/// Opens a new pseudo-terminal in raw mode; returns our end, non-blocking, and the path of the user's.
///
/// The user's end has been opened and closed once when this returns: only then does our end report that nobody is there.
pub(crate) fn open() -> io::Result<(OwnedFd, PathBuf)> {
    // The instance that belongs to the /dev/pts in view comes first; it may be closed to us.
    let main = multiplexer("/dev/pts/ptmx").or_else(|_| multiplexer(MULTIPLEXER))?;
    let mut number: libc::c_uint = 0;
    let unlock: libc::c_int = 0;
    // SAFETY: both requests take a pointer to an int, valid for the call.
    let done = unsafe {
        libc::ioctl(main.as_raw_fd(), libc::TIOCSPTLCK, &unlock) == 0
            && libc::ioctl(main.as_raw_fd(), libc::TIOCGPTN, &mut number) == 0
    };
    if !done {
        return Err(io::Error::last_os_error());
    }
    let path = PathBuf::from(format!("/dev/pts/{number}"));
    let theirs = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
    tty::make_raw(theirs.as_raw_fd())?;
    Ok((main.into(), path))
}

fn multiplexer(path: &str) -> io::Result<File> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}
