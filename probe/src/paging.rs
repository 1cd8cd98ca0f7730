//! The identity map, grown on demand. `boot` maps the first GiB; everything else (RAM above it, register windows, BARs
//! near the top of the physical address space) is mapped when a window on it is made, in pages of 1 GiB where the CPU has
//! them, else of 2 MiB. All pages are user pages, since the probe lives in ring 3.
//!
//! Never here: unmapping. A mapping once made stays.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::trap;

const TABLE: u64 = 0x7; // present, writable, user
const PAGE: u64 = 0x87; // the same, and this entry is a page
const GIB: u64 = 1 << 30;
const POOL: usize = 48;

#[repr(C, align(4096))]
struct Table([u64; 512]);

static mut TABLES: [Table; POOL] = [const { Table([0; 512]) }; POOL];
static USED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static mut pml4: [u64; 512];
}

/// Maps `len` bytes at `base` to themselves; nothing happens where that is so already.
///
/// # Panics
/// Where the range leaves the lower half of the address space, or the tables run out.
pub(crate) fn ensure(base: u64, len: u64) {
    if len == 0 {
        return;
    }
    let last = base.checked_add(len - 1).filter(|last| last >> 47 == 0);
    let Some(last) = last else { panic!("cannot map {len:#x} bytes at {base:#x}") };
    for gib in base / GIB..=last / GIB {
        map_gib(gib);
    }
}

fn map_gib(gib: u64) {
    let top = (&raw mut pml4).cast::<u64>();
    // SAFETY: the index is below 256 as `ensure` checked; the entry, once present, points to a table of the pool (or boot's).
    let pdpt = unsafe { child(top.add((gib / 512) as usize)) };
    // SAFETY: a table has 512 entries.
    let entry = unsafe { pdpt.add((gib % 512) as usize) };
    // SAFETY: page tables are only touched by this single-threaded module and by the CPU.
    unsafe {
        if entry.read_volatile() & 1 != 0 {
            return;
        }
        if has_gib_pages() {
            entry.write_volatile((gib * GIB) | PAGE);
        } else {
            let directory = child(entry);
            for i in 0..512 {
                directory.add(i as usize).write_volatile((gib * GIB + (i << 21)) | PAGE);
            }
        }
    }
}

/// The table that `entry` points to, made if there is none.
///
/// # Safety
/// `entry` must be an entry of a page table that does not map a page.
unsafe fn child(entry: *mut u64) -> *mut u64 {
    // SAFETY: by this function's contract; tables of the pool are handed out once each.
    unsafe {
        let value = entry.read_volatile();
        if value & 1 != 0 {
            return (value & 0x000f_ffff_ffff_f000) as *mut u64;
        }
        let next = USED.fetch_add(1, Relaxed);
        assert!(next < POOL, "no page table left");
        let table = (&raw mut TABLES[next]).cast::<u64>();
        entry.write_volatile(table as u64 | TABLE);
        table
    }
}

/// Whether the CPU has 1 GiB pages; asked once.
fn has_gib_pages() -> bool {
    static ANSWER: AtomicUsize = AtomicUsize::new(0);
    if ANSWER.load(Relaxed) == 0 {
        let yes =
            trap::cpuid(0x8000_0000, 0)[0] >= 0x8000_0001 && trap::cpuid(0x8000_0001, 0)[3] & 1 << 26 != 0;
        ANSWER.store(1 + usize::from(yes), Relaxed);
    }
    ANSWER.load(Relaxed) == 2
}
