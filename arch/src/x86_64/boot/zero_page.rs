//! The zero page (`struct boot_params`, Documentation/arch/x86/zero-page.rst) of the Linux boot protocol.

use device::Span;

use super::Placement;
use super::bzimage::{Image, SETUP_HEADER};
use crate::x86_64::layout::{self, MemoryMap};

const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_LEN: usize = 20;
/// "Undefined boot loader": no loader id was ever assigned to direct boot.
const LOADER_UNDEFINED: u8 = 0xff;

/// The kernel's own setup header, filled in. All that is placed lies below 4 GiB, so no `ext_` field is needed.
pub(super) fn build(image: &Image, map: &MemoryMap, initramfs: Option<Span>, rsdp: Option<u64>) -> Placement {
    let mut page = vec![0; layout::PAGE_SIZE as usize];
    page[SETUP_HEADER..SETUP_HEADER + image.header.len()].copy_from_slice(&image.header);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);

    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(CMD_LINE_PTR, &(layout::CMDLINE as u32).to_le_bytes());
    put(ACPI_RSDP_ADDR, &rsdp.unwrap_or(0).to_le_bytes());
    if let Some(span) = initramfs {
        put(RAMDISK_IMAGE, &(span.base as u32).to_le_bytes());
        put(RAMDISK_SIZE, &(span.length as u32).to_le_bytes());
    }
    let ranges = map.boot_ranges();
    put(E820_ENTRIES, &[ranges.len() as u8]);
    for (i, range) in ranges.iter().enumerate() {
        let at = E820_TABLE + i * E820_ENTRY_LEN;
        put(at, &range.span.base.to_le_bytes());
        put(at + 8, &range.span.length.to_le_bytes());
        put(at + 16, &(range.kind as u32).to_le_bytes());
    }
    Placement::bytes(layout::ZERO_PAGE, page)
}
