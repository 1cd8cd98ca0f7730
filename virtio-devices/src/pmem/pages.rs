//! Whether pages of a private mapping have been written to: the kernel has made copies of them then, which are no pages of the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use device::Span;

/// An entry of `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst): the page is in memory, or in swap.
const PRESENT: u64 = 0b11 << 62;
/// It is the file's.
const OF_FILE: u64 = 1 << 61;
/// Entries read at a time.
const STEP: usize = 8192;

/// Opens what the kernel tells of this process' pages. To be done early: it may not be allowed later.
///
/// # Errors
/// The host does not tell.
pub(super) fn open() -> io::Result<File> {
    File::open("/proc/self/pagemap")
}

/// Whether there is a copy of any page in this range of addresses, which is a private mapping of a file.
///
/// # Errors
/// The host does not tell.
pub(super) fn written(map: &File, span: Span) -> io::Result<bool> {
    // SAFETY: a plain question.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
    let mut bytes = vec![0; STEP * 8];
    let (mut at, end) = (span.base / page, span.end().div_ceil(page));
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(STEP).min(STEP);
        let part = &mut bytes[..count * 8];
        map.read_exact_at(part, at * 8)?;
        let copy = |entry: u64| entry & PRESENT != 0 && entry & OF_FILE == 0;
        if part.chunks_exact(8).any(|entry| copy(u64::from_ne_bytes(entry.try_into().unwrap_or_default()))) {
            return Ok(true);
        }
        at += count as u64;
    }
    Ok(false)
}
