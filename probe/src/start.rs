//! What the VMM hands over at entry: PVH's `hvm_start_info` (Xen, public/arch-x86/hvm/start_info.h), the memory map, the
//! command line, the modules.

use crate::io::Region;

const MAGIC: u32 = 0x336e_c578;

/// One line of the memory map (the types are e820's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapEntry {
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) kind: u32,
}

/// e820 type of usable RAM.
pub(crate) const RAM: u32 = 1;

/// A view of the start-up structures, which stay where the VMM put them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    info: Region,
    pub(crate) version: u32,
    pub(crate) rsdp: u64,
    map: Region,
    map_entries: u64,
    command_line: &'static str,
}

impl Start {
    /// Reads the structure at `address`; `None` if its magic is wrong.
    pub(crate) fn read(address: u64) -> Option<Start> {
        // SAFETY: only read. The VMM puts it outside the image.
        let info = unsafe { Region::new(address, 56) };
        if info.read32(0) != MAGIC {
            return None;
        }
        let version = info.read32(4);
        let (map_address, entries) =
            if version >= 1 { (info.read64(40), u64::from(info.read32(48))) } else { (0, 0) };
        // SAFETY: only read.
        let map = unsafe { Region::new(map_address, entries * 24) };
        Some(Start {
            info,
            version,
            rsdp: info.read64(32),
            map,
            map_entries: entries,
            command_line: c_string(info.read64(24)),
        })
    }

    pub(crate) fn map(&self) -> impl Iterator<Item = MapEntry> + use<> {
        let map = self.map;
        (0..self.map_entries).map(move |i| MapEntry {
            base: map.read64(i * 24),
            len: map.read64(i * 24 + 8),
            kind: map.read32(i * 24 + 16),
        })
    }

    /// Physical address and length of each module (an initramfs is one).
    pub(crate) fn modules(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let count = u64::from(self.info.read32(12));
        // SAFETY: only read.
        let list = unsafe { Region::new(self.info.read64(16), count * 32) };
        (0..count).map(move |i| (list.read64(i * 32), list.read64(i * 32 + 8)))
    }

    pub(crate) fn command_line(&self) -> &'static str {
        self.command_line
    }

    /// The value of `probe.NAME=VALUE` on the command line; the last one counts.
    pub(crate) fn option(&self, name: &str) -> Option<&'static str> {
        self.command_line
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix("probe.")?.strip_prefix(name)?.strip_prefix('='))
            .next_back()
    }

    /// The same as a number, decimal or 0x-hexadecimal.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let text = self.option(name)?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }
}

/// The NUL-terminated string at `address`, empty if there is none or it is no ASCII. At most 64 KiB.
fn c_string(address: u64) -> &'static str {
    if address == 0 {
        return "";
    }
    // SAFETY: only read, and never written while the reference lives: the arena keeps clear of the first MiB, and tests that
    // write RAM skip it.
    let region = unsafe { Region::new(address, 65536) };
    let len = (0..65536).find(|&i| region.read8(i) == 0).unwrap_or(0);
    // SAFETY: as above; `len` bytes were just read.
    let bytes = unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) };
    core::str::from_utf8(bytes).unwrap_or("")
}
