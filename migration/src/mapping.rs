//! The way back whose time does not depend on the size of memory: the file is mapped, private and copy-on-write.
//!
//! Only data is mapped, over anonymous memory. A hole that is mapped costs a page of the host's cache when it is read and two pages when it
//! is written; anonymous memory costs one, once written, and may be made of huge pages. Where a file has so many holes that the host would have to
//! remember too many mappings, the smallest holes are mapped after all.

use std::ops::Range;
use std::os::fd::AsRawFd;

use device::Span;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::backing::Backing;
use crate::{Error, extents};

/// Memory for all ranges of the file.
pub(crate) fn map(backing: &Backing, reserve: bool) -> Result<Vec<GuestRegionMmap<()>>, Error> {
    let stretches = plan(backing)?;
    let mut regions = Vec::new();
    for (span, base) in backing.ranges() {
        let fail = |source| Error::Memory { action: "map", address: span.base, source };
        let size = usize::try_from(span.length).map_err(|e| Error::Layout(e.to_string()))?;
        let no_reserve = if reserve { 0 } else { libc::MAP_NORESERVE };
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(no_reserve | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .build()
            .map_err(|e| match e {
                MmapRegionError::Mmap(e) => fail(e),
                other => Error::Layout(other.to_string()),
            })?;
        let end = base + span.length;
        let first = stretches.partition_point(|s| s.start < base);
        for stretch in stretches[first..].iter().take_while(|s| s.start < end) {
            let offset = libc::off_t::try_from(stretch.start).map_err(|e| Error::Layout(e.to_string()))?;
            // No stretch reaches beyond its range, so that both fit into the region's size.
            let (skip, length) = ((stretch.start - base) as usize, (stretch.end - stretch.start) as usize);
            // SAFETY: the stretch lies within the region, which was just made, is ours alone, and is unmapped as a whole.
            let mapped = unsafe {
                libc::mmap(
                    region.as_ptr().add(skip).cast(),
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    no_reserve | libc::MAP_PRIVATE | libc::MAP_FIXED,
                    backing.file().as_raw_fd(),
                    offset,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(fail(std::io::Error::last_os_error()));
            }
        }
        let Span { base, length } = span;
        regions.push(
            GuestRegionMmap::new(region, GuestAddress(base))
                .ok_or_else(|| Error::Layout(format!("{base:#x} is no place for {length} bytes")))?,
        );
    }
    Ok(regions)
}

/// Which parts of the file are worth being mapped, in order.
pub(crate) fn plan(backing: &Backing) -> Result<Vec<Range<u64>>, Error> {
    let ranges = backing.ranges().map(|(span, base)| base..base + span.length);
    let plan = extents::plan(backing.file(), ranges, extents::MOST)
        .map_err(|e| Error::file("look at", backing.path(), e))?;
    backing.check_length()?;
    Ok(plan)
}
