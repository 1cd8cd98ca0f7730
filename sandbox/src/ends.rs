//! How a program begins to be confined, and how it ends when something goes wrong.

use std::io::{self, Write};

use crate::mode::{Mode, switch_on};
use crate::violation;

/// From now on roles are entered in this mode. Called once, before the first thread is started. `before` is called before the program says
/// that a thread panicked or went beyond what it may do: it may be called at any time, on any thread, in a signal handler.
///
/// # Errors
/// What the kernel answered to a new signal handler.
pub fn begin(mode: Mode, before: fn()) -> io::Result<()> {
    // One heap for all threads: they seldom allocate, and a heap for each would cost pages and system calls, among them reading a file
    // of /sys to find how many there may be, on whichever thread allocates.
    // SAFETY: no other thread exists yet; refused or not, memory can be allocated.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before();
        match std::thread::current().name() {
            // A confined thread may not open the program's file, which the names of functions would need.
            Some(name) if name != "main" && mode != Mode::Off => {
                let what = info.payload_as_str().unwrap_or("something that is no text");
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                // Nothing can be done about a standard error that takes nothing.
                let _ = writeln!(io::stderr(), "thread '{name}' panicked at {place}:\n{what}");
            }
            _ => hook(info),
        }
    }));
    violation::watch(before)?;
    switch_on(mode);
    Ok(())
}
