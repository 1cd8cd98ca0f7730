//! Kernels whose headers lie: ELF files with a PVH note, and bzImages. What is planned lies in memory and does not overlap, and it is put there.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use arch::x86_64::boot::{Backing, Entry, Initramfs, Kernel, plan};
use arch::x86_64::layout::MemoryMap;
use device::ram::RamMap;
use vm_memory::GuestAddress;

use crate::input::Input;
use crate::{Target, scratch};

const MEMORY: u64 = 4 << 20;

/// A PVH kernel: one segment and its notes.
fn elf() -> Vec<u8> {
    let mut file = vec![0; 0x3000];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 62, 0]);
    put(32, &64u64.to_le_bytes());
    put(54, &[56, 0, 2, 0]);
    for (at, kind, offset, address, in_file, in_memory) in
        [(64, 1u32, 0x1000u64, 0x10_0000u64, 0x1234u64, 0x3000u64), (120, 4, 0x400, 0, 0x40, 0x40)]
    {
        put(at, &kind.to_le_bytes());
        for (n, value) in [offset, 0, address, in_file, in_memory, 4].iter().enumerate() {
            put(at + 8 + 8 * n, &value.to_le_bytes());
        }
    }
    let note = [4u32, 8, 18].map(u32::to_le_bytes).concat();
    put(0x400, &[&note[..], b"Xen\0", &0x10_0100u64.to_le_bytes()].concat());
    file
}

/// A bzImage of protocol 2.15.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 0x1800];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &0x140u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &[3, 0]);
    put(0x258, &0x10_0000u64.to_le_bytes());
    put(0x260, &0x8000u32.to_le_bytes());
    file
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let mut image = if how & 1 == 0 { elf() } else { bzimage() };
    let hot: &[usize] = if how & 1 == 0 {
        &[0, 16, 32, 54, 64, 72, 88, 96, 104, 120, 128, 0x400, 0x404]
    } else {
        &[0x1f1, 0x1f4, 0x200, 0x206, 0x211, 0x22c, 0x236, 0x258, 0x260, 0x38]
    };
    for _ in 0..input.u8() % 12 {
        let at = match input.u8() {
            n if usize::from(n) < 2 * hot.len() => {
                hot[usize::from(n) / 2] + usize::from(n & 1) * usize::from(input.u8() & 7)
            }
            _ => usize::from(input.u16()) % image.len(),
        };
        let (value, width) = (input.value().to_le_bytes(), input.one_of(&[1, 2, 4, 8]));
        let width = width.min(image.len() - at);
        image[at..at + width].copy_from_slice(&value[..width]);
    }
    if input.u8() == 1 {
        image.truncate(usize::from(input.u16()));
    }
    let path = scratch::file("kernel");
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
    file.write_all_at(&image, 0).unwrap();
    let Ok(kernel) = Kernel::open(&path) else { return };
    let disk = scratch::file("initramfs");
    let initramfs = (how & 2 != 0).then(|| {
        fs::write(&disk, vec![0x55; 1 + 37 * usize::from(input.u16())]).unwrap();
        Initramfs::open(&disk).unwrap()
    });
    let map = MemoryMap::new(MEMORY, 40).unwrap();
    let length = input.u8().into();
    let Ok(plan) = plan(&kernel, initramfs.as_ref(), input.bytes(length), &map, Some(0xa_0000)) else {
        return;
    };
    let mut spans: Vec<(u64, u64)> =
        plan.placements.iter().map(|p| (p.gpa, p.gpa.checked_add(p.len).unwrap())).collect();
    spans.sort_unstable();
    assert!(spans.iter().all(|(_, end)| *end <= MEMORY), "a placement outside of memory: {spans:x?}");
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "placements overlap: {spans:x?}");
    let (Entry::Pvh { address } | Entry::Linux { address }) = plan.entry;
    assert!(address < MEMORY, "it starts at {address:#x}");
    let backing = if how & 4 == 0 { Backing::Other } else { Backing::PrivateAnonymous };
    let memory: RamMap = RamMap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    plan.load(&memory, backing).unwrap();
}

pub fn target() -> Target {
    Target {
        name: "kernel",
        about: "kernel images whose headers lie",
        length: 256,
        options: &[],
        words: Vec::new,
        seeds: || {
            let mut seeds = Vec::new();
            for how in 0..8u8 {
                seeds.push(vec![how, 0, 0, 100, 0, 3, b'a', b'=', b'b']);
                for hot in 0..26 {
                    seeds.push(vec![how, 1, hot, 0, 20, 2, 0, 0, 100, 0, 0]);
                }
            }
            seeds
        },
        run,
    }
}
