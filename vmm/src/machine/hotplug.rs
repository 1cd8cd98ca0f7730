//! Devices that come and go while the machine runs.
//!
//! ```text
//!   add:     attach, start ─► the guest is told, and looks
//!   remove:  the guest is asked ─► it ejects: the function is hidden on the vCPU's thread ─► detach on the control thread
//! ```
//!
//! A guest may eject what it was not asked for; it may also never eject.

use api::PciDeviceInfo;
use api::info::bdf;
use catalog::Plug;
use device::grant::{Bell, Ring, Slots};
use device::{Kept, PlacedPci};
use spec::{Facts, Kind, Refusal};

use super::board::Attached;
use super::{Machine, Names, tree};

impl Machine {
    /// Builds a device, plugs it in, and tells the guest. What was chosen automatically is written back. On an error nothing of it
    /// is left.
    ///
    /// # Errors
    /// What the device needs and cannot have.
    pub fn add(
        &mut self,
        plug: &mut dyn Plug,
        facts: &Facts,
        kept: &Kept,
        names: &mut Names,
    ) -> Result<PciDeviceInfo, Refusal> {
        // Names of devices that are leaving are not in the description any more.
        let present: Vec<String> = self.board.attached().iter().map(|a| a.id.clone()).collect();
        let taken = |name: &str| present.iter().any(|id| id == name);
        // A device that is there already keeps what it has, however the addition of another by its name ends.
        if let Some(id) = plug.common().and_then(|c| c.id.clone()).filter(|id| taken(id)) {
            return Err(Refusal::new(Kind::Conflict, format!("Identifier {id} is not unique")));
        }
        // One that the guest has not let go of is not in the description any more, and still there.
        if plug.alone() && self.board.attached().iter().any(|a| a.flag == Some(plug.flag())) {
            return Err(catalog::hot::too_many(plug.flag()));
        }
        let added = self.board.add(plug, facts, kept, names, &taken, false);
        let shown = added.and_then(|id| self.show(&id).inspect_err(|_| drop(self.board.detach(&id))));
        shown.inspect_err(|_| {
            if let Some(id) = plug.common().and_then(|c| c.id.as_deref()) {
                kept.forget(id);
                names.forget(id);
            }
        })
    }

    /// Starts a device that was plugged in, and tells the guest.
    fn show(&self, id: &str) -> Result<PciDeviceInfo, Refusal> {
        let (slots, bell) = self.hotplug()?;
        let attached = self.board.find(id);
        let attached =
            attached.ok_or_else(|| Refusal::new(Kind::Bug, format!("Device {id:?} was not plugged in")))?;
        let pci = place(attached)?;
        attached.device.start().map_err(|e| Refusal::host(format!("Cannot start device {id:?}"), e))?;
        slots.came(pci.segment, pci.slot);
        bell.ring(Ring::Pci);
        Ok(PciDeviceInfo { id: id.to_owned(), bdf: bdf(pci.segment, pci.slot) })
    }

    /// Asks the guest to let go of a device, once more if it was asked before. `name` is the device's or its PCI function's.
    /// Tells the device's name.
    ///
    /// # Errors
    /// There is no such device, or it is one that stays.
    pub fn ask_back(&mut self, name: &str) -> Result<String, Refusal> {
        let id = self.resolve(name).ok_or_else(|| no_device(name))?.id.clone();
        let (slots, bell) = self.hotplug()?;
        let attached = self.board.find(&id).ok_or_else(|| no_device(name))?;
        if !attached.removable {
            return Err(Refusal::invalid(format!("Device {id:?} cannot be removed")));
        }
        let pci = place(attached)?;
        slots.ask_back(pci.segment, pci.slot);
        bell.ring(Ring::Pci);
        if let Some(attached) = self.board.attached_mut().iter_mut().find(|a| a.id == id) {
            attached.leaving = true;
        }
        Ok(id)
    }

    /// Drops the devices in these slots (bit n: slot n), whose functions the guest ejected. Tells which they were.
    pub fn ejected(&mut self, segment: u16, slots: u32) -> Vec<PciDeviceInfo> {
        let gone = |attached: &&Attached| {
            let at = attached.placed.pci.as_ref();
            attached.removable && at.is_some_and(|p| p.segment == segment && slots >> (p.slot % 32) & 1 != 0)
        };
        let ids: Vec<String> = self.board.attached().iter().filter(gone).map(|a| a.id.clone()).collect();
        let detached = ids.into_iter().filter_map(|id| {
            let pci = self.board.detach(&id)?.pci?;
            if let Ok((slots, _)) = self.hotplug() {
                slots.gone(pci.segment, pci.slot);
            }
            Some(PciDeviceInfo { id, bdf: bdf(pci.segment, pci.slot) })
        });
        detached.collect()
    }

    /// The devices that the guest was asked to let go of and has not yet: they are not in the description any more.
    pub fn leaving(&self) -> Vec<PciDeviceInfo> {
        let leaving = self.board.attached().iter().filter(|a| a.leaving);
        let info = |a: &Attached| {
            let pci = a.placed.pci.as_ref()?;
            Some(PciDeviceInfo { id: a.id.clone(), bdf: bdf(pci.segment, pci.slot) })
        };
        leaving.filter_map(info).collect()
    }

    /// Whether the guest uses the device with this name, or `None` if there is no such device.
    pub fn in_use(&self, name: &str) -> Option<bool> {
        self.resolve(name).map(|attached| attached.device.in_use())
    }

    /// Changes the size of a device to this many bytes; it stands still meanwhile, and afterwards if `paused`.
    ///
    /// # Errors
    /// There is no such device, it has no size, it cannot have this one, or the host refused.
    pub fn resize_device(&self, id: &str, bytes: u64, paused: bool) -> Result<(), Refusal> {
        let absent = || Refusal::new(Kind::Absent, format!("No disk with id {id:?} to resize"));
        let device = &self.board.find(id).ok_or_else(absent)?.device;
        let resize = device.resize().ok_or_else(absent)?;
        let failed = |e| Refusal::host(format!("Cannot resize device {id:?}"), e);
        device.stop().map_err(failed)?;
        let resized = resize.resize(bytes);
        if !paused {
            device.start().map_err(failed)?;
        }
        resized
    }

    /// A device by its own name or that of its PCI function.
    fn resolve(&self, name: &str) -> Option<&Attached> {
        let behind = || {
            let id = name.strip_prefix(tree::FUNCTION)?;
            self.board.find(id).filter(|a| a.virtio)
        };
        self.board.find(name).or_else(behind)
    }

    fn hotplug(&self) -> Result<(&dyn Slots, &dyn Bell), Refusal> {
        let devices = || self.board.attached().iter();
        let slots = devices().find_map(|a| a.device.slots());
        let bell = devices().find_map(|a| a.device.bell());
        slots.zip(bell).ok_or_else(|| Refusal::new(Kind::Bug, "The machine has no hotplug controller"))
    }
}

fn place(attached: &Attached) -> Result<&PlacedPci, Refusal> {
    let pci = attached.placed.pci.as_ref();
    pci.ok_or_else(|| Refusal::new(Kind::Bug, format!("Device {:?} is not on PCI", attached.id)))
}

fn no_device(name: &str) -> Refusal {
    Refusal::new(Kind::Absent, format!("No device with id {name:?} to remove"))
}
