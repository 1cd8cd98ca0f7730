//! The PVH start info and what it points to (xen/include/public/arch-x86/hvm/start_info.h).

use device::Span;

use super::Placement;
use crate::x86_64::layout::{self, MemoryMap};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// Adds the start info (version 1), the module list and the memory map. The module is the initramfs.
pub(super) fn describe(map: &MemoryMap, module: Option<Span>, rsdp: Option<u64>, out: &mut Vec<Placement>) {
    let ranges = map.boot_ranges();
    let mut memmap = Vec::with_capacity(ranges.len() * 24);
    for range in &ranges {
        put64(&mut memmap, &[range.span.base, range.span.length]);
        put32(&mut memmap, &[range.kind as u32, 0]);
    }

    let mut info = Vec::with_capacity(56);
    // magic, version, flags, nr_modules
    put32(&mut info, &[MAGIC, VERSION, 0, u32::from(module.is_some())]);
    // modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr
    let modules = if module.is_some() { layout::PVH_MODULES } else { 0 };
    put64(&mut info, &[modules, layout::CMDLINE, rsdp.unwrap_or(0), layout::PVH_MEMMAP]);
    // memmap_entries, reserved
    put32(&mut info, &[ranges.len() as u32, 0]);

    out.push(Placement::bytes(layout::PVH_START_INFO, info));
    out.push(Placement::bytes(layout::PVH_MEMMAP, memmap));
    if let Some(span) = module {
        let mut entry = Vec::with_capacity(32);
        // paddr, size, cmdline_paddr, reserved
        put64(&mut entry, &[span.base, span.length, 0, 0]);
        out.push(Placement::bytes(layout::PVH_MODULES, entry));
    }
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

fn put64(out: &mut Vec<u8>, values: &[u64]) {
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}
