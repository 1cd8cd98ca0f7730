//! ACPI tables as far as a machine without an AML interpreter needs them (ACPI 6.5, chapter 5): RSDP, XSDT, FADT, MADT, MCFG.
//! What is taken from AML, `\_S5_` and operation regions, is found by its bytes.

use crate::io::Region;

/// A table: header (36 bytes) and body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub(crate) region: Region,
}

impl Table {
    fn at(address: u64) -> Option<Table> {
        if address == 0 {
            return None;
        }
        // SAFETY: only read.
        let header = unsafe { Region::new(address, 36) };
        let len = u64::from(header.read32(4));
        // SAFETY: only read.
        (36..1 << 24).contains(&len).then(|| Table { region: unsafe { Region::new(address, len) } })
    }

    pub(crate) fn signature(&self) -> [u8; 4] {
        self.region.read32(0).to_le_bytes()
    }

    /// The signature as text.
    pub(crate) fn name(&self) -> crate::text::Text {
        let s = self.signature();
        text!("{}", core::str::from_utf8(&s).unwrap_or("????"))
    }

    pub(crate) fn revision(&self) -> u8 {
        self.region.read8(8)
    }

    /// Whether all bytes add up to zero.
    pub(crate) fn sums_up(&self) -> bool {
        sums_up(self.region)
    }
}

/// Whether all bytes of `region` add up to zero.
pub(crate) fn sums_up(region: Region) -> bool {
    (0..region.len()).fold(0u8, |sum, i| sum.wrapping_add(region.read8(i))) == 0
}

/// A register by Generic Address Structure (5.2.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Register {
    /// 0 memory, 1 port.
    pub(crate) space: u8,
    pub(crate) bits: u8,
    pub(crate) address: u64,
}

/// One line of MCFG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ecam {
    pub(crate) base: u64,
    pub(crate) segment: u16,
    pub(crate) first_bus: u8,
    pub(crate) last_bus: u8,
}

/// What the tables say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acpi {
    pub(crate) rsdp: Region,
    /// The XSDT, or the RSDT of firmware that has no other.
    pub(crate) root: Table,
}

impl Acpi {
    /// Follows the RSDP given by the VMM, or looks for one where firmware puts it (5.2.5.1).
    pub(crate) fn find(rsdp: u64) -> Option<Acpi> {
        let rsdp =
            if rsdp != 0 { at_rsdp(rsdp)? } else { (0xa_0000..0x10_0000).step_by(16).find_map(at_rsdp)? };
        let xsdt = if rsdp.read8(15) >= 2 { Table::at(rsdp.read64(24)) } else { None };
        Some(Acpi { rsdp, root: xsdt.or_else(|| Table::at(u64::from(rsdp.read32(16))))? })
    }

    /// Every table the root names.
    pub(crate) fn tables(&self) -> impl Iterator<Item = Table> + use<> {
        let root = self.root.region;
        let width = if &self.root.signature() == b"XSDT" { 8 } else { 4 };
        (0..(root.len() - 36) / width).filter_map(move |i| Table::at(root.read(36 + i * width, width)))
    }

    pub(crate) fn table(&self, signature: &[u8; 4]) -> Option<Table> {
        self.tables().find(|t| &t.signature() == signature)
    }

    pub(crate) fn dsdt(&self) -> Option<Table> {
        let fadt = self.table(b"FACP")?.region;
        let address = if fadt.len() >= 148 { fadt.read64(140) } else { 0 };
        Table::at(if address != 0 { address } else { u64::from(fadt.read32(40)) })
    }

    fn fadt_register(&self, offset: u64) -> Option<Register> {
        let fadt = self.table(b"FACP")?.region;
        if fadt.len() < offset + 12 {
            return None;
        }
        let register = Register {
            space: fadt.read8(offset),
            bits: fadt.read8(offset + 1),
            address: fadt.read64(offset + 4),
        };
        (register.address != 0).then_some(register)
    }

    /// Reset register and the value to write (FADT 116, 128), if the flags say it works.
    pub(crate) fn reset(&self) -> Option<(Register, u8)> {
        let fadt = self.table(b"FACP")?.region;
        let supported = fadt.read32(112) & 1 << 10 != 0;
        supported.then_some((self.fadt_register(116)?, fadt.read8(128)))
    }

    /// Sleep control register of hardware-reduced ACPI (FADT 244).
    pub(crate) fn sleep_control(&self) -> Option<Register> {
        self.fadt_register(244)
    }

    /// The PM timer (FADT X_PM_TMR_BLK 208, else PM_TMR_BLK 76) and whether it has 32 bits rather than 24.
    pub(crate) fn pm_timer(&self) -> Option<(Register, bool)> {
        let fadt = self.table(b"FACP")?.region;
        let wide = fadt.read32(112) & 1 << 8 != 0;
        let old = Register { space: 1, bits: 32, address: u64::from(fadt.read32(76)) };
        Some((self.fadt_register(208).or((old.address != 0).then_some(old))?, wide))
    }

    /// SLP_TYPa of S5: `NameOp "_S5_" PackageOp length count value`.
    pub(crate) fn s5_type(&self) -> Option<u8> {
        let dsdt = self.dsdt()?.region;
        let at =
            (36..dsdt.len().checked_sub(12)?).find(|&i| dsdt.read32(i) == u32::from_le_bytes(*b"_S5_"))?;
        if dsdt.read8(at + 4) != 0x12 {
            return None;
        }
        let length_bytes = 1 + u64::from(dsdt.read8(at + 5) >> 6);
        let first = at + 5 + length_bytes + 1;
        match dsdt.read8(first) {
            0x0a => Some(dsdt.read8(first + 1)),
            value @ 0..=1 => Some(value),
            _ => None,
        }
    }

    /// The address of an operation region in memory: `OpRegionOp name SystemMemory QWordPrefix address`.
    pub(crate) fn operation_region(&self, name: &[u8; 4]) -> Option<u64> {
        let dsdt = self.dsdt()?.region;
        let at = (38..dsdt.len().checked_sub(14)?).find(|&i| {
            dsdt.read32(i) == u32::from_le_bytes(*name)
                && dsdt.read16(i - 2) == u16::from_le_bytes([0x5b, 0x80])
        })?;
        (dsdt.read16(at + 4) == u16::from_le_bytes([0, 0x0e])).then(|| dsdt.read64(at + 6))
    }

    /// The ECAM windows.
    pub(crate) fn ecams(&self) -> impl Iterator<Item = Ecam> + use<> {
        let mcfg = self.table(b"MCFG").map(|t| t.region);
        let count = mcfg.map_or(0, |m| m.len().saturating_sub(44) / 16);
        (0..count).filter_map(move |i| {
            let mcfg = mcfg?;
            let at = 44 + i * 16;
            Some(Ecam {
                base: mcfg.read64(at),
                segment: mcfg.read16(at + 8),
                first_bus: mcfg.read8(at + 10),
                last_bus: mcfg.read8(at + 11),
            })
        })
    }

    /// MADT entries: type and the entry's bytes.
    pub(crate) fn madt_entries(&self) -> impl Iterator<Item = (u8, Region)> + use<> {
        let madt = self.table(b"APIC").map(|t| t.region);
        let mut at = 44;
        core::iter::from_fn(move || {
            let madt = madt?;
            if at + 2 > madt.len() {
                return None;
            }
            let (kind, len) = (madt.read8(at), u64::from(madt.read8(at + 1)));
            if len < 2 || at + len > madt.len() {
                return None;
            }
            let entry = madt.part(at, len);
            at += len;
            Some((kind, entry))
        })
    }
}

fn at_rsdp(address: u64) -> Option<Region> {
    // SAFETY: only read.
    let rsdp = unsafe { Region::new(address, 36) };
    (rsdp.read64(0) == u64::from_le_bytes(*b"RSD PTR ")).then_some(rsdp)
}
