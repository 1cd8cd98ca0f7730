//! A test in a process of its own: one that counts what belongs to the process, or that is killed.

use std::ffi::OsStr;
use std::process::Command;

const ALONE: &str = "MIGRATION_TEST_ALONE";

/// What this process was given to do, if it is such a one.
pub(crate) fn given() -> Option<std::ffi::OsString> {
    std::env::var_os(ALONE)
}

pub(crate) fn is_alone() -> bool {
    given().is_some()
}

/// Runs one test, which finds what it is given in [`given`].
pub(crate) fn command(test: &str, given: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, given);
    command
}
