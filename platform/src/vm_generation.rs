//! The VM generation ID: 16 bytes that differ whenever the guest goes on from a saved state, so that two machines restored from one
//! do not draw the same random numbers (Microsoft, "Virtual Machine Generation ID", 2012).
//!
//! A new ID is put into guest memory when the device is wired, at boot as at restore; the event device tells a restored guest to
//! look ([`device::grant::Ring::Generation`]). The guest may overwrite the bytes, and harms only itself.

use acpi_tables::aml;
use device::{Device, DeviceError, Effect, Grant, Needs, Placed, Region, Registers, TableSink};
use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress};

/// Bytes of an ID.
pub const LENGTH: usize = 16;

/// See the module.
pub struct VmGeneration {
    address: u64,
}

impl VmGeneration {
    /// An ID at this guest address: in memory that the guest is not told to use, 8-byte aligned, in a page without code.
    pub fn new(address: u64) -> Self {
        VmGeneration { address }
    }
}

impl Registers for VmGeneration {
    fn read(&self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _region: Region, _offset: u64, _data: &[u8]) -> Effect {
        Effect::None
    }
}

impl Device for VmGeneration {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn wire(&mut self, grant: Grant) -> Result<(), DeviceError> {
        // A GUID's first fields are stored with the low byte first.
        let id = Uuid::new_v4().to_bytes_le();
        grant.ram.map().write_slice(&id, GuestAddress(self.address)).map_err(|e| {
            DeviceError::new(format!("cannot write the VM generation ID at {:#x}", self.address), e)
        })
    }

    fn describe(&self, _placed: &Placed, sink: &mut dyn TableSink) {
        let (low, high) = (self.address as u32, (self.address >> 32) as u32);
        sink.system_bus(&aml::Device::new(
            "VGEN".into(),
            vec![
                &aml::Name::new("_HID".into(), &"VMGENCTR"),
                &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
                &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &high])),
            ],
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Sink, grant};

    #[test]
    fn each_wiring_draws_another_id() {
        let mut seen = Vec::new();
        for _ in 0..8 {
            let (grant, _) = grant(Vec::new());
            let ram = grant.ram.clone();
            VmGeneration::new(0x800).wire(grant).unwrap();
            let mut id = [0; LENGTH];
            ram.map().read_slice(&mut id, GuestAddress(0x800)).unwrap();
            assert!(id != [0; LENGTH] && !seen.contains(&id));
            seen.push(id);
        }
        assert!(VmGeneration::new(u64::MAX - 3).wire(grant(Vec::new()).0).is_err());
    }

    #[test]
    fn the_tables_tell_where_it_is() {
        let mut sink = Sink::default();
        VmGeneration::new(0xe_f000).describe(&Placed::default(), &mut sink);
        assert!(sink.has(b"VM_Gen_Counter"));
        // Name(ADDR, Package(2) {0x000ef000, 0})
        assert!(sink.has(b"\x08ADDR\x12\x08\x02\x0c\x00\xf0\x0e\x00\x00"));
    }
}
