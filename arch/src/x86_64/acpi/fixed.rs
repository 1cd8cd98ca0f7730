//! The tables with a fixed layout: FADT, MADT, MCFG.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

use super::{Cpu, OEM_ID, OEM_REVISION, PciSegment, table};
use crate::x86_64::layout;

/// "ACPI 6.3": the minor version.
const FADT_MINOR: u8 = 3;
/// IAPC_BOOT_ARCH: nothing at the addresses of VGA memory, where these very tables are.
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// MADT structure: processor local x2APIC (ACPI 6.5, 5.2.12.12).
const LOCAL_X2APIC: u8 = 9;
const ENABLED: u32 = 1 << 0;
const ONLINE_CAPABLE: u32 = 1 << 1;

/// Registers that the FADT points to, as devices described them.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Facts {
    /// Port and value that reset the machine.
    pub(super) reset: Option<(u16, u8)>,
    /// Port of the sleep control and status registers.
    pub(super) sleep: Option<u16>,
    /// Port of the 32-bit power management timer.
    pub(super) pm_timer: Option<u16>,
}

pub(super) fn fadt(facts: &Facts, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, *b"CHFACP  ", OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi);
    fadt.fadt_minor_version = FADT_MINOR;
    fadt.iapc_boot_arch = VGA_NOT_PRESENT.into();
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"CLOUDHYP").into();
    let byte_port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    if let Some((port, value)) = facts.reset {
        fadt = fadt.flag(Flags::ResetRegSup);
        fadt.reset_reg = byte_port(port);
        fadt.reset_value = value;
    }
    if let Some(port) = facts.sleep {
        fadt.sleep_control_reg = byte_port(port);
        fadt.sleep_status_reg = byte_port(port);
    }
    if let Some(port) = facts.pm_timer {
        fadt = fadt.flag(Flags::TmrValExt);
        fadt.x_pm_tmr_blk = GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, port.into());
    }
    fadt.finalize()
}

/// Local APICs by index, then what interrupt controllers said of themselves.
pub(super) fn madt(cpus: &[Cpu], others: &[u8]) -> Sdt {
    let mut body = Vec::with_capacity(8 + cpus.len() * 16 + others.len());
    body.extend((layout::LAPIC.base as u32).to_le_bytes());
    // Flags: no 8259s.
    body.extend(0u32.to_le_bytes());
    for (uid, cpu) in (0u32..).zip(cpus) {
        body.extend([LOCAL_X2APIC, 16, 0, 0]);
        let flags = if cpu.enabled { ENABLED } else { ONLINE_CAPABLE };
        for field in [cpu.apic_id, flags, uid] {
            body.extend(field.to_le_bytes());
        }
    }
    body.extend_from_slice(others);
    table(*b"APIC", 5, *b"CHMADT  ", &body)
}

/// One bus for each segment.
pub(super) fn mcfg(segments: &[PciSegment]) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, *b"CHMCFG  ", OEM_REVISION);
    for segment in segments {
        if let Some(ecam) = layout::ecam(segment.number) {
            mcfg.add_ecam(ecam.base, segment.number, 0, 0);
        }
    }
    mcfg
}
