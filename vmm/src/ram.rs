//! Guest memory: mapping it as `--memory` asks, and handing it to the hypervisor.
//!
//! One host mapping per range of the memory map. Private anonymous memory is the default; it costs nothing until touched.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use catalog::MemorySpec;
use device::{Ram, Span};
use hypervisor::{RamFlags, RamSlot, Vm};
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// Below this guest address huge pages are not asked for: the few pages of boot data that every machine touches would cost two
/// megabytes instead of a few kilobytes.
const SMALL_PAGES_BELOW: u64 = 2 << 20;

/// Why there is no guest memory.
#[derive(Debug, Error)]
pub enum RamError {
    /// The host has no such memory.
    #[error("cannot map {size} bytes of guest memory{hint}")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// What may help.
        hint: &'static str,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// A memory file could not be made.
    #[error("cannot create shared memory of {size} bytes{hint}")]
    Memfd {
        /// Bytes asked for.
        size: u64,
        /// What may help.
        hint: &'static str,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// Advice was refused.
    #[error("cannot apply {what} to guest memory")]
    Advise {
        /// The advice.
        what: &'static str,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// The map itself was refused.
    #[error("cannot assemble guest memory: {0}")]
    Assemble(String),
    /// The hypervisor refused.
    #[error("cannot give guest memory to the hypervisor")]
    Slot(#[source] hypervisor::Error),
}

/// What may help when the host has no such memory.
fn hint(spec: &MemorySpec) -> &'static str {
    match (spec.hugepages, spec.reserve) {
        (true, _) => {
            " for --memory hugepages=on; are there enough free huge pages of that size? \
             (/sys/kernel/mm/hugepages/hugepages-*kB/free_hugepages)"
        }
        (false, true) => {
            "; the host does not vouch for that much with --memory reserve=on \
             (CommitLimit and Committed_AS in /proc/meminfo)"
        }
        (false, false) => "",
    }
}

/// Maps memory for these ranges of guest addresses.
///
/// # Errors
/// The host has not enough memory or huge pages, or refuses an option.
pub fn map(spec: &MemorySpec, spans: &[Span]) -> Result<Ram, RamError> {
    let mut regions = Vec::with_capacity(spans.len());
    for span in spans {
        regions.push(map_one(spec, *span)?);
    }
    GuestMemoryMmap::from_regions(regions).map(Ram::new).map_err(|e| RamError::Assemble(e.to_string()))
}

fn map_one(spec: &MemorySpec, span: Span) -> Result<GuestRegionMmap<()>, RamError> {
    let size = usize::try_from(span.length).map_err(|e| RamError::Assemble(e.to_string()))?;
    let hint = hint(spec);
    // Huge pages are always reserved: a pool that runs dry while the guest runs would kill us with SIGBUS.
    let mut flags = if spec.reserve || spec.hugepages { 0 } else { libc::MAP_NORESERVE };
    if spec.prefault {
        flags |= libc::MAP_POPULATE;
    }
    let mut builder = MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    if spec.is_shared() {
        let file =
            memfd(spec, span.length).map_err(|source| RamError::Memfd { size: span.length, hint, source })?;
        builder =
            builder.with_file_offset(FileOffset::new(file, 0)).with_mmap_flags(flags | libc::MAP_SHARED);
    } else {
        builder = builder.with_mmap_flags(flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    }
    let region = builder.build().map_err(|e| {
        let source = match e {
            vm_memory::mmap::MmapRegionError::Mmap(e) => e,
            other => io::Error::other(other.to_string()),
        };
        RamError::Map { size: span.length, hint, source }
    })?;
    let region = GuestRegionMmap::new(region, GuestAddress(span.base))
        .ok_or_else(|| RamError::Assemble(format!("{:#x} is no place for {size} bytes", span.base)))?;
    advise(spec, &region)?;
    Ok(region)
}

fn memfd(spec: &MemorySpec, size: u64) -> io::Result<File> {
    let mut flags = libc::MFD_CLOEXEC;
    if spec.hugepages {
        flags |= libc::MFD_HUGETLB;
        if let Some(page) = spec.hugepage_size {
            flags |= page.0.trailing_zeros() << libc::MFD_HUGE_SHIFT;
        }
    }
    // SAFETY: the name is a NUL-terminated string.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// Tells the host how the memory of a region is used.
///
/// # Errors
/// The host refuses an option that was asked for.
pub fn advise(spec: &MemorySpec, region: &GuestRegionMmap<()>) -> Result<(), RamError> {
    let (base, size) = (region.start_addr().0, region.size());
    let advise = |skip: usize, advice, what| {
        // SAFETY: the range lies within the region's mapping; these kinds of advice never change its content.
        if unsafe { libc::madvise(region.as_ptr().add(skip).cast(), size - skip, advice) } == 0 {
            return Ok(());
        }
        Err(RamError::Advise { what, source: io::Error::last_os_error() })
    };
    if spec.mergeable {
        advise(0, libc::MADV_MERGEABLE, "mergeable=on")?;
    }
    if spec.hugepages {
        return Ok(());
    }
    let skip = usize::try_from(SMALL_PAGES_BELOW.saturating_sub(base)).unwrap_or(size).min(size);
    let thp = if spec.thp { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    match advise(if spec.thp { skip } else { 0 }, thp, "thp") {
        // A kernel without transparent huge pages has nothing to allow or forbid.
        Err(RamError::Advise { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// Guest memory in the hypervisor; dropping it takes the memory away from the guest before it is unmapped.
pub struct Slots {
    vm: Arc<dyn Vm>,
    count: u32,
    // Held so that no mapping goes while the guest has it.
    ram: Ram,
}

impl Slots {
    /// Gives every region to the guest.
    ///
    /// # Errors
    /// The hypervisor refused.
    pub fn map(vm: Arc<dyn Vm>, ram: &Ram) -> Result<Self, RamError> {
        let mut slots = Slots { vm, count: 0, ram: ram.clone() };
        for region in ram.map().iter() {
            let slot = RamSlot {
                slot: slots.count,
                guest_address: region.start_addr().0,
                host_address: region.as_ptr(),
                size: region.len(),
                flags: RamFlags::default(),
            };
            // SAFETY: the region stays mapped while `ram` is held, and the slot is removed on drop before that.
            unsafe { slots.vm.map_ram(&slot) }.map_err(RamError::Slot)?;
            slots.count += 1;
        }
        Ok(slots)
    }

    /// The memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for slot in 0..self.count {
            if let Err(e) = self.vm.unmap_ram(slot) {
                log::error!("cannot take guest memory slot {slot} back: {e}");
            }
        }
    }
}
