//! The host bridge: an identity that operating systems look for at 00.0, and nothing behind it.

use device::{Device, DeviceError, Effect, Grant, Needs, PciIdentity, PciNeeds, Region, Registers};

/// The function at slot 0 of segment 0.
pub(crate) struct HostBridge;

/// What the host bridge shows.
const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x8086,
    device: 0x0d57,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0,
    subsystem: 0,
};

impl HostBridge {
    pub(crate) fn pci_needs() -> PciNeeds {
        PciNeeds {
            identity: IDENTITY,
            bars: Vec::new(),
            capabilities: Vec::new(),
            msix: None,
            apertures: Vec::new(),
        }
    }
}

impl Registers for HostBridge {
    fn read(&self, _: Region, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _: Region, _: u64, _: &[u8]) -> Effect {
        Effect::None
    }
}

impl Device for HostBridge {
    fn needs(&self) -> Needs {
        Needs { pci: Some(Self::pci_needs()), ..Needs::default() }
    }

    fn wire(&mut self, _: Grant) -> Result<(), DeviceError> {
        Ok(())
    }
}
