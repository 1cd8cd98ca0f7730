//! Limits of a process that runs (`prlimit`): what it asks for beyond them it does not get, and what it has stays.

use std::collections::BTreeSet;
use std::io::Error;

/// A page, in bytes.
const PAGE: u64 = 4096;

/// A resource as `prlimit` takes it.
pub type Resource = libc::__rlimit_resource_t;

/// Sets a limit; without a number to the most that it may be. A process that has ended meanwhile has none.
///
/// # Panics
/// The kernel refuses it.
#[track_caller]
pub fn set(process: u32, resource: Resource, to: Option<u64>) {
    let process = process as libc::pid_t;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get limits that live as long as they take.
    let done = unsafe {
        let got = libc::prlimit(process, resource, std::ptr::null(), &mut limit);
        limit.rlim_cur = to.map_or(limit.rlim_max, |to| to.min(limit.rlim_max));
        got == 0 && libc::prlimit(process, resource, &limit, std::ptr::null_mut()) == 0
    };
    let error = Error::last_os_error();
    assert!(done || error.raw_os_error() == Some(libc::ESRCH), "prlimit: {error}");
}

/// Leaves a process so many descriptors besides those that it has.
///
/// # Panics
/// There is no such process.
#[track_caller]
pub fn leave_descriptors(process: u32, left: usize) {
    let numbers = std::fs::read_dir(format!("/proc/{process}/fd")).expect("the process runs").flatten();
    let taken: BTreeSet<u64> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The lowest number that is free is given next. What lies above the limit stays open.
    set(process, libc::RLIMIT_NOFILE, (0..).filter(|number| !taken.contains(number)).nth(left));
}

/// Leaves a process so many bytes of addresses besides those that it has.
///
/// # Panics
/// There is no such process.
#[track_caller]
pub fn leave_memory(process: u32, left: u64) {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).expect("the process runs");
    let pages = statm.split(' ').next().and_then(|pages| pages.parse::<u64>().ok());
    set(process, libc::RLIMIT_AS, Some(pages.expect("its size is told") * PAGE + left));
}
