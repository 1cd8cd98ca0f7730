//! What a process is given besides files: limits, a session, an environment. In a jail it is the least.

use std::io;
use std::ptr;

use super::{JailError, at, kernel};

unsafe extern "C" {
    /// The environment as the C library has it.
    static mut environ: *mut *mut libc::c_char;
}

/// Leaves the session, and with it the terminal's reach, and sets limits. `exact` refuses to open fewer `files` than said.
pub(super) fn limit(files: u64, exact: bool) -> Result<(), JailError> {
    // SAFETY: no pointers.
    kernel::check(unsafe { libc::setsid() }.into()).map_err(at("cannot begin a session"))?;
    set(libc::RLIMIT_CORE, 0, true).map_err(at("cannot forbid core files"))?;
    set(libc::RLIMIT_NOFILE, files, exact)
        .map_err(at(format!("cannot set the limit of open files to {files} (files=)")))
}

/// Overwrites the environment: `/proc` shows it to whoever may see this process, and a fault in the program to whoever uses it.
pub(super) fn forget() {
    // SAFETY: there is one thread, and nothing of the environment is borrowed. The C library keeps a list of strings that end in NUL, and
    // an entry that is null behind them; both are writable memory.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            entry = entry.add(1);
        }
        if !environ.is_null() {
            *environ = ptr::null_mut();
        }
    }
}

/// Sets both values of a limit; one beyond the present limit is cut to it unless it is `exact`.
fn set(resource: libc::__rlimit_resource_t, value: u64, exact: bool) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes a structure that lives during the call.
    kernel::check(unsafe { libc::getrlimit(resource, &raw mut now) }.into())?;
    let value = if exact { value } else { value.min(now.rlim_max) };
    let new = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the kernel reads a structure that lives during the call.
    kernel::check(unsafe { libc::setrlimit(resource, &raw const new) }.into()).map(drop)
}
