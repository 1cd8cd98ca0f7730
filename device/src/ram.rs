//! Guest memory, as devices see it.

use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

/// One state of the guest's memory map.
pub type RamMap = GuestMemoryMmap<()>;

/// The guest's memory. Cheap to clone; regions may come and go, so take a [`Ram::map`] for one piece of work and let it go.
#[derive(Clone)]
pub struct Ram(GuestMemoryAtomic<RamMap>);

impl Ram {
    /// Memory that starts as `map`.
    pub fn new(map: RamMap) -> Self {
        Ram(GuestMemoryAtomic::new(map))
    }

    /// The present map; it stays valid while held, also when regions go.
    pub fn map(&self) -> Arc<RamMap> {
        self.0.memory().into_inner()
    }

    /// The shared handle, for those who replace the map.
    pub fn atomic(&self) -> &GuestMemoryAtomic<RamMap> {
        &self.0
    }
}
