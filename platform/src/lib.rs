//! The platform's own devices: what a PC has on its board besides PCI.
//!
//! One file per device. Each states its fixed ports or addresses and pins ([`device::Needs`]) and describes itself in the
//! firmware tables; none of them is found by probing. All of them answer every offset and width without panic, and remember a
//! bounded amount of what the guest writes.

pub mod acpi_pm;
pub mod cmos;
pub mod debug_console;
pub mod debug_port;
pub mod firmware_debug;
pub mod ged;
pub mod i8042;
pub mod ioapic;
pub mod pci_hotplug;
pub mod serial;
mod uart;
pub mod vm_generation;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod state_tests;

pub use acpi_pm::AcpiPm;
pub use cmos::Cmos;
pub use debug_console::DebugConsoleSpec;
pub use debug_port::DebugPort;
pub use firmware_debug::FirmwareDebug;
pub use ged::Ged;
pub use i8042::I8042;
pub use ioapic::Ioapic;
pub use pci_hotplug::PciHotplug;
pub use serial::SerialSpec;
pub use vm_generation::VmGeneration;

use device::{Device, DeviceError, Node, State};

/// Most memory that a machine has below the hole at 3 GiB.
const LOW_MEMORY: u64 = 3 << 30;

/// What the devices that every machine has are told of it.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Bytes of memory.
    pub memory: u64,
    /// PCI segments.
    pub segments: u16,
    /// Guest address of the VM generation ID.
    pub generation: u64,
}

/// The devices that every machine has, by name and in the order of their addresses. The interrupt controller is apart: everybody's
/// lines lead to it ([`Ioapic::new`]).
pub fn standard(frame: Frame) -> Vec<(&'static str, Box<dyn Device>)> {
    let Frame { memory, segments, generation } = frame;
    let low = memory.min(LOW_MEMORY);
    vec![
        ("__i8042", Box::new(I8042)),
        ("__cmos", Box::new(Cmos::new(low, memory - low))),
        ("__debug_port", Box::new(DebugPort::new())),
        ("__firmware_debug", Box::new(FirmwareDebug::new())),
        ("__acpi_pm", Box::new(AcpiPm::new())),
        ("__pci_hotplug", Box::new(PciHotplug::new(segments))),
        ("__ged", Box::new(Ged::new())),
        ("__vm_generation", Box::new(VmGeneration::new(generation))),
    ]
}

/// The node of a device's state, as [`Device::save`] gives it.
fn save<S: State>(state: &S) -> Result<Option<Node>, DeviceError> {
    let failed = |e| DeviceError::new(format!("cannot save the state of kind {:?}", S::KIND), e);
    Node::of(state).map(Some).map_err(failed)
}

/// Answers an access of any width with the bytes of a 32-bit register at offset 0.
fn read_u32(value: u32, offset: u64, data: &mut [u8]) {
    let bytes = value.to_le_bytes();
    for (at, slot) in addresses(offset).zip(data) {
        *slot = usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0);
    }
}

/// The offsets of the bytes of an access.
fn addresses(offset: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |n| offset.wrapping_add(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::{Bus, Space};
    use std::sync::Arc;

    #[test]
    fn the_standard_devices_have_names_of_their_own_and_do_not_overlap() {
        let ports = Bus::new(Space::Port);
        let mut names = Vec::new();
        for (name, device) in standard(Frame { memory: 1 << 30, segments: 1, generation: 0x1000 }) {
            let needs = device.needs();
            let device: Arc<dyn Device> = device.into();
            for (n, window) in (0..).zip(needs.windows) {
                if let (Space::Port, Some(base)) = (window.space, window.base) {
                    ports.claim(base, window.length, device.clone(), device::Region::Window(n)).unwrap();
                }
            }
            names.push(name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 8);
        let mut present = [0];
        assert!(ports.read(0x402, &mut present));
        assert_eq!(present, [0xe9]);
    }
}
