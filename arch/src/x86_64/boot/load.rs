//! Carrying out a [`Plan`]: file pages mapped over guest RAM where possible, bytes copied elsewhere.

use std::io::{Seek, SeekFrom};

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress,
};

use super::{BootFile, Placement, Plan, Source};
use crate::x86_64::layout::PAGE_SIZE;
use crate::{Error, Result};

/// What guest RAM is made of, as far as mapping files over it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Private, anonymous, ordinary pages that nobody else has mapped or pinned: file pages may replace them. A mapped
    /// page is shared with the host's page cache until the guest writes to it; advice given to the mapping before
    /// (`madvise`) is lost for it.
    PrivateAnonymous,
    /// Anything else (shared with another process, from a file, huge pages, pinned for a device): copy.
    Other,
}

/// How much of a plan was mapped and how much was copied.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes of files mapped.
    pub mapped: u64,
    /// Bytes of files copied.
    pub copied: u64,
}

impl Plan {
    /// Puts everything into `memory`, which must read as zero wherever the plan places something: bytes that a kernel
    /// expects to be zero are not written. Must run before any vCPU, and before anybody else learns host addresses of
    /// the RAM.
    ///
    /// A file that is shortened by somebody else while the machine runs takes its mapped pages away (`SIGBUS`): boot files
    /// are to be replaced by renaming, as package managers do.
    ///
    /// # Errors
    /// [`Error::ReadFile`], [`Error::MapFile`], [`Error::GuestMemory`].
    pub fn load<M: GuestMemoryBackend>(&self, memory: &M, backing: Backing) -> Result<Loaded> {
        let mut loaded = Loaded::default();
        for placement in &self.placements {
            match &placement.source {
                Source::Bytes(bytes) => write(memory, placement.gpa, bytes)?,
                Source::File { file, offset } => {
                    let pages = whole_pages(placement)
                        .filter(|_| backing == Backing::PrivateAnonymous)
                        .and_then(|(gpa, len)| Some((gpa, len, host_pages(memory, gpa, len)?)));
                    let Some((gpa, len, host)) = pages else {
                        copy(memory, placement.gpa, file, *offset, placement.len)?;
                        loaded.copied += placement.len;
                        continue;
                    };
                    let head = gpa - placement.gpa;
                    map(host, gpa, file, offset + head, len)?;
                    copy(memory, placement.gpa, file, *offset, head)?;
                    let tail = placement.len - head - len;
                    copy(memory, gpa + len, file, offset + head + len, tail)?;
                    loaded.mapped += len;
                    loaded.copied += head + tail;
                }
            }
        }
        Ok(loaded)
    }
}

/// Guest address and length of the whole pages of a mappable placement.
fn whole_pages(placement: &Placement) -> Option<(u64, u64)> {
    if !placement.mappable() {
        return None;
    }
    let first = placement.gpa.next_multiple_of(PAGE_SIZE);
    let end = (placement.gpa + placement.len) / PAGE_SIZE * PAGE_SIZE;
    Some((first, end - first))
}

/// A page-aligned run of host memory that belongs to one region of guest RAM.
struct HostPages(*mut libc::c_void);

/// Host memory of guest pages, if one region has them all and its own description does not speak against replacing them.
fn host_pages<M: GuestMemoryBackend>(memory: &M, gpa: u64, len: u64) -> Option<HostPages> {
    let (region, start) = memory.to_region_addr(GuestAddress(gpa))?;
    let last = start.0.checked_add(len - 1)?;
    if !region.address_in_range(MemoryRegionAddress(last)) || region.file_offset().is_some() {
        return None;
    }
    let host = region.get_host_address(start).ok()?;
    // Safe to trust only when the host's pages line up too; RAM on huge pages has a file offset or is `Backing::Other`.
    (host as u64).is_multiple_of(PAGE_SIZE).then_some(HostPages(host.cast()))
}

fn map(host: HostPages, gpa: u64, file: &BootFile, offset: u64, len: u64) -> Result<()> {
    let error = |source| Error::MapFile { path: file.path().into(), offset, len, gpa, source };
    let file_offset =
        libc::off_t::try_from(offset).map_err(|_| error(std::io::ErrorKind::InvalidInput.into()))?;
    // SAFETY: `host_pages` checked that the range lies in one region of guest RAM, which stays mapped while `memory` is
    // borrowed and is unmapped as a whole later. The caller of `load` vouches (`Backing::PrivateAnonymous`) that nobody
    // else depends on the pages that are replaced; Rust code sees guest RAM only through volatile accesses.
    let address = unsafe {
        libc::mmap(
            host.0,
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.fd(),
            file_offset,
        )
    };
    if address == libc::MAP_FAILED { Err(error(std::io::Error::last_os_error())) } else { Ok(()) }
}

fn write<M: GuestMemoryBackend>(memory: &M, gpa: u64, bytes: &[u8]) -> Result<()> {
    let error = |source| Error::GuestMemory { gpa, len: bytes.len() as u64, source };
    Bytes::write_slice(memory, bytes, GuestAddress(gpa)).map_err(error)
}

/// Reads part of a file straight into guest memory.
fn copy<M: GuestMemoryBackend>(memory: &M, gpa: u64, file: &BootFile, offset: u64, len: u64) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let read_error = |source| Error::ReadFile { path: file.path().into(), offset, len, source };
    let mut reader = file.reader().map_err(read_error)?;
    reader.seek(SeekFrom::Start(offset)).map_err(read_error)?;
    memory.read_exact_volatile_from(GuestAddress(gpa), &mut reader, len as usize).map_err(|source| {
        match source {
            GuestMemoryError::IOError(e) => read_error(e),
            source => Error::GuestMemory { gpa, len, source },
        }
    })
}
