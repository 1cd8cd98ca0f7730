//! Signals, as a descriptor that the control thread reads. They are blocked in every thread.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: end in order.
    End,
    /// SIGWINCH: the terminal has another size.
    Resized,
}

const HANDLED: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGWINCH];

/// The descriptor.
pub struct Signals(File);

impl Signals {
    /// Blocks the signals in this thread and those it starts, and lets them be read instead. SIGCHLD, SIGPIPE and SIGXFSZ are ignored.
    ///
    /// # Errors
    /// What the host answered.
    pub fn take() -> io::Result<Self> {
        // SAFETY: ignoring these signals runs no handler; a broken pipe, or a file that may not grow any more, is then an error
        // where it is written to.
        unsafe {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
        // SAFETY: a zeroed set is what sigemptyset makes; the calls only read and write the set.
        let fd = unsafe {
            let mut set: libc::sigset_t = zeroed();
            libc::sigemptyset(&mut set);
            for signal in HANDLED {
                libc::sigaddset(&mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        Ok(Signals(unsafe { File::from_raw_fd(fd) }))
    }

    /// Readable when a signal came.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The next signal, if one came.
    pub fn next(&self) -> Option<Signal> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        // The descriptor is non-blocking; an error means that there is none.
        (&self.0).read_exact(&mut info).ok()?;
        let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        Some(if number == libc::SIGWINCH as u32 { Signal::Resized } else { Signal::End })
    }
}
