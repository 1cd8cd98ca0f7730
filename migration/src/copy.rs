//! The way back that reads everything before the machine runs, and so can check everything.

use std::os::unix::fs::FileExt;

use device::ram::RamMap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::backing::Backing;
use crate::checksum::{Checksum, Running};
use crate::extents::Finder;
use crate::write::next_run;
use crate::{Error, PAGE, Progress};

/// Bytes that are read, summed and put into memory in one go, from a buffer that stays in the processor's cache.
const CHUNK: u64 = 512 << 10;

/// Reads the file's data into memory that holds zeros. Pages of zeros stay untouched, also where the file has no holes.
pub(crate) fn copy(
    backing: &Backing,
    checksum: Checksum,
    ram: &RamMap,
    progress: &Progress,
) -> Result<(), Error> {
    backing.check_same(ram)?;
    let path = backing.path();
    let mut finder = Finder::default();
    let mut next = |range| finder.next(backing.file(), range).map_err(|e| Error::file("look at", path, e));
    let length = backing.ranges().map(|(span, _)| span.length).sum();

    let (mut total, mut at) = (0, 0);
    while let Some(data) = next(at..length)? {
        progress.check()?;
        total += data.end - data.start;
        at = data.end;
    }
    progress.begin(total);

    let mut sum = Running::new();
    let mut summed = 0;
    let mut buffer = vec![0; CHUNK as usize];
    for ((_, base), region) in backing.ranges().zip(ram.iter()) {
        let end = base + region.len();
        let mut at = base;
        while let Some(data) = next(at..end)? {
            progress.check()?;
            // One chunk of it; the rest is found again.
            at = data.end.min(data.start + CHUNK);
            let bytes = &mut buffer[..usize::try_from(at - data.start).unwrap_or(0)];
            backing.file().read_exact_at(bytes, data.start).map_err(|e| Error::file("read", path, e))?;
            sum.zeros(data.start - summed);
            sum.update(bytes);
            summed = at;
            let mut from = 0;
            while let Some(run) = next_run(bytes, from) {
                from = run.end;
                let place = data.start - base + run.start as u64;
                let slice = region.get_slice(MemoryRegionAddress(place), run.len()).map_err(|e| {
                    Error::Layout(format!("{e} (at {place:#x}, {} pages)", run.len() as u64 / PAGE))
                })?;
                slice.copy_from(&bytes[run]);
            }
            progress.advance(at - data.start);
        }
    }
    sum.zeros(length - summed);
    progress.finish();
    let found = sum.finish();
    if found != checksum {
        return Err(Error::damaged(path, format!("its checksum is {found} instead of {checksum}")));
    }
    Ok(())
}
