//! Who starts passt, for network cards with `user=on`: a process of its own, because threads behind filters start no program.
//!
//! It is forked before the filters go on, and only if it may be needed: a card on the command line or of the machine that is restored, `--passt`. It is told
//! what a card is to be and never what to run: the program comes from our command line, its options from the card's typed keys. passt gets
//! one end of a connection, the VMM the other; passt ends with the connection, and the launcher when the VMM is gone.
//!
//! ```text
//!   VMM ── start card, ended? ──► launcher ── fork, exec ──► passt
//!    ▲                               │ ▲                      │ │
//!    │◄───── one end of a pair ──────┘ └── whom it connects to ┘ │   where that is to be looked at (`supervise`)
//!    └────────────────────── vhost-user ────────────────────────┘
//! ```
//!
//! The launcher opens no file that somebody else names and parses nothing that comes from a guest; what passt says on its standard error it
//! keeps in bounds and passes on.

pub(crate) mod calls;
mod hand;
mod passt;
mod policy;
mod serve;
mod supervise;
mod words;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sandbox::Mode;
use spec::Refusal;

pub use hand::Hand;

/// Forks the launcher. `program` is what `--passt` says. Called while the process has one thread.
///
/// # Errors
/// The host has no process or socket left.
pub fn start(program: Option<&str>, mode: Mode) -> Result<Hand, Refusal> {
    let failed = |e| Refusal::host("Cannot start the process that starts passt", e);
    let (ours, theirs) = pair().map_err(failed)?;
    // SAFETY: there is one thread, so that the child may go on with all of the process.
    match unsafe { libc::fork() } {
        -1 => Err(failed(io::Error::last_os_error())),
        0 => {
            drop(ours);
            // Whatever happens, it never comes back into the program.
            let done = catch_unwind(AssertUnwindSafe(|| become_launcher(theirs, program, mode)));
            if let Ok(Err(e)) = &done {
                // A standard error that takes nothing is no reason to come back either.
                let _ = writeln!(io::stderr(), "The process that starts passt ends: {e}");
            }
            let code = i32::from(!matches!(done, Ok(Ok(()))));
            // SAFETY: it ends the process.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Hand::new(ours, pid)),
    }
}

/// Two ends of a connection that keeps messages apart.
fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors, which are new and ours.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((UnixDatagram::from_raw_fd(fds[0]), UnixDatagram::from_raw_fd(fds[1])))
    }
}

/// In the new process.
fn become_launcher(socket: UnixDatagram, program: Option<&str>, mode: Mode) -> io::Result<()> {
    keep_only(socket.as_raw_fd())?;
    // SAFETY: plain numbers and a name that ends with a NUL. In a session of its own it hears nothing of keys on our terminal.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"launcher".as_ptr());
        libc::setsid();
    }
    let program = passt::find(program);
    let filter = calls::mode(mode);
    if filter != Mode::Off {
        sandbox::Prepared::new(calls::LAUNCHER, filter).enter()?;
    }
    serve::Serve::new(socket, program, filter).run()
}

/// Lets go of all descriptors but this one and standard error: they are the VMM's.
fn keep_only(kept: RawFd) -> io::Result<()> {
    let nothing = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
    for standard in [0, 1] {
        // SAFETY: both are numbers of descriptors of ours.
        if unsafe { libc::dup2(nothing.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    drop(nothing);
    let kept = kept.unsigned_abs();
    for (first, last) in [(3, kept - 1), (kept + 1, u32::MAX)] {
        // SAFETY: nothing in this process uses descriptors in these ranges from here on.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
