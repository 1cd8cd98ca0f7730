//! A plain summary of the whole machine, for checks that look beyond one device.

use crate::RateLimitGroupSpec;

/// What a device's `check` may know of the rest of the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// vCPUs at boot.
    pub boot_vcpus: u32,
    /// Whether guest memory can be shared with other processes (vhost-user).
    pub shared_memory: bool,
    /// Whether the machine runs already: a device that is added to it must not be waited for as long as one at boot.
    pub running: bool,
    /// PCI segments, 1 or more.
    pub pci_segments: u16,
    /// Segments whose devices sit behind the virtual IOMMU.
    pub iommu_segments: Vec<u16>,
    /// Limits that devices may share.
    pub rate_limit_groups: Vec<RateLimitGroupSpec>,
    /// Whether the guest is to find metadata over its network cards.
    pub metadata: bool,
}

impl Default for Facts {
    fn default() -> Self {
        Facts {
            boot_vcpus: 1,
            shared_memory: false,
            running: false,
            pci_segments: 1,
            iommu_segments: Vec::new(),
            rate_limit_groups: Vec::new(),
            metadata: false,
        }
    }
}
