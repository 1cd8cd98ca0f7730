//! MSI-X: the table, the pending bits, the capability's switches (PCI 3.0, 6.8.2).

use crate::io::Region;
use crate::pci::{CAP_MSIX, Function};

/// Byte size of a table entry.
pub(crate) const ENTRY: u64 = 16;

/// A function's MSI-X, its windows open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Msix {
    function: Function,
    cap: u64,
    pub(crate) vectors: u16,
    pub(crate) table: Region,
    pub(crate) pba: Region,
}

impl Msix {
    pub(crate) fn of(function: Function) -> Option<Msix> {
        let (_, cap) = function.capabilities().find(|(id, _)| *id == CAP_MSIX)?;
        let vectors = (function.read16(cap + 2) & 0x7ff) + 1;
        let (table_at, pba_at) = (function.read32(cap + 4), function.read32(cap + 8));
        let bar = |register: u32| (register & 7) as u8;
        let table_bar = function.window(bar(table_at))?;
        // To size a BAR is slow.
        let pba_bar = if bar(pba_at) == bar(table_at) { table_bar } else { function.window(bar(pba_at))? };
        let place = |window: Region, register: u32, len: u64| {
            let offset = u64::from(register & !7);
            (offset + len <= window.len()).then(|| window.part(offset, len))
        };
        let table = place(table_bar, table_at, u64::from(vectors) * ENTRY)?;
        let pba = place(pba_bar, pba_at, u64::from(vectors).div_ceil(64) * 8)?;
        Some(Msix { function, cap, vectors, table, pba })
    }

    /// Switches a function's MSI-X off, wherever its windows are.
    pub(crate) fn switch_off(function: Function) {
        if let Some((_, cap)) = function.capabilities().find(|(id, _)| *id == CAP_MSIX) {
            function.write16(cap + 2, 0);
        }
    }

    /// Message control: enable and mask all.
    pub(crate) fn control(&self, enable: bool, mask_all: bool) {
        let control = self.function.read16(self.cap + 2) & 0x3fff;
        self.function.write16(self.cap + 2, control | u16::from(enable) << 15 | u16::from(mask_all) << 14);
    }

    /// Writes an entry: masked first, then address and data, then the mask as asked.
    pub(crate) fn set(&self, vector: u16, (address, data): (u64, u32), masked: bool) {
        let at = u64::from(vector) * ENTRY;
        self.table.write32(at + 12, 1);
        self.table.write32(at, address as u32);
        self.table.write32(at + 4, (address >> 32) as u32);
        self.table.write32(at + 8, data);
        self.table.write32(at + 12, u32::from(masked));
    }

    pub(crate) fn mask(&self, vector: u16, masked: bool) {
        self.table.write32(u64::from(vector) * ENTRY + 12, u32::from(masked));
    }

    pub(crate) fn pending(&self, vector: u16) -> bool {
        self.pba.read64(u64::from(vector) / 64 * 8) >> (vector % 64) & 1 != 0
    }
}
