//! Address decoding: who answers at a port or a memory address.
//!
//! Lookups happen on every exit of every vCPU and take no lock: the map is immutable and replaced as a whole when a device comes,
//! goes or moves, which is rare.

use std::fmt;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use thiserror::Error;

use crate::{Effect, Region, Registers};

/// Ports or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// I/O ports (x86).
    Port,
    /// Memory-mapped registers.
    Memory,
}

/// Why a range could not be claimed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// Somebody already answers there.
    #[error("{space:?} range {base:#x}+{length:#x} overlaps {other:#x}+{other_length:#x}")]
    Overlap {
        /// The space.
        space: Space,
        /// Base asked for.
        base: u64,
        /// Length asked for.
        length: u64,
        /// Base in place.
        other: u64,
        /// Length in place.
        other_length: u64,
    },
    /// Zero length, or beyond the end of the space.
    #[error("{base:#x}+{length:#x} is no range")]
    Range {
        /// Base asked for.
        base: u64,
        /// Length asked for.
        length: u64,
    },
}

#[derive(Clone)]
struct Entry {
    base: u64,
    length: u64,
    region: Region,
    owner: Arc<dyn Registers>,
}

/// One address space.
pub struct Bus {
    space: Space,
    map: ArcSwap<Vec<Entry>>,
    // Taken by those who change the map, never by a lookup.
    change: Mutex<()>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = self.map.load();
        f.debug_list()
            .entries(map.iter().map(|e| format!("{:#x}+{:#x} {:?}", e.base, e.length, e.region)))
            .finish()
    }
}

impl Bus {
    /// An empty space.
    pub fn new(space: Space) -> Self {
        Bus { space, map: ArcSwap::from_pointee(Vec::new()), change: Mutex::new(()) }
    }

    /// Lets `owner` answer for `length` bytes from `base`.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps another.
    pub fn claim(
        &self,
        base: u64,
        length: u64,
        owner: Arc<dyn Registers>,
        region: Region,
    ) -> Result<(), BusError> {
        let last = length
            .checked_sub(1)
            .and_then(|l| base.checked_add(l))
            .ok_or(BusError::Range { base, length })?;
        let _change = self.change.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = self.map.load();
        let at = old.partition_point(|e| e.base <= base);
        let before = at.checked_sub(1).map(|i| &old[i]).filter(|e| base - e.base < e.length);
        let after = old.get(at).filter(|e| e.base <= last);
        if let Some(other) = before.or(after) {
            return Err(BusError::Overlap {
                space: self.space,
                base,
                length,
                other: other.base,
                other_length: other.length,
            });
        }
        let mut map = Vec::with_capacity(old.len() + 1);
        map.extend_from_slice(&old);
        map.insert(at, Entry { base, length, region, owner });
        self.map.store(Arc::new(map));
        Ok(())
    }

    /// Takes the range that begins at `base` away; tells whether there was one.
    pub fn release(&self, base: u64) -> bool {
        let _change = self.change.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = self.map.load();
        let Ok(at) = old.binary_search_by_key(&base, |e| e.base) else { return false };
        let mut map = (**old).clone();
        map.remove(at);
        self.map.store(Arc::new(map));
        true
    }

    /// Reads on the guest's behalf; what nobody claims reads as all ones. Tells whether somebody answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let map = self.map.load();
        match find(&map, address) {
            Some(e) => {
                let offset = address - e.base;
                let within = usize::try_from(e.length - offset).unwrap_or(usize::MAX).min(data.len());
                let (inside, beyond) = data.split_at_mut(within);
                e.owner.read(e.region, offset, inside);
                beyond.fill(0xff);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes on the guest's behalf; `None` when nobody answers there.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Effect> {
        let map = self.map.load();
        let e = find(&map, address)?;
        let offset = address - e.base;
        let within = usize::try_from(e.length - offset).unwrap_or(usize::MAX).min(data.len());
        Some(e.owner.write(e.region, offset, &data[..within]))
    }
}

fn find(map: &[Entry], address: u64) -> Option<&Entry> {
    let at = map.partition_point(|e| e.base <= address).checked_sub(1)?;
    let entry = &map[at];
    (address - entry.base < entry.length).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl Registers for Echo {
        fn read(&self, _: Region, offset: u64, data: &mut [u8]) {
            for (i, byte) in data.iter_mut().enumerate() {
                *byte = self.0.wrapping_add(offset as u8).wrapping_add(i as u8);
            }
        }

        fn write(&self, _: Region, _: u64, _: &[u8]) -> Effect {
            Effect::Reset
        }
    }

    fn echo(n: u8) -> Arc<dyn Registers> {
        Arc::new(Echo(n))
    }

    #[test]
    fn the_owner_of_an_address_answers_and_nobody_elsewhere() {
        let bus = Bus::new(Space::Memory);
        bus.claim(0x1000, 0x10, echo(0), Region::Window(0)).unwrap();
        bus.claim(0x1010, 0x10, echo(0x80), Region::Window(0)).unwrap();
        let mut data = [0; 2];
        assert!(bus.read(0x1002, &mut data));
        assert_eq!(data, [2, 3]);
        assert!(bus.read(0x1010, &mut data));
        assert_eq!(data, [0x80, 0x81]);
        assert!(!bus.read(0xfff, &mut data));
        assert_eq!(data, [0xff; 2]);
        assert_eq!(bus.write(0x101f, &[1, 2, 3, 4]), Some(Effect::Reset));
        assert_eq!(bus.write(0x1020, &[0]), None);
    }

    #[test]
    fn an_access_that_leaves_the_range_is_cut_and_reads_ones_beyond() {
        let bus = Bus::new(Space::Port);
        bus.claim(0x60, 1, echo(7), Region::Window(0)).unwrap();
        let mut data = [0; 4];
        bus.read(0x60, &mut data);
        assert_eq!(data, [7, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let bus = Bus::new(Space::Memory);
        bus.claim(0x1000, 0x1000, echo(0), Region::Bar(0)).unwrap();
        for (base, length) in [(0x1000, 1), (0x1fff, 1), (0xfff, 2), (0, 0x4000)] {
            assert!(matches!(
                bus.claim(base, length, echo(0), Region::Bar(0)),
                Err(BusError::Overlap { .. })
            ));
        }
        for (base, length) in [(0, 0), (u64::MAX, 2)] {
            assert!(matches!(bus.claim(base, length, echo(0), Region::Bar(0)), Err(BusError::Range { .. })));
        }
        assert!(bus.release(0x1000));
        assert!(!bus.release(0x1000));
        bus.claim(0, 0x4000, echo(0), Region::Bar(0)).unwrap();
    }
}
