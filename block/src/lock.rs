//! Advisory locks that keep two programs from writing one image.
//!
//! Open file description locks: they belong to the open file, not to the process, so two disks of one VM exclude
//! each other too, and they go when the last descriptor is closed, however the process ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How much of the image a lock covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granularity {
    /// The bytes that the image has when it is opened.
    #[default]
    ByteRange,
    /// The whole file, whatever it grows to; some network file systems know only this.
    Full,
}

/// How long a lock may be held that no living process seems to have, and the time between two looks.
const LINGERING: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(2);

/// Takes a lock on `file`, for writing if `write`, else for reading. It is held until
/// [`release`], or until the file is closed.
///
/// What a killed program had under way the kernel brings to its end while the program goes, and after it is gone, and keeps the file, and
/// so the lock, until then. Whoever starts the next one at once is not refused for it.
pub(crate) fn acquire(
    file: &File,
    path: &Path,
    size: u64,
    granularity: Granularity,
    write: bool,
) -> Result<()> {
    let error = |source| Error::Lock { path: path.to_owned(), source };
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    let begun = Instant::now();
    let mut seen = None;
    let (theirs, holder) = loop {
        let mut lock = describe(kind, size, granularity).map_err(error)?;
        let Err(refusal) = fcntl_lock(file, libc::F_OFD_SETLK, &mut lock) else {
            return Ok(());
        };
        if !matches!(refusal.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) {
            return Err(error(refusal));
        }
        // Who is in the way? The answer may be out of date already.
        let mut other = describe(kind, size, granularity).map_err(error)?;
        fcntl_lock(file, libc::F_OFD_GETLK, &mut other).map_err(error)?;
        let theirs = if i32::from(other.l_type) == libc::F_RDLCK { "reading" } else { "writing" };
        // OFD locks have no owner; the kernel reports -1 for them and the process for classic locks.
        let holder = if other.l_pid > 0 { Some(other.l_pid.cast_unsigned()) } else { find_holder(file) };
        let holder = holder.filter(|pid| !is_ending(*pid));
        // One that is seen once may be about to end.
        if (holder.is_some() && holder == seen) || begun.elapsed() > LINGERING {
            break (theirs, holder);
        }
        seen = holder;
        std::thread::sleep(LOOK);
    };
    let holder = holder.map_or_else(|| "another program".to_owned(), name_process);
    Err(Error::Locked { path: path.to_owned(), theirs, holder, ours_writes: write })
}

/// Gives the lock back. Closing the file does that too, but not always at once: a ring that is torn down keeps its
/// registered file for some milliseconds.
pub(crate) fn release(file: &File) -> io::Result<()> {
    fcntl_lock(file, libc::F_OFD_SETLK, &mut describe(libc::F_UNLCK, 0, Granularity::Full)?)
}

/// The range to lock as the kernel wants it.
fn describe(kind: i32, size: u64, granularity: Granularity) -> io::Result<libc::flock> {
    let l_len = match granularity {
        Granularity::ByteRange => libc::off_t::try_from(size).map_err(io::Error::other)?,
        // Zero means: to the end, however far that moves.
        Granularity::Full => 0,
    };
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(io::Error::other)?,
        l_whence: 0, // SEEK_SET
        l_start: 0,
        l_len,
        // The kernel demands zero for open file description locks.
        l_pid: 0,
    })
}

fn fcntl_lock(file: &File, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: `lock` is a valid flock structure for the whole call; the kernel writes only to it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Looks through `/proc` for a process that holds a lock on the same file. Sees only what the user may see.
fn find_holder(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino();
    // A line of fdinfo reads `lock:  1: OFDLCK ADVISORY WRITE 12 fe:00:1234 0 4095`.
    let suffix = format!("{}:{inode}", device(file).unwrap_or_default());
    let locks_it = |info: &str| {
        info.lines().any(|line| {
            line.starts_with("lock:") && line.split_whitespace().any(|word| word.ends_with(&suffix))
        })
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(process.path().join("fdinfo")).ok()?.flatten();
        descriptors.any(|fd| fs::read_to_string(fd.path()).is_ok_and(|info| locks_it(&info))).then_some(pid)
    })
}

/// The device of a file's file system as `/proc` writes it beside a lock. Some file systems have `stat` tell of another.
fn device(file: &File) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().to_owned();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").ok()?;
    // `36 35 98:0 /mnt1 /mnt2 rw,noatime - ext3 /dev/root rw`: the mount, its parent, the device.
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(&mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some(format!("{:02x}:{:02x}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
}

/// Whether a process has been killed, or has ended, and only the kernel is still busy with it.
fn is_ending(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pending = field("SigPnd:").and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    // Its memory goes before its files.
    field("VmSize:").is_none() || pending & 1 << (libc::SIGKILL - 1) != 0
}

fn name_process(pid: u32) -> String {
    if pid == std::process::id() {
        return "this program itself (is it given twice?)".to_owned();
    }
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end().escape_default()),
        Err(_) => format!("process {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_killed_is_ending_even_if_nobody_waits_for_it() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        assert!(!is_ending(child.id()) && !is_ending(std::process::id()));
        child.kill().unwrap();
        let begun = Instant::now();
        while !is_ending(child.id()) {
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
        child.wait().unwrap();
    }
}
