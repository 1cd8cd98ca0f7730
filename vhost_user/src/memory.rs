//! The guest's memory, as the front end shares it: files that are mapped here too.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use device::ram::RamMap;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::PeerError;
use crate::fault::Guard;
use crate::wire::RegionBody;

/// Most regions at once.
pub(crate) const MAX_REGIONS: usize = 256;

/// A region, mapped.
pub(crate) struct Region {
    body: RegionBody,
    /// Before the mapping, which must not go first.
    _guard: Guard,
    mapped: Arc<GuestRegionMmap<()>>,
}

impl Region {
    /// Maps a region; `bell` rings when the front end takes it away.
    pub(crate) fn map(body: RegionBody, file: OwnedFd, bell: &EventFd) -> Result<Region, PeerError> {
        let failed = |what: String| PeerError::Memory { guest: body.guest, size: body.size, what };
        let mapping = map_file(file, body.offset, body.size).map_err(failed)?;
        if body.guest.checked_add(body.size).is_none() || body.user.checked_add(body.size).is_none() {
            return Err(failed("it ends behind all addresses".to_owned()));
        }
        let guard = Guard::new(mapping.as_ptr(), mapping.size(), bell).map_err(|e| failed(e.to_string()))?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(body.guest))
            .ok_or_else(|| failed("it ends behind all addresses".to_owned()))?;
        Ok(Region { body, _guard: guard, mapped: Arc::new(mapped) })
    }

    fn overlaps(&self, other: &Region) -> bool {
        let (a, b) = (&self.body, &other.body);
        // The sums were checked when the regions were mapped.
        let overlap = |x: u64, y: u64| x < y + b.size && y < x + a.size;
        overlap(a.guest, b.guest) || overlap(a.user, b.user)
    }
}

/// Maps part of a file, all of which must be there.
pub(crate) fn map_file(file: OwnedFd, offset: u64, size: u64) -> Result<MmapRegion<()>, String> {
    let file = File::from(file);
    let end = offset.checked_add(size).filter(|_| size > 0).ok_or("it has no size that can be")?;
    let there = file.metadata().map_err(|e| e.to_string())?.len();
    if end > there {
        return Err(format!("it ends at {end:#x} of a file of {there:#x} bytes"));
    }
    let size = usize::try_from(size).map_err(|e| e.to_string())?;
    MmapRegion::from_file(FileOffset::new(file, offset), size).map_err(|e| format!("cannot map it: {e}"))
}

/// All of them, in the order of guest addresses.
#[derive(Default)]
pub(crate) struct Memory(Vec<Region>);

impl Memory {
    /// Adds a region.
    pub(crate) fn add(&mut self, region: Region) -> Result<(), PeerError> {
        let RegionBody { guest, size, .. } = region.body;
        let refuse = |what: &str| Err(PeerError::Memory { guest, size, what: what.to_owned() });
        if self.0.len() >= MAX_REGIONS {
            return refuse("there are too many regions");
        }
        if self.0.iter().any(|other| other.overlaps(&region)) {
            return refuse("it overlaps another region");
        }
        let place = self.0.partition_point(|other| other.body.guest < guest);
        self.0.insert(place, region);
        Ok(())
    }

    /// Whether there is this region; where it is in its file is not told again.
    pub(crate) fn find(&self, body: RegionBody) -> Option<usize> {
        self.0.iter().position(|r| RegionBody { offset: body.offset, ..r.body } == body)
    }

    /// Takes a region out.
    pub(crate) fn remove(&mut self, index: usize) -> Region {
        self.0.remove(index)
    }

    /// The guest address of `length` bytes that the front end has at `user`.
    pub(crate) fn guest_address(&self, user: u64, length: u64) -> Option<u64> {
        self.0.iter().find_map(|region| {
            let offset = user.checked_sub(region.body.user)?;
            let fits = offset.checked_add(length)? <= region.body.size;
            fits.then(|| region.body.guest + offset)
        })
    }

    /// The map for the device.
    pub(crate) fn to_map(&self) -> RamMap {
        self.with(None)
    }

    /// The map, and one more region, at [`Memory::gap`].
    pub(crate) fn with(&self, extra: Option<Arc<GuestRegionMmap<()>>>) -> RamMap {
        let mut regions: Vec<_> = self.0.iter().map(|region| region.mapped.clone()).chain(extra).collect();
        regions.sort_by_key(|region| vm_memory::GuestMemoryRegion::start_addr(&**region));
        if regions.is_empty() {
            return RamMap::new();
        }
        // They do not overlap, which is all that could be wrong.
        RamMap::from_arc_regions(regions).unwrap_or_else(|_| RamMap::new())
    }

    /// An address at which there is nothing for this many bytes.
    pub(crate) fn gap(&self, length: u64) -> Option<u64> {
        let ends = self.0.iter().map(|region| region.body.guest + region.body.size);
        std::iter::once(0).chain(ends).filter_map(|end| end.checked_next_multiple_of(16)).find(|start| {
            let Some(end) = start.checked_add(length) else { return false };
            self.0.iter().all(|r| end <= r.body.guest || r.body.guest + r.body.size <= *start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// Memory with regions at these places.
    fn memory(regions: &[(u64, u64)], user: fn(u64) -> u64) -> Memory {
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut memory = Memory::default();
        for (guest, size) in regions {
            // SAFETY: the name is a C string; the descriptor is new.
            let file =
                unsafe { File::from_raw_fd(libc::memfd_create(c"memory".as_ptr(), libc::MFD_CLOEXEC)) };
            file.set_len(*size).unwrap();
            let body = RegionBody { guest: *guest, size: *size, user: user(*guest), offset: 0 };
            memory.add(Region::map(body, file.into(), &bell).unwrap()).unwrap();
        }
        memory
    }

    #[test]
    fn a_gap_is_where_there_is_nothing() {
        let gap = |regions: &[(u64, u64)], length| memory(regions, |guest| guest).gap(length);
        assert_eq!(Memory::default().gap(100), Some(0));
        assert_eq!(gap(&[(0, 0x1001)], 100), Some(0x1010));
        assert_eq!(gap(&[(0x1000, 0x1000)], 0x1000), Some(0));
        assert_eq!(gap(&[(0x1000, 0x1000)], 0x1001), Some(0x2000));
        assert_eq!(gap(&[(0, 0x1000), (0x1800, 0x1000)], 0x801), Some(0x2800));
        let last = u64::MAX - 0x1000;
        assert_eq!(gap(&[(0, 0x1000), (last, 0x1000)], 0x2000), Some(0x1000));
        assert_eq!(gap(&[(0, 0x1000), (last, 0x1000)], u64::MAX), None);
    }

    #[test]
    fn addresses_of_the_front_end_are_found_only_if_all_of_it_is_there() {
        let memory = memory(&[(0x10000, 0x1000), (0x40000, 0x1000)], |guest| guest / 2);
        assert_eq!(memory.guest_address(0x8000, 0x1000), Some(0x10000));
        assert_eq!(memory.guest_address(0x20ff0, 16), Some(0x40ff0));
        for (user, length) in [(0x7fff, 1), (0x8000, 0x1001), (0x9000, 1), (u64::MAX, 2), (0x8001, u64::MAX)]
        {
            assert_eq!(memory.guest_address(user, length), None, "{user:#x}");
        }
    }
}
