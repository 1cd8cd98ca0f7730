//! The terminal that the program was started from.
//!
//! Its settings are changed once, whoever uses it, and given back by whoever comes first: the last user, or [`restore_all`].

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::TerminalError;
use crate::outlet::{Loss, Manner, Outlet};

struct Saved {
    fd: OwnedFd,
    settings: libc::termios,
}

/// The settings to go back to, while they are changed.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

/// How many rely on the changed settings.
static USERS: Mutex<usize> = Mutex::new(0);

/// Gives the user's terminal its settings back, if they were changed. May be called from anywhere, a signal handler and a panic
/// included, and any number of times; terminals in use stay usable, as far as cooked settings go.
pub fn restore_all() {
    let saved = SAVED.swap(ptr::null_mut(), Ordering::AcqRel);
    if !saved.is_null() {
        // The value is leaked rather than freed: a signal handler must not free memory.
        // SAFETY: the pointer came from `Box::into_raw`, and whoever swaps it out is the only one to have it.
        let saved = unsafe { &*saved };
        apply_quietly(saved);
    }
}

/// Sets settings without being stopped for it, should the program have been moved to the background.
fn apply_quietly(saved: &Saved) {
    let mut block = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the sets are initialised before they are read, and the settings came from the kernel.
    unsafe {
        libc::sigemptyset(block.as_mut_ptr());
        libc::sigaddset(block.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, block.as_ptr(), before.as_mut_ptr());
        libc::tcsetattr(saved.fd.as_raw_fd(), libc::TCSANOW, &saved.settings);
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
    }
}

/// Keeps a terminal in raw mode while it lives.
pub(crate) struct Raw(());

impl Raw {
    /// Sets the terminal to raw mode; the first caller's terminal is the one meant.
    pub(crate) fn set(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            let fd = fd.try_clone_to_owned()?;
            let settings = settings(fd.as_raw_fd())?;
            let raw_fd = fd.as_raw_fd();
            let saved = Box::into_raw(Box::new(Saved { fd, settings }));
            // Before the change, so that there is no moment at which it could not be undone.
            SAVED.store(saved, Ordering::Release);
            if let Err(e) = make_raw(raw_fd) {
                give_back();
                return Err(e);
            }
        }
        *users += 1;
        Ok(Raw(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users == 0 {
            give_back();
        }
    }
}

/// As [`restore_all`], but frees the memory.
fn give_back() {
    let saved = SAVED.swap(ptr::null_mut(), Ordering::AcqRel);
    if !saved.is_null() {
        // SAFETY: as in `restore_all`.
        let saved = unsafe { Box::from_raw(saved) };
        apply_quietly(&saved);
    }
}

fn settings(fd: RawFd) -> io::Result<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the kernel fills the value when it answers 0.
    if unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was filled.
    Ok(unsafe { settings.assume_init() })
}

/// Passes every byte through unchanged, in both directions.
pub(crate) fn make_raw(fd: RawFd) -> io::Result<()> {
    let mut settings = settings(fd)?;
    // SAFETY: the settings are valid, and the descriptor is looked at by the kernel only.
    let done = unsafe {
        libc::cfmakeraw(&mut settings);
        libc::tcsetattr(fd, libc::TCSANOW, &settings)
    };
    if done != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Columns and rows; `None` if nobody has set them.
pub(crate) fn size(fd: RawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel fills the value.
    let done = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
    (done == 0 && size.ws_col != 0 && size.ws_row != 0).then_some((size.ws_col, size.ws_row))
}

/// The program's standard streams as a terminal.
pub(crate) struct Standard {
    pub(crate) outlet: Outlet,
    /// Whether a full outlet can be waited for.
    pub(crate) pollable: bool,
    pub(crate) input: Option<Arc<OwnedFd>>,
    pub(crate) raw: Option<Raw>,
}

/// Takes standard output, and standard input if it is a terminal.
pub(crate) fn standard() -> Result<Standard, TerminalError> {
    let stdout = io::stdout();
    let (outlet, pollable) = output(stdout.as_fd()).map_err(TerminalError::Stdout)?;
    let raw = match stdout.is_terminal() {
        true => Some(Raw::set(stdout.as_fd()).map_err(TerminalError::Raw)?),
        false => None,
    };
    let stdin = io::stdin();
    let input = match stdin.is_terminal() {
        true => Some(Arc::new(input(stdin.as_fd()).map_err(TerminalError::Stdout)?)),
        false => None,
    };
    Ok(Standard { outlet, pollable, input, raw })
}

/// A way to write to `fd` that never waits and leaves the description that we share with the shell as it is: making that one
/// non-blocking would surprise everybody else who uses it.
pub(crate) fn output(fd: BorrowedFd<'_>) -> io::Result<(Outlet, bool)> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the value when it answers 0.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was filled.
    let kind = unsafe { stat.assume_init() }.st_mode & libc::S_IFMT;
    let terminal = fd.is_terminal();
    let copy = || fd.try_clone_to_owned();
    let (fd, manner, pollable) = match kind {
        libc::S_IFSOCK => (copy()?, Manner::Send, true),
        libc::S_IFIFO | libc::S_IFCHR if terminal || kind == libc::S_IFIFO => {
            match reopen(fd, OpenOptions::new().write(true)) {
                Ok(fd) => (fd, Manner::Write, true),
                // Not ours to open, for example after `su`. A pipe that is writable takes a page, a terminal at least a byte.
                Err(_) => (copy()?, Manner::Ask(if terminal { 1 } else { libc::PIPE_BUF }), true),
            }
        }
        _ => (copy()?, Manner::Write, false),
    };
    let loss = if kind == libc::S_IFREG { Loss::Retry } else { Loss::Drop };
    Ok((Outlet { fd: Arc::new(fd), manner, loss }, pollable))
}

fn input(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // A blocking copy serves as well: it is read only when there is something to read.
    reopen(fd, OpenOptions::new().read(true)).or_else(|_| fd.try_clone_to_owned())
}

fn reopen(fd: BorrowedFd<'_>, how: &mut OpenOptions) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    how.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map(OwnedFd::from)
}
