//! The tables that tell the guest what it has, written into its memory.

use arch::x86_64::acpi::{self, Tables};
use arch::x86_64::{layout, mptable, smbios};
use catalog::PlatformSpec;
use device::ram::RamMap;
use spec::{Kind, Refusal};
use vm_memory::{Bytes, GuestAddress};

use super::board::Board;
use super::processors::Processors;

/// Writes ACPI, SMBIOS and MP tables.
pub(super) fn write(
    board: &Board,
    processors: &Processors,
    platform: Option<&PlatformSpec>,
    memory: &RamMap,
) -> Result<(), Refusal> {
    let tables = |e| Refusal::new(Kind::Invalid, "Cannot build the firmware tables").because(e);
    let mut sink = Tables::new();
    board.describe(&mut sink);
    let machine = acpi::Machine { cpus: &processors.list(), segments: &board.pci_segments(), hotplug: true };
    put(memory, layout::RSDP, &sink.finish(&machine).map_err(tables)?)?;

    let smbios = smbios::build(&platform.map(PlatformSpec::smbios).unwrap_or_default()).map_err(tables)?;
    put(memory, layout::SMBIOS, &smbios)?;
    let after = (layout::SMBIOS + smbios.len() as u64).next_multiple_of(16);
    if let Some(mp) = mptable::build(after, processors.ids()) {
        put(memory, after, &mp)?;
    }
    Ok(())
}

fn put(memory: &RamMap, at: u64, bytes: &[u8]) -> Result<(), Refusal> {
    memory
        .write_slice(bytes, GuestAddress(at))
        .map_err(|e| Refusal::new(Kind::Bug, format!("Cannot write firmware tables at {at:#x}")).because(e))
}
