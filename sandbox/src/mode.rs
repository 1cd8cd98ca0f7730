//! Whether calls are filtered, and what becomes of one that is not allowed.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use thiserror::Error;

/// What becomes of a call that is not allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// There are no filters.
    Off,
    /// The process says which thread made which call, and dies of SIGSYS.
    #[default]
    Kill,
    /// The kernel notes it in its log and lets it happen.
    Log,
    /// It does not happen; whoever asked is told EPERM.
    Errno,
}

/// A word that is no [`Mode`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("expected true, false, log or errno, not {0:?}")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Mode, UnknownMode> {
        match text {
            "true" => Ok(Mode::Kill),
            "false" => Ok(Mode::Off),
            "log" => Ok(Mode::Log),
            "errno" => Ok(Mode::Errno),
            other => Err(UnknownMode(other.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Off => "false",
            Mode::Kill => "true",
            Mode::Log => "log",
            Mode::Errno => "errno",
        })
    }
}

impl Mode {
    /// The help of the flag by which a program takes a mode.
    pub const HELP: &str = "What becomes of a system call that a thread has no need of: true (the program says so and ends), log (the \
                            kernel notes it), errno (it fails), or false (nothing is filtered)";

    /// What a filter answers (`SECCOMP_RET_…`) to a call that is not allowed.
    pub(crate) fn answer(self) -> u32 {
        match self {
            Mode::Off => libc::SECCOMP_RET_ALLOW,
            Mode::Kill => libc::SECCOMP_RET_TRAP,
            Mode::Log => libc::SECCOMP_RET_LOG,
            Mode::Errno => libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        }
    }
}

static MODE: AtomicU8 = AtomicU8::new(0);

/// From now on roles are entered in this mode.
pub(crate) fn switch_on(mode: Mode) {
    MODE.store(mode as u8, Ordering::Relaxed);
}

/// The mode in force.
pub fn mode() -> Mode {
    const ALL: [Mode; 4] = [Mode::Off, Mode::Kill, Mode::Log, Mode::Errno];
    ALL[usize::from(MODE.load(Ordering::Relaxed)) % ALL.len()]
}
