//! The ACPI tables: all there, all adding up, and true.

use super::Machine;
use crate::acpi::{Acpi, sums_up};
use crate::apic::IoApic;
use crate::io::Region;
use crate::verdict::Outcome;

/// Every table's checksum, and that the ones a hardware-reduced machine needs are present.
pub(super) fn tables(machine: &mut Machine) -> Outcome {
    let Some(acpi) = machine.acpi else { skip!("no RSDP") };
    check!(sums_up(acpi.rsdp.part(0, 20)), "the RSDP's first checksum is wrong");
    check!(acpi.rsdp.read8(15) >= 2, "RSDP revision {}", acpi.rsdp.read8(15));
    check!(sums_up(acpi.rsdp), "the RSDP's extended checksum is wrong");
    check!(&acpi.root.signature() == b"XSDT", "the root table is {}", acpi.root.name());
    check!(acpi.root.sums_up(), "the XSDT's checksum is wrong");
    let mut count = 0;
    for table in acpi.tables() {
        println!(
            "# table {} revision {} at {:#x}, {} bytes",
            table.name(),
            table.revision(),
            table.region.base(),
            table.region.len()
        );
        check!(table.sums_up(), "the checksum of {} is wrong", table.name());
        count += 1;
    }
    for wanted in [b"FACP", b"APIC", b"MCFG"] {
        let name = core::str::from_utf8(wanted).unwrap_or("?");
        check!(acpi.table(wanted).is_some(), "there is no {name}");
    }
    let Some(dsdt) = acpi.dsdt() else { fail!("the FADT names no DSDT") };
    check!(&dsdt.signature() == b"DSDT", "what the FADT names is no DSDT");
    check!(dsdt.sums_up(), "the DSDT's checksum is wrong");
    check!(acpi.sleep_control().is_some(), "the FADT has no sleep control register");
    check!(acpi.reset().is_some(), "the FADT has no reset register");
    let Some(s5) = acpi.s5_type() else { fail!("the DSDT has no usable _S5_") };
    Ok(text!("tables={count} dsdt={} s5={s5}", dsdt.region.len()))
}

/// The MADT: processors (as many enabled as `probe.cpus` says), an IOAPIC that answers.
pub(super) fn madt(machine: &mut Machine) -> Outcome {
    let Some(acpi) = machine.acpi else { skip!("no RSDP") };
    let (mut enabled, mut capable, mut overrides) = (0u64, 0u64, 0);
    let mut pins = 0;
    for (kind, entry) in acpi.madt_entries() {
        let flags = match kind {
            0 => entry.read32(4),
            9 => entry.read32(8),
            1 => {
                pins = IoApic::at(u64::from(entry.read32(4))).pins();
                continue;
            }
            2 => {
                overrides += 1;
                continue;
            }
            _ => continue,
        };
        enabled += u64::from(flags & 1);
        capable += u64::from(flags >> 1 & 1 & !flags);
    }
    check!(enabled > 0, "no processor is enabled");
    if let Some(wanted) = machine.start.number("cpus") {
        check!(enabled == wanted, "{enabled} processors are enabled, not {wanted}");
    }
    check!(pins > 0, "no IOAPIC answers");
    Ok(text!("enabled={enabled} capable={capable} ioapic-pins={pins} overrides={overrides}"))
}

/// The SMBIOS entry point where a kernel looks for it, its checksum, and a structure table that ends.
pub(super) fn smbios(_machine: &mut Machine) -> Outcome {
    // SAFETY: only read.
    let rom = unsafe { Region::new(0xf_0000, 0x1_0000) };
    let anchor = u32::from_le_bytes(*b"_SM3");
    let Some(at) =
        (0..0x1_0000 - 32).step_by(16).find(|&i| rom.read32(i) == anchor && rom.read8(i + 4) == b'_')
    else {
        skip!("no _SM3_ anchor");
    };
    let len = u64::from(rom.read8(at + 6));
    check!((24..=32).contains(&len), "the entry point is {len} bytes long");
    check!(sums_up(rom.part(at, len)), "the entry point's checksum is wrong");
    let (max, address) = (u64::from(rom.read32(at + 12)), rom.read64(at + 16));
    // SAFETY: only read.
    let table = unsafe { Region::new(address, max) };
    let (mut i, mut count) = (0, 0);
    while i + 4 <= max {
        let (kind, len) = (table.read8(i), u64::from(table.read8(i + 1)));
        check!(len >= 4 && i + len + 2 <= max, "structure {kind} at {i:#x} leaves the table");
        count += 1;
        i += len;
        while i + 2 <= max && table.read16(i) != 0 {
            i += 1;
        }
        i += 2;
        if kind == 127 {
            return Ok(text!("structures={count} bytes={i}"));
        }
    }
    fail!("the table has no end marker")
}

/// The ECAM windows of the MCFG hold what the bus scan found, and are reserved in the memory map.
pub(super) fn mcfg(machine: &mut Machine) -> Outcome {
    let Some(acpi) = machine.acpi else { skip!("no RSDP") };
    let mut count = 0;
    for ecam in Acpi::ecams(&acpi) {
        println!(
            "# ecam segment {} buses {}-{} at {:#x}",
            ecam.segment, ecam.first_bus, ecam.last_bus, ecam.base
        );
        let end = ecam.base + (u64::from(ecam.last_bus - ecam.first_bus) + 1) * (1 << 20);
        let in_ram = machine.start.map().any(|e| e.kind == 1 && e.base < end && ecam.base < e.base + e.len);
        check!(!in_ram, "the window at {:#x} lies in RAM", ecam.base);
        count += 1;
    }
    check!(count > 0, "no window");
    Ok(text!("windows={count} functions={}", machine.bus.iter().count()))
}
