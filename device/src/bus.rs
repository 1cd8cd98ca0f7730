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
mod tests;
