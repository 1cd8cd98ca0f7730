//! The board of a machine that is saved, and of one that is built from a saved state.

use device::{Device, Placed};
use pci::Plugged;
use spec::{Kind, Refusal};

use super::{Attached, Board, SavedDevice};
use crate::machine::saved::SavedBoard;

impl Board {
    /// The saved state of a device, where a saved machine is built.
    pub(super) fn saved_device(&mut self, id: &str) -> Result<Option<SavedDevice>, Refusal> {
        let Some(saved) = &mut self.saved else { return Ok(None) };
        saved.devices.remove(id).map(Some).ok_or_else(|| missing(&format!("device {id:?}")))
    }

    /// The machine is built. What belongs to no device is loaded, and all else that was saved must have found its device.
    pub(in crate::machine) fn built(&mut self) -> Result<(), Refusal> {
        let Some(SavedBoard { devices, host_bridge, config_ports }) = self.saved.take() else {
            return Ok(());
        };
        self.segments.iter().for_each(|segment| segment.gathered());
        let failed = |e| Refusal::invalid("Cannot restore the PCI bus").because(e);
        if let Some(first) = self.segments.first() {
            first.load(host_bridge).map_err(failed)?;
        }
        self.config_ports.load(config_ports).map_err(failed)?;
        devices.into_keys().next().map_or(Ok(()), |id| {
            Err(Refusal::invalid(format!(
                "There is a state of device {id:?}, which the description of the machine does not have"
            )))
        })
    }

    /// The state of every device, all of which are stopped, and of the bus.
    pub(in crate::machine) fn save(&self) -> Result<SavedBoard, Refusal> {
        let one = |attached: &Attached| {
            let Attached { id, device, placed, function, .. } = attached;
            let failed = || format!("Cannot save device {id:?}");
            let state = device.save().map_err(|e| Refusal::host(failed(), e))?;
            let function = function.as_ref().map(Plugged::save).transpose();
            let function = function.map_err(|e| Refusal::host(failed(), e))?;
            Ok((id.clone(), SavedDevice { placed: placed.clone(), state, function }))
        };
        let devices = self.attached.iter().map(one).collect::<Result<_, Refusal>>()?;
        let failed = |e| Refusal::new(Kind::Bug, "Cannot save the PCI bus").because(e);
        let host_bridge = self.segments.first().and_then(|first| first.save().transpose()).transpose();
        let config_ports = self.config_ports.save().map_err(failed)?;
        Ok(SavedBoard { devices, host_bridge: host_bridge.map_err(failed)?, config_ports })
    }
}

pub(super) fn missing(what: &str) -> Refusal {
    Refusal::invalid(format!("The state of {what} is missing"))
}

/// Lets a device that is placed and wired go on from its saved state.
pub(super) fn load(
    id: &str,
    device: &dyn Device,
    saved: SavedDevice,
    placed: &Placed,
) -> Result<(), Refusal> {
    let failed = || format!("Cannot restore device {id:?}");
    if saved.placed != *placed {
        return Err(Refusal::invalid(format!("it was at {:?}, and would be at {placed:?}", saved.placed))
            .within(failed()));
    }
    if saved.function.is_some() {
        return Err(Refusal::invalid("it is no PCI function, and has the state of one").within(failed()));
    }
    device.load(saved.state).map_err(|e| Refusal::invalid(failed()).because(e))
}
