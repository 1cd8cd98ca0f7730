//! The keys that every PCI device has.

use crate::{Facts, Refusal};

spec::spec! {
    /// Placement and naming, common to all PCI devices.
    pub struct PciCommon: "pci" {
        flatten {}
        fields {
            /// Unique name; chosen automatically when absent; must not start with two underscores.
            "id" => id: Option<String> = None,
            /// PCI segment that the device sits on.
            "pci_segment" => pci_segment: u16 = 0,
            /// PCI slot on that segment (1 to 31 on segment 0); the next free one when absent.
            "pci_device_id" => pci_device_id: Option<u8> = None,
        }
        unsupported { "iommu" => iommu }
    }
}

/// Slots on a PCI bus (PCI Local Bus 3.0 §3.2.2.3.2: five bits).
pub const SLOTS: u8 = 32;

impl PciCommon {
    /// Checks name and placement against the machine.
    ///
    /// # Errors
    /// A name that starts with `__`, a segment or slot that does not exist.
    pub fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        if let Some(id) = &self.id {
            check_id(id)?;
        }
        if self.pci_segment >= facts.pci_segments {
            return Err(Refusal::invalid(format!("Invalid PCI segment id: {}", self.pci_segment)));
        }
        if facts.iommu_segments.contains(&self.pci_segment) {
            return Err(Refusal::invalid(format!(
                "Device is on an IOMMU PCI segment ({}) but not placed behind IOMMU",
                self.pci_segment
            )));
        }
        match self.pci_device_id {
            Some(slot) if slot >= SLOTS => Err(Refusal::invalid(format!(
                "Given PCI device ID ({slot}) is out of the supported range of 0..{SLOTS}"
            ))),
            Some(0) if self.pci_segment == 0 => Err(Refusal::invalid("Given PCI device ID (0) is reserved")),
            _ => Ok(()),
        }
    }
}

/// Checks a name given by the user: those of devices that every machine has begin with two underscores.
///
/// # Errors
/// It does too.
pub fn check_id(id: &str) -> Result<(), Refusal> {
    if id.starts_with("__") {
        return Err(Refusal::invalid(format!("Identifier {id} is not valid")));
    }
    Ok(())
}
