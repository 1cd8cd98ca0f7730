//! Putting a filter on a thread.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use libc::sock_filter;
use thiserror::Error;

use crate::call::Set;
use crate::filter::compile;
use crate::mode::{Mode, mode};
use crate::violation;

/// What one kind of thread does.
#[derive(Clone, Copy, Debug)]
pub struct Role<'a> {
    /// Who asked for the filter: the part of the program, or the device by its name. For messages.
    pub asked_by: &'a str,
    /// All that is done on the thread.
    pub sets: &'a [Set],
}

/// A thread could not be confined, and must not go on.
#[derive(Debug, Error)]
#[error("cannot filter the system calls of {asked_by}")]
pub struct Refused {
    asked_by: String,
    #[source]
    source: io::Error,
}

/// Where a set is, and its length.
type Key = Vec<(usize, usize)>;

/// Filters that were compiled, by the sets in them.
static COMPILED: Mutex<Vec<(Key, Arc<[sock_filter]>)>> = Mutex::new(Vec::new());

impl Role<'_> {
    /// From now on the calling thread, and those that it starts, make no other calls. Without effect while filters are off.
    ///
    /// # Errors
    /// The kernel has no filters, or no memory for one.
    pub fn enter(&self) -> Result<(), Refused> {
        let mode = mode();
        if mode == Mode::Off {
            return Ok(());
        }
        violation::note(self.asked_by);
        put_on(&self.filter(mode)).map_err(|source| Refused { asked_by: self.asked_by.to_owned(), source })
    }

    fn filter(&self, mode: Mode) -> Arc<[sock_filter]> {
        let key: Key = self.sets.iter().map(|set| (set.as_ptr() as usize, set.len())).collect();
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, filter)) = compiled.iter().find(|(of, _)| *of == key) {
            return filter.clone();
        }
        let filter: Arc<[sock_filter]> = compile(self.sets, mode).into();
        compiled.push((key, filter.clone()));
        filter
    }
}

/// A filter that is compiled before a process is forked, to be put on there, where nothing may be allocated.
#[derive(Debug)]
pub struct Prepared(Vec<sock_filter>);

impl Prepared {
    /// Allows these calls and answers all others as the mode says.
    pub fn new(sets: &[Set], mode: Mode) -> Self {
        Prepared(compile(sets, mode))
    }

    /// As [`Role::enter`], whatever the mode in force.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn enter(&self) -> io::Result<()> {
        put_on(&self.0)
    }

    /// The same; who holds the descriptor is asked about calls that are [`crate::When::Supervised`] (`seccomp_unotify(2)`).
    ///
    /// # Errors
    /// What the kernel answered; `EBUSY` if somebody else supervises this process.
    pub fn enter_supervised(&self) -> io::Result<OwnedFd> {
        let listener = put(&self.0, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        // SAFETY: with this flag the kernel answers with a new descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
    }
}

fn put_on(filter: &[sock_filter]) -> io::Result<()> {
    put(filter, 0).map(drop)
}

fn put(filter: &[sock_filter], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    // SAFETY: plain numbers; it takes away what programs that are started could gain.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel takes no more than 4096 instructions.
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel reads the program, which is valid for its length, and keeps a copy.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}
