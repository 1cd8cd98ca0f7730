//! A part of a file, mapped into this process to be shown to the guest ([`crate::aperture`]).
//!
//! The program itself never reads or writes what is mapped: the file may become shorter under it, which only the guest may feel.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::Span;

/// A mapping begins at a multiple of this in the process, so that the hypervisor can use large pages.
pub const MAPPING_ALIGN: u64 = 2 << 20;

/// What becomes of writes to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapMode {
    /// They reach the file, which is open for writing.
    Shared,
    /// They go to copies that nobody else sees.
    Private,
    /// There are none: the host lets nothing through.
    ReadOnly,
}

/// See the module. It is unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    // All that was taken from the address space, and the part of it that is the file's.
    taken: (*mut libc::c_void, usize),
    address: *mut u8,
    length: usize,
    mode: MapMode,
}

// SAFETY: the addresses are only handed out as numbers; what is behind them is not accessed here.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file, a multiple of 4 KiB.
    ///
    /// # Errors
    /// What the host answered: no room in the address space, or a file that cannot be mapped so.
    pub fn of_file(file: &File, length: u64, mode: MapMode) -> io::Result<Self> {
        let too_large = |_| io::Error::from_raw_os_error(libc::ENOMEM);
        let length = usize::try_from(length).map_err(too_large)?;
        let align = usize::try_from(MAPPING_ALIGN).map_err(too_large)?;
        let room = length.checked_add(align).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a fresh range of addresses, which nobody can access.
        let taken = unsafe {
            libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if taken == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // At most `align - 1` bytes further on, so `length` bytes lie within the range.
        let address = taken.cast::<u8>().wrapping_add(taken.cast::<u8>().align_offset(align));
        // From here on dropping it gives the range back.
        let mapping = Mapping { taken: (taken, room), address, length, mode };
        let protection = match mode {
            MapMode::ReadOnly => libc::PROT_READ,
            MapMode::Shared | MapMode::Private => libc::PROT_READ | libc::PROT_WRITE,
        };
        let sharing = match mode {
            // No memory is set aside for copies that are never made.
            MapMode::Private => libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            MapMode::Shared | MapMode::ReadOnly => libc::MAP_SHARED,
        };
        // SAFETY: replaces a part of the range that was just taken, to which nobody refers.
        let mapped = unsafe {
            libc::mmap(address.cast(), length, protection, sharing | libc::MAP_FIXED, file.as_raw_fd(), 0)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// Where it is in this process.
    pub fn address(&self) -> *const u8 {
        self.address
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// What becomes of writes.
    pub fn mode(&self) -> MapMode {
        self.mode
    }

    /// The addresses in this process.
    pub fn span(&self) -> Span {
        Span { base: self.address as u64, length: self.length as u64 }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (address, length) = self.taken;
        // SAFETY: the range is ours, and whoever showed it to a guest held a handle to this value until the guest had lost it.
        if unsafe { libc::munmap(address, length) } != 0 {
            log::error!("cannot unmap {length:#x} bytes: {}", io::Error::last_os_error());
        }
    }
}
