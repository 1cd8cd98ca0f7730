//! Devices that come and go: how the description follows, and what is told of it.
//!
//! The description changes at once, also while the guest still holds on to a device, so that a reboot goes without it.

use api::bodies::{RemoveDevice, ResizeDisk};
use api::{PciDeviceInfo, Reply};
use catalog::Addition;
use device::Naming;
use spec::{Facts, Kind, Refusal};

use super::{Control, Running, done, json, no_vm, state};

/// Sizes of disks are counted in these.
const SECTOR: u64 = 512;

/// The text around a refusal to add a device of this kind.
pub(super) fn not_added(flag: &str) -> String {
    let what = match flag {
        "disk" => "disk".to_owned(),
        "net" => "network device".to_owned(),
        other => format!("{other} device"),
    };
    format!("The {what} could not be added to the VM")
}

impl Control {
    /// Adds a device to the description, and to the machine if there is one.
    pub(super) fn add(&mut self, addition: Addition) -> Result<Reply, Refusal> {
        let mut spec = self.spec.clone().ok_or_else(no_vm)?;
        self.refuse_paused()?;
        let facts = Facts { running: self.running.is_some(), ..spec.facts() };
        let last = addition.add(&mut spec)?;
        if self.running.is_none() {
            spec.complete();
        }
        spec.check().map_err(|e| e.within("Failed to validate config"))?;
        let plug = last(&mut spec)
            .ok_or_else(|| Refusal::new(Kind::Bug, "The description lost the device that was added"))?;
        self.paths.check(&plug.paths())?;
        let Some(running) = &mut self.running else {
            self.spec = Some(spec);
            return Ok(Reply::Done);
        };
        if plug.shares_memory() && running.behind.pager.as_ref().is_some_and(|pager| !pager.done()) {
            return Err(Refusal::new(
                Kind::Busy,
                "Memory is still on its way from the snapshot, and no other process can work on it until it is there",
            ));
        }
        let info = running.machine.add(plug, &facts, &self.kept, &mut self.names)?;
        self.spec = Some(spec);
        self.record("device-added", &info);
        json(&info)
    }

    /// Takes a device out of the description, and asks the guest for it if there is one.
    pub(super) fn remove(&mut self, body: &RemoveDevice) -> Result<Reply, Refusal> {
        self.refuse_paused()?;
        let name = body.id.as_str();
        let spec = self.spec.as_mut().ok_or_else(no_vm)?;
        if let Some(running) = &mut self.running {
            let id = running.machine.ask_back(name)?;
            spec.remove(&id);
            return Ok(Reply::Done);
        }
        if spec.remove(name) {
            self.names.forget(name);
            return Ok(Reply::Done);
        }
        let stays = spec.devices().iter().any(|d| matches!(d.naming(), Naming::Single(own) if own == name));
        Err(match name {
            name if stays => Refusal::invalid(format!("Device {name:?} cannot be removed")),
            name => Refusal::new(Kind::Absent, format!("No device with id {name:?} to remove")),
        })
    }

    /// Changes the size of a disk.
    pub(super) fn resize_disk(&mut self, body: &ResizeDisk) -> Result<Reply, Refusal> {
        let refusal = self.not_running();
        let running = self.running.as_ref().ok_or(refusal)?;
        let size = body.desired_size;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(Refusal::invalid(format!("Size {size} is no multiple of {SECTOR} bytes")));
        }
        done(running.machine.resize_device(&body.id, size, running.paused))
    }

    /// The guest ejected what is in these slots.
    pub(super) fn ejected(&mut self, segment: u16, slots: u32) {
        let Some(running) = &mut self.running else { return };
        for info in running.machine.ejected(segment, slots) {
            // A guest may give back what it was not asked for.
            if let Some(spec) = &mut self.spec {
                spec.remove(&info.id);
            }
            self.gone(&info);
        }
    }

    /// Ends the machine. Devices that the guest was asked for and had not let go of are gone now as well.
    pub(super) fn end_machine(&mut self, running: Running) {
        let leaving = running.machine.leaving();
        drop(running);
        leaving.iter().for_each(|info| self.gone(info));
    }

    /// Nothing is left of a device.
    fn gone(&mut self, info: &PciDeviceInfo) {
        self.kept.forget(&info.id);
        self.names.forget(&info.id);
        self.record("device-removed", info);
    }

    fn record(&self, event: &str, PciDeviceInfo { id, bdf }: &PciDeviceInfo) {
        self.setup.monitor.record("vm", event, &[("id", id), ("bdf", bdf)]);
    }

    /// A paused guest sees nothing come and lets nothing go.
    fn refuse_paused(&self) -> Result<(), Refusal> {
        match &self.running {
            Some(running) if running.paused => {
                Err(state("VM is paused: devices come and go only while it runs; resume it first"))
            }
            _ => Ok(()),
        }
    }
}
