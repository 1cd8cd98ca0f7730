//! The memory of a saved machine, on its way back.
//!
//! [`crate::ram`] maps memory as `--memory` asks; here it gets the content that it had. Three ways differ in when that is read.

use std::sync::Arc;

use catalog::{MemoryRestoreMode, MemorySpec, RestoreSpec};
use device::{Events, Ram, Request};
use migration::{Backing, Pager, Progress, Source};
use spec::{Kind, Refusal};
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::ram;

/// Memory, and what still works on it.
pub struct Restored {
    /// The memory.
    pub ram: Ram,
    /// What memory still depends on.
    pub behind: Behind,
}

/// What memory of a restored machine depends on; it outlives the machine.
#[derive(Default)]
pub struct Behind {
    /// Reads pages on demand, until all are there. The threads of the machine may wait for it.
    pub pager: Option<Pager>,
    /// The file that memory maps, with the lock that tells others so.
    _mapped: Option<Backing>,
}

/// The way that was asked for, if the machine's memory can be had that way; without a wish, the one that checks all of memory.
fn mode(restore: &RestoreSpec, memory: &MemorySpec) -> Result<MemoryRestoreMode, Refusal> {
    match restore.memory_restore_mode {
        None => Ok(MemoryRestoreMode::Copy),
        Some(MemoryRestoreMode::Mmap) if memory.is_shared() => Err(Refusal::invalid(
            "memory_restore_mode=mmap is for private memory, and this machine's is shared or in huge pages: use copy or ondemand",
        )),
        Some(MemoryRestoreMode::OnDemand) if memory.hugepages => Err(Refusal::invalid(
            "memory_restore_mode=ondemand is for ordinary pages, and this machine's are huge: use copy",
        )),
        Some(mode) => Ok(mode),
    }
}

/// Brings memory back. When pages cannot be read later that the guest needs, `events` is told.
///
/// # Errors
/// The host has not the memory, or the file is damaged.
pub fn restore(
    restore: &RestoreSpec,
    memory: &MemorySpec,
    source: &Source,
    events: Arc<dyn Events>,
) -> Result<Restored, Refusal> {
    let mode = mode(restore, memory)?;
    let prefault = restore.prefault || memory.prefault;
    log::info!("memory comes back by {mode:?}: {} bytes, {} of them data", source.length(), source.data());
    let restored = match mode {
        MemoryRestoreMode::Copy => {
            // What is read is touched anyway; the rest is only if somebody asks for it.
            let ram =
                ram::map(&MemorySpec { prefault, ..memory.clone() }, &source.spans()).map_err(no_memory)?;
            source.copy(&ram.map(), &Progress::new()).map_err(unreadable)?;
            Restored { ram, behind: Behind::default() }
        }
        MemoryRestoreMode::Mmap => {
            let regions = source.map(memory.reserve).map_err(unreadable)?;
            for region in &regions {
                ram::advise(memory, region).map_err(no_memory)?;
                if prefault {
                    populate(region)?;
                }
            }
            let map = GuestMemoryMmap::from_regions(regions)
                .map_err(|e| Refusal::host("Cannot set up guest memory", e))?;
            Restored {
                ram: Ram::new(map),
                behind: Behind { pager: None, _mapped: Some(source.backing().clone()) },
            }
        }
        MemoryRestoreMode::OnDemand => {
            // Pages that were mapped before would never be asked for.
            let ram = ram::map(&MemorySpec { prefault: false, ..memory.clone() }, &source.spans())
                .map_err(no_memory)?;
            let failed = move |e: migration::Error| {
                log::error!("memory of the guest cannot be read: {}", unreadable(e).chain().join(": "));
                events.request(Request::Fault);
            };
            let pager = source.page_in(&ram.map(), failed).map_err(unreadable)?;
            Restored { ram, behind: Behind { pager: Some(pager), _mapped: None } }
        }
    };
    Ok(restored)
}

fn no_memory(e: ram::RamError) -> Refusal {
    Refusal::host("Cannot set up guest memory", e)
}

/// Maps what the file has for all of a region, without breaking the sharing of its pages.
fn populate(region: &GuestRegionMmap<()>) -> Result<(), Refusal> {
    // SAFETY: the range is the region's mapping; populating changes no content.
    if unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_POPULATE_READ) } == 0 {
        return Ok(());
    }
    let e = std::io::Error::last_os_error();
    Err(Refusal::host(
        format!("Cannot map all of guest memory at {:#x} for prefault=on", region.start_addr().0),
        e,
    ))
}

/// A snapshot that cannot be read, as whoever asked is told.
pub fn unreadable(e: migration::Error) -> Refusal {
    Refusal::new(kind(&e), "The snapshot cannot be read").because(e)
}

/// A snapshot that cannot be written, as whoever asked is told.
pub fn unwritable(e: migration::Error) -> Refusal {
    Refusal::new(kind(&e), "The snapshot cannot be written").because(e)
}

/// Who is at fault: the directory that was named is wrong, damaged or in use, or the host refuses.
fn kind(e: &migration::Error) -> Kind {
    use migration::Error;
    match e {
        Error::Missing(_) => Kind::Absent,
        Error::NotEmpty { .. } | Error::Busy(_) => Kind::Conflict,
        Error::NotADirectory(_)
        | Error::Incomplete(_)
        | Error::NotAFile(_)
        | Error::TooLong { .. }
        | Error::TooLarge { .. }
        | Error::Unknown { .. }
        | Error::Malformed { .. }
        | Error::Damaged { .. }
        | Error::Layout(_) => Kind::Invalid,
        _ => Kind::Host,
    }
}
