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
pub mod serial;
mod uart;

#[cfg(test)]
mod bench;

pub use acpi_pm::AcpiPm;
pub use cmos::Cmos;
pub use debug_console::DebugConsoleSpec;
pub use debug_port::DebugPort;
pub use firmware_debug::FirmwareDebug;
pub use ged::Ged;
pub use i8042::I8042;
pub use ioapic::Ioapic;
pub use serial::SerialSpec;

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
