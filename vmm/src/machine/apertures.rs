//! Memory of devices in the hypervisor: what is behind [`device::aperture`].
//!
//! Guest RAM has the hypervisor's slots from 0 on ([`crate::ram`]); these here are taken from the upper half, so that neither needs
//! to know of the other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{Aperture, DeviceError, MapMode, Mapping, Span};
use hypervisor::{RamFlags, RamSlot, Vm};

/// Gives out slots of the hypervisor.
pub(super) struct Apertures {
    vm: Arc<dyn Vm>,
    /// How many slots there are.
    slots: u32,
    taken: Mutex<BTreeSet<u32>>,
}

impl Apertures {
    /// No slot is taken yet of those from `slots / 2` on.
    pub(super) fn new(vm: Arc<dyn Vm>, slots: u32) -> Arc<Self> {
        Arc::new(Apertures { vm, slots, taken: Mutex::default() })
    }

    /// Room at these addresses, which are nobody else's.
    pub(super) fn open(self: &Arc<Self>, span: Span) -> Arc<dyn Aperture> {
        Arc::new(Open { span, apertures: self.clone(), shown: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<u32> {
        let mut taken = self.taken();
        let slot = (self.slots / 2..self.slots).find(|slot| !taken.contains(slot))?;
        taken.insert(slot);
        Some(slot)
    }
}

/// A mapping that the guest sees.
struct Shown {
    slot: u32,
    /// Where it is in the aperture.
    span: Span,
    #[allow(dead_code, reason = "held so that it stays mapped")]
    mapping: Arc<Mapping>,
}

/// See [`Apertures::open`].
struct Open {
    span: Span,
    apertures: Arc<Apertures>,
    shown: Mutex<Vec<Shown>>,
}

impl Aperture for Open {
    fn span(&self) -> Span {
        self.span
    }

    fn put(&self, offset: u64, mapping: Arc<Mapping>) -> Result<(), DeviceError> {
        let length = mapping.length();
        let error = |why: &str| DeviceError {
            what: format!(
                "cannot show the guest {length:#x} bytes at {:#x}+{offset:#x}: {why}",
                self.span.base
            ),
            source: None,
        };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let span = Span { base: self.span.base.saturating_add(offset), length };
        if !self.span.contains(&span) || shown.iter().any(|other| other.span.overlaps(&span)) {
            return Err(error("there is no room"));
        }
        let slot = self.apertures.take().ok_or_else(|| error("the hypervisor has no slot left"))?;
        let ram = RamSlot {
            slot,
            guest_address: span.base,
            host_address: mapping.address(),
            size: length,
            flags: RamFlags { readonly: mapping.mode() == MapMode::ReadOnly, log_dirty: false },
        };
        // SAFETY: the mapping is held in `shown` until the slot is taken away; nothing in this program refers to what it maps.
        if let Err(e) = unsafe { self.apertures.vm.map_ram(&ram) } {
            self.apertures.taken().remove(&slot);
            return Err(DeviceError::new(error("the hypervisor refuses").what, e));
        }
        shown.push(Shown { slot, span, mapping });
        Ok(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let shown = self.shown.get_mut().unwrap_or_else(PoisonError::into_inner);
        for Shown { slot, mapping, .. } in shown.drain(..) {
            match self.apertures.vm.unmap_ram(slot) {
                Ok(()) => drop(self.apertures.taken().remove(&slot)),
                Err(e) => {
                    // The guest may still see it, so it must stay.
                    log::error!("cannot take the memory in slot {slot} from the guest: {e}");
                    std::mem::forget(mapping);
                }
            }
        }
    }
}
