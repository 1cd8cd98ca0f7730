//! The ACPI tables of the machine (ACPI 6.5; the FADT is that of 6.3, as clients know it).
//!
//! [`Tables`] collects what devices say of themselves ([`device::TableSink`]); [`Tables::finish`] adds what no device owns
//! (processors, PCI roots) and gives the bytes to be put at [`layout::RSDP`]. The machine is hardware-reduced: no FACS, no SCI, no
//! fixed events. Nothing is claimed that does not exist: without a hotplug controller there are no slots and no
//! processors to come.

mod dsdt;
mod fixed;
mod slots;
#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use device::{Span, TableEntry, TableSink};

use super::layout;
use crate::{Error, Result};

const OEM_ID: [u8; 6] = *b"CLOUDH";
const OEM_REVISION: u32 = 1;
const RSDP_LEN: usize = 36;

/// A processor of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// Its x2APIC id. The ACPI uid is its place in the list.
    pub apic_id: u32,
    /// Present at boot; otherwise it can be brought online later. List only CPUs present at boot as long as nothing can
    /// add others.
    pub enabled: bool,
}

/// A PCI segment and its root bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciSegment {
    /// Number, below [`layout::MAX_SEGMENTS`].
    pub number: u16,
    /// Its share of the 32-bit window; a window without length is left out.
    pub mmio32: Span,
    /// Its share of the 64-bit window; a window without length is left out.
    pub mmio64: Span,
}

/// What the tables say that no device says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// All processors by index.
    pub cpus: &'a [Cpu],
    /// All segments.
    pub segments: &'a [PciSegment],
    /// Whether a hotplug controller `PHPR` describes itself, so that functions can come and go.
    pub hotplug: bool,
}

/// Collects devices' contributions.
#[derive(Debug, Default)]
pub struct Tables {
    system_bus: Vec<u8>,
    root: Vec<u8>,
    madt: Vec<u8>,
    facts: fixed::Facts,
}

impl TableSink for Tables {
    fn add(&mut self, entry: TableEntry) {
        match entry {
            TableEntry::SystemBus(aml) => self.system_bus.extend(aml),
            TableEntry::Root(aml) => self.root.extend(aml),
            TableEntry::Madt(structure) => self.madt.extend(structure),
            TableEntry::ResetPort { port, value } => self.facts.reset = Some((port, value)),
            TableEntry::SleepPort(port) => self.facts.sleep = Some(port),
            TableEntry::PmTimerPort(port) => self.facts.pm_timer = Some(port),
        }
    }
}

impl Tables {
    /// Nothing described yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// All tables, laid out for [`layout::RSDP`]: the RSDP comes first.
    ///
    /// # Errors
    /// [`Error::TablesTooLarge`].
    pub fn finish(self, machine: &Machine) -> Result<Vec<u8>> {
        let dsdt = dsdt::build(machine, &self.system_bus, &self.root);
        let mut image = Image { bytes: vec![0; RSDP_LEN] };
        let dsdt_at = image.push(dsdt.as_slice());
        let mut xsdt = XSDT::new(OEM_ID, *b"CHXSDT  ", OEM_REVISION);
        xsdt.add_entry(image.push(&bytes(&fixed::fadt(&self.facts, dsdt_at))));
        xsdt.add_entry(image.push(fixed::madt(machine.cpus, &self.madt).as_slice()));
        if !machine.segments.is_empty() {
            xsdt.add_entry(image.push(&bytes(&fixed::mcfg(machine.segments))));
        }
        let xsdt_at = image.push(&bytes(&xsdt));
        let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt_at));
        image.bytes[..RSDP_LEN].copy_from_slice(&rsdp);

        let available = layout::ACPI_END - layout::RSDP;
        let needed = image.bytes.len() as u64;
        if needed > available {
            return Err(Error::TablesTooLarge { tables: "ACPI", needed, available });
        }
        Ok(image.bytes)
    }
}

/// The memory from [`layout::RSDP`] on.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table on a 16-byte boundary and tells its physical address.
    fn push(&mut self, table: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(16);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(table);
        layout::RSDP + at as u64
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the common header; `oem_table_id` is "CHxxxx  ".
fn table(signature: [u8; 4], revision: u8, oem_table_id: [u8; 8], body: &[u8]) -> Sdt {
    let mut sdt = Sdt::new(signature, 36, revision, OEM_ID, oem_table_id, OEM_REVISION);
    sdt.append_slice(body);
    sdt
}
