//! What can be said of a machine without looking at the host: whether each part can work, and whether they fit together.

use std::collections::BTreeMap;

use device::Naming;
use spec::{Facts, Kind, Refusal};

use crate::payload::nothing_to_boot;
use crate::{Plug, VmSpec, pci_segment};

impl VmSpec {
    /// Checks everything that can be checked without the host.
    ///
    /// # Errors
    /// The first thing that cannot work, in the words of the contract.
    pub fn check(&self) -> Result<(), Refusal> {
        let facts = self.facts();
        if let Some(field) = self.first_unsupported() {
            return Err(Refusal::unsupported(field));
        }
        self.payload.as_ref().ok_or_else(nothing_to_boot)?.check()?;
        Plugless::check(&self.cpus, &facts)?;
        Plugless::check(&self.memory, &facts)?;
        if let Some(platform) = &self.platform {
            Plugless::check(platform, &facts)?;
        }
        pci_segment::check(self.pci_segments.as_deref().unwrap_or_default(), &facts)?;
        let mut ids: Vec<&str> = Vec::new();
        for group in self.rate_limit_groups.iter().flatten() {
            Plugless::check(group, &facts)?;
            spec::pci::check_id(&group.id)?;
            claim(&mut ids, &group.id)?;
        }
        for rule in self.landlock_rules.iter().flatten() {
            Plugless::check(rule, &facts)?;
        }
        let mut slots: Vec<(u16, u8)> = Vec::new();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for device in self.devices() {
            let number = counts.entry(device.flag()).or_default();
            *number += 1;
            device.check(&facts).map_err(|e| match e.kind() {
                Kind::Invalid => e.within(describe(device, *number)),
                _ => e, // names the flag by itself
            })?;
            let Some(common) = device.common() else { continue };
            if let Some(id) = &common.id {
                claim(&mut ids, id)?;
            }
            if let Some(slot) = common.pci_device_id {
                let place = (common.pci_segment, slot);
                if slots.contains(&place) {
                    return Err(Refusal::invalid(format!(
                        "PCI device ID {slot} on segment {} is given to two devices",
                        common.pci_segment
                    )));
                }
                slots.push(place);
            }
        }
        let mut macs = Vec::new();
        for mac in self.net.iter().flatten().filter_map(|net| net.mac) {
            if macs.contains(&mac) {
                return Err(Refusal::new(
                    Kind::Conflict,
                    format!("MAC address {} is given to two devices", mac.0),
                ));
            }
            macs.push(mac);
        }
        Ok(())
    }
}

/// Notes that a name is taken.
fn claim<'a>(taken: &mut Vec<&'a str>, id: &'a str) -> Result<(), Refusal> {
    if taken.contains(&id) {
        return Err(Refusal::new(Kind::Conflict, format!("Identifier {id} is not unique")));
    }
    taken.push(id);
    Ok(())
}

/// Tells the user which of their devices is meant; `number` counts those of one flag from 1.
fn describe(device: &dyn Plug, number: usize) -> String {
    let flag = device.flag();
    match (device.common().and_then(|c| c.id.as_ref()), device.naming()) {
        (Some(id), _) => format!("Invalid --{flag} with id {id:?}"),
        (None, Naming::Counted(_)) => format!("Invalid --{flag} number {number}"),
        (None, Naming::Single(_)) => format!("Invalid --{flag}"),
    }
}

/// Checks for option groups that are no devices.
trait Plugless {
    fn check(&self, facts: &Facts) -> Result<(), Refusal>;
}

impl<S: spec::Spec> Plugless for S {
    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        if let Some(key) = spec::Part::unsupported(self) {
            return Err(Refusal::unsupported(format!("--{} {key}", S::FLAG)));
        }
        spec::Spec::check(self, facts)
    }
}
