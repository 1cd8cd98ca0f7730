//! Loading of well-made and ill-made kernels, from files that the tests write.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;

use super::*;

const MIB: u64 = 1 << 20;

pub(super) fn file(bytes: &[u8]) -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().write_all(bytes).unwrap();
    file
}

fn open(bytes: &[u8]) -> Result<Kernel> {
    Kernel::open(file(bytes).as_path())
}

pub(super) fn memory(size: u64) -> (MemoryMap, GuestMemoryMmap) {
    (
        MemoryMap::new(size, 40).unwrap(),
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap(),
    )
}

pub(super) struct Phdr {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// An ELF header with program headers, padded to `len` bytes of a recognisable pattern.
fn elf(machine: u16, phdrs: &[Phdr], len: usize) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend(2u16.to_le_bytes());
    out.extend(machine.to_le_bytes());
    out.resize(32, 0);
    out.extend(64u64.to_le_bytes());
    out.resize(54, 0);
    out.extend(56u16.to_le_bytes());
    out.extend((phdrs.len() as u16).to_le_bytes());
    out.resize(64, 0);
    for p in phdrs {
        out.extend(p.kind.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        for v in [p.offset, 0, p.address, p.file_size, p.memory_size, 4] {
            out.extend(v.to_le_bytes());
        }
    }
    assert!(out.len() <= 0x800);
    out.extend((out.len()..len).map(|i| (i / 7) as u8));
    out
}

fn note(kind: u32, name: &[u8], desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for v in [name.len() as u32, desc.len() as u32, kind] {
        out.extend(v.to_le_bytes());
    }
    out.extend(name);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(desc);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

pub(super) const LOAD: Phdr =
    Phdr { kind: 1, offset: 0x1000, address: 0x20_0000, file_size: 0x2345, memory_size: 0x9000 };
const NOTES: Phdr = Phdr { kind: 4, offset: 0x800, address: 0, file_size: 0x100, memory_size: 0x100 };

/// A PVH kernel with one segment of two whole pages and a bit, entered at `entry`.
pub(super) fn pvh_kernel(load: Phdr, entry: u64) -> Vec<u8> {
    let mut image = elf(62, &[load, NOTES], 0x4000);
    let mut notes = note(1, b"GNU\0", &[9; 5]);
    notes.extend(note(18, b"GNU\0", &[1; 4]));
    notes.extend(note(18, b"Xen\0", &entry.to_le_bytes()));
    notes.resize(0x100, 0);
    image[0x800..0x900].copy_from_slice(&notes);
    image
}

/// A bzImage whose protected-mode part starts at 0x1000 of the file and has `paragraphs` times 16 bytes.
pub(super) fn bzimage(paragraphs: u32, init_size: u32) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    image[0x1f1] = 7;
    image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&2u16.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    image.extend((0..paragraphs as usize * 16).map(|i| (i / 5) as u8));
    image
}

fn bytes_at(plan: &Plan, gpa: u64) -> &[u8] {
    let placement = plan.placements.iter().find(|p| p.gpa == gpa).expect("a placement at this address");
    match &placement.source {
        Source::Bytes(bytes) => bytes,
        Source::File { .. } => panic!("{gpa:#x} comes from a file"),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    file::le32(bytes, at)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    file::le64(bytes, at)
}

fn assert_disjoint(plan: &Plan) {
    let mut spans: Vec<_> = plan.placements.iter().map(|p| Span { base: p.gpa, length: p.len }).collect();
    spans.sort_by_key(|s| s.base);
    assert!(spans.windows(2).all(|w| !w[0].overlaps(&w[1])), "{spans:x?}");
}

#[test]
pub(super) fn pvh_kernel_is_mapped_and_described() {
    let image = pvh_kernel(LOAD, 0x20_0100);
    let kernel = open(&image).unwrap();
    assert_eq!(kernel.entry(), Entry::Pvh { address: 0x20_0100 });
    let ramdisk = vec![0x5a; 0x1801];
    let initramfs = Initramfs::open(file(&ramdisk).as_path()).unwrap();
    let (map, mem) = memory(16 * MIB);
    let plan = plan(&kernel, Some(&initramfs), b"console=ttyS0", &map, Some(0xa_0000)).unwrap();
    assert_disjoint(&plan);

    let info = bytes_at(&plan, 0x6000);
    assert_eq!(info.len(), 56);
    assert_eq!([0, 4, 8, 12].map(|at| u32_at(info, at)), [0x336e_c578, 1, 0, 1]);
    assert_eq!([16, 24, 32, 40].map(|at| u64_at(info, at)), [0x6040, 0x2_0000, 0xa_0000, 0x7000]);
    assert_eq!(u32_at(info, 48), 3);
    let module = bytes_at(&plan, 0x6040);
    assert_eq!((u64_at(module, 0), u64_at(module, 8)), (16 * MIB - 0x2000, 0x1801));
    let memmap = bytes_at(&plan, 0x7000);
    assert_eq!((u64_at(memmap, 24), u64_at(memmap, 32), u32_at(memmap, 40)), (MIB, 15 * MIB, 1));
    assert_eq!((u64_at(memmap, 48), u32_at(memmap, 64)), (0xe800_0000, 2));

    for (backing, expected) in [
        (Backing::PrivateAnonymous, Loaded { mapped: 0x3000, copied: 0x345 + 0x801 }),
        (Backing::Other, Loaded { mapped: 0, copied: 0x2345 + 0x1801 }),
    ] {
        let mem = if backing == Backing::Other { memory(16 * MIB).1 } else { mem.clone() };
        assert_eq!(plan.load(&mem, backing).unwrap(), expected);
        let mut loaded = vec![0; 0x9000];
        mem.read_slice(&mut loaded, GuestAddress(0x20_0000)).unwrap();
        assert_eq!(loaded[..0x2345], image[0x1000..0x3345]);
        assert!(loaded[0x2345..].iter().all(|&b| b == 0), "what follows the file part is zero");
        let mut loaded = vec![0; 0x2000];
        mem.read_slice(&mut loaded, GuestAddress(16 * MIB - 0x2000)).unwrap();
        assert_eq!(loaded[..0x1801], ramdisk);
        assert!(loaded[0x1801..].iter().all(|&b| b == 0));
        let mut cmdline = [0; 14];
        mem.read_slice(&mut cmdline, GuestAddress(0x2_0000)).unwrap();
        assert_eq!(&cmdline, b"console=ttyS0\0");
    }
}

#[test]
fn writes_of_the_guest_do_not_reach_the_file() {
    let image = pvh_kernel(LOAD, 0x20_0100);
    let kernel_file = file(&image);
    let kernel = Kernel::open(kernel_file.as_path()).unwrap();
    let (map, mem) = memory(16 * MIB);
    plan(&kernel, None, b"", &map, None).unwrap().load(&mem, Backing::PrivateAnonymous).unwrap();
    mem.write_slice(&[0xff; 0x2345], GuestAddress(0x20_0000)).unwrap();
    let mut now = vec![0; image.len()];
    kernel_file.as_file().read_exact_at(&mut now, 0).unwrap();
    assert!(now == image);
}

#[test]
fn pages_that_do_not_line_up_are_copied() {
    for (offset, address, len, mapped) in [
        (0x1010, 0x20_0000, 0x2000, 0),
        (0x1010, 0x20_0010, 0x1ff0, 0x1000),
        (0x1010, 0x20_0010, 0x1fef, 0),
        (0x1000, 0x20_0000, 0xfff, 0),
        (0x1000, 0x20_0000, 0x1000, 0x1000),
    ] {
        let load = Phdr { offset, address, file_size: len, memory_size: len, ..LOAD };
        let image = pvh_kernel(load, address);
        let (map, mem) = memory(16 * MIB);
        let loaded = plan(&open(&image).unwrap(), None, b"", &map, None)
            .unwrap()
            .load(&mem, Backing::PrivateAnonymous)
            .unwrap();
        assert_eq!(loaded, Loaded { mapped, copied: len - mapped }, "{offset:#x} {address:#x}");
        let mut back = vec![0; len as usize];
        mem.read_slice(&mut back, GuestAddress(address)).unwrap();
        assert!(back == image[offset as usize..][..len as usize]);
    }
}

#[test]
fn file_backed_memory_is_never_replaced() {
    let backing = TempFile::new().unwrap();
    backing.as_file().set_len(16 * MIB).unwrap();
    let offset = vm_memory::FileOffset::new(backing.as_file().try_clone().unwrap(), 0);
    let mem =
        GuestMemoryMmap::<()>::from_ranges_with_files(&[(GuestAddress(0), 16 << 20, Some(offset))]).unwrap();
    let map = MemoryMap::new(16 * MIB, 40).unwrap();
    let kernel = open(&pvh_kernel(LOAD, 0x20_0000)).unwrap();
    let loaded = plan(&kernel, None, b"", &map, None).unwrap().load(&mem, Backing::PrivateAnonymous).unwrap();
    assert_eq!(loaded, Loaded { mapped: 0, copied: 0x2345 });
}

#[test]
pub(super) fn bzimage_gets_its_zero_page() {
    let image = bzimage(0x300, 0x20_0000);
    let kernel = open(&image).unwrap();
    assert_eq!(kernel.entry(), Entry::Linux { address: 0x10_0000 });
    let initramfs = Initramfs::open(file(&[1, 2, 3]).as_path()).unwrap();
    let (map, mem) = memory(64 * MIB);
    let plan = plan(&kernel, Some(&initramfs), b"quiet", &map, Some(0xa_0000)).unwrap();
    assert_disjoint(&plan);
    let page = bytes_at(&plan, 0x7000);
    assert_eq!(page.len(), 0x1000);
    // Everything of the header but what a loader fills in is as the kernel has it.
    assert_eq!(page[0x1f1..0x210], image[0x1f1..0x210]);
    assert_eq!(page[0x22c..0x268], image[0x22c..0x268]);
    assert_eq!(page[0x268..0x2d0], [0; 0x68]);
    assert_eq!((page[0x210], page[0x1e8], u64_at(page, 0x70)), (0xff, 3, 0xa_0000));
    assert_eq!((u32_at(page, 0x218), u32_at(page, 0x21c)), ((64 * MIB - 0x1000) as u32, 3));
    assert_eq!(u32_at(page, 0x228), 0x2_0000);
    let e820: Vec<_> =
        (0..4).map(|i| 0x2d0 + i * 20).map(|at| (u64_at(page, at), u32_at(page, at + 16))).collect();
    assert_eq!(e820, [(0, 1), (MIB, 1), (0xe800_0000, 2), (0, 0)]);

    let loaded = plan.load(&mem, Backing::PrivateAnonymous).unwrap();
    assert_eq!(loaded, Loaded { mapped: 0x3000, copied: 3 });
    let mut back = vec![0; 0x3000];
    mem.read_slice(&mut back, GuestAddress(0x10_0000)).unwrap();
    assert!(back == image[0x1000..]);
}

#[test]
fn what_follows_the_kernel_in_a_bzimage_is_not_loaded() {
    let mut image = bzimage(0x300, 0x1000);
    image.extend([0xee; 100]);
    let (map, _) = memory(64 * MIB);
    let plan = plan(&open(&image).unwrap(), None, b"", &map, None).unwrap();
    assert!(plan.placements.iter().any(|p| p.gpa == MIB && p.len == 0x3000));
}

#[test]
fn old_kernels_bound_the_initramfs() {
    let mut image = bzimage(0x100, 0x1000);
    image[0x236] = 0;
    image[0x22c..0x230].copy_from_slice(&0x2ff_ffffu32.to_le_bytes());
    let initramfs = Initramfs::open(file(&[0; 0x1234]).as_path()).unwrap();
    let (map, _) = memory(128 * MIB);
    let plan = plan(&open(&image).unwrap(), Some(&initramfs), b"", &map, None).unwrap();
    assert!(plan.placements.iter().any(|p| p.gpa == 48 * MIB - 0x2000 && p.len == 0x1234));
}

fn message(result: Result<impl std::fmt::Debug>) -> String {
    result.expect_err("this must be refused").to_string()
}

#[test]
fn what_is_no_kernel_is_refused_by_name() {
    let mut wrong_entry_size = pvh_kernel(LOAD, 0x20_0000);
    wrong_entry_size[54] = 32;
    let mut elf32 = pvh_kernel(LOAD, 0x20_0000);
    elf32[4] = 1;
    let mut big_endian = pvh_kernel(LOAD, 0x20_0000);
    big_endian[5] = 2;
    let mut long_note = pvh_kernel(LOAD, 0x20_0000);
    long_note[0x800..0x804].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut odd_note = pvh_kernel(LOAD, 0x20_0000);
    odd_note[0x800..0x80c].copy_from_slice(&[4, 0, 0, 0, 2, 0, 0, 0, 18, 0, 0, 0]);
    odd_note[0x80c..0x810].copy_from_slice(b"Xen\0");
    let mut zimage = bzimage(0x100, 0);
    zimage[0x211] = 0;
    let mut arm64 = vec![0; 0x300];
    arm64[0x38..0x3c].copy_from_slice(b"ARM\x64");
    let load = |offset, address, file_size, memory_size| {
        pvh_kernel(Phdr { kind: 1, offset, address, file_size, memory_size }, 0x20_0000)
    };
    for (image, text) in [
        (vec![], "is empty"),
        (b"MZ".to_vec(), "is not a kernel"),
        (vec![0x1f, 0x8b, 8, 0, 0], "is not a kernel"),
        (vec![0; 0x1000], "is not a kernel"),
        (b"\x7fELF\x02\x01".to_vec(), "truncated: its ELF header ends at 0x40, the file at 0x6"),
        (elf(62, &[LOAD, NOTES], 0)[..0x60].to_vec(), "truncated: its program header table"),
        (elf(62, &[LOAD], 0x3000), "truncated: its segment ends at 0x3345"),
        (elf(62, &[LOAD], 0x4000), "Kernel lacks PVH header"),
        (elf(183, &[LOAD], 0x4000), "is for aarch64"),
        (elf(4711, &[LOAD], 0x4000), "is for ELF machine 4711"),
        (elf32, "not a 64-bit ELF file"),
        (big_endian, "big-endian"),
        (arm64, "is for aarch64"),
        (wrong_entry_size, "program headers of 32 bytes"),
        (long_note, "a note is longer than its segment"),
        (odd_note, "its PVH note is no 32-bit address"),
        (pvh_kernel(LOAD, 0x30_0000), "lies in no loaded segment"),
        (pvh_kernel(LOAD, 1 << 32), "its PVH note is no 32-bit address"),
        (load(u64::MAX, 0x20_0000, 0x10, 0x10), "truncated: its segment ends at 0xffffffffffffffff"),
        (load(0x1000, u64::MAX - 4, 0x10, 0x10), "wraps around"),
        (load(0x1000, 0x20_0000, 0x20, 0x10), "longer in the file than in memory"),
        (elf(62, &[Phdr { file_size: u64::MAX, ..NOTES }], 0x1000), "bytes of notes"),
        (bzimage(0x300, 0)[..0x205].to_vec(), "is not a kernel"),
        (bzimage(0x300, 0)[..0x208].to_vec(), "truncated: its setup header ends at 0x212"),
        (bzimage(0x300, 0)[..0x230].to_vec(), "truncated: its setup header ends at 0x268"),
        (bzimage(0x300, 0)[..0x2000].to_vec(), "truncated: its protected-mode part ends at 0x3ff1"),
        (bzimage(0, 0), "no protected-mode part"),
        (zimage, "an old zImage"),
    ] {
        let kernel = file(&image);
        let error = message(Kernel::open(kernel.as_path()));
        assert!(error.contains(text), "expected {text:?} in {error:?}");
        assert!(error.contains(kernel.as_path().to_str().unwrap()), "no path in {error:?}");
    }
}

#[test]
fn overlapping_segments_are_refused() {
    let other = Phdr { address: 0x20_8fff, ..LOAD };
    let mut image = elf(62, &[LOAD, NOTES, other], 0x4000);
    let mut notes = note(18, b"Xen\0", &0x20_0000u32.to_le_bytes());
    notes.resize(0x100, 0);
    image[0x800..0x900].copy_from_slice(&notes);
    assert!(message(open(&image)).contains("segments overlap at 0x208fff"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (map, _) = memory(16 * MIB);
    let kernel =
        |address, memory_size| open(&pvh_kernel(Phdr { address, memory_size, ..LOAD }, address)).unwrap();
    let refused =
        |kernel: &Kernel, initramfs: Option<&Initramfs>| message(plan(kernel, initramfs, b"", &map, None));
    for bad in [kernel(0x8_0000, 0x9000), kernel(16 * MIB - 0x4000, 0x9000), kernel(0x20_0000, 1 << 40)] {
        let error = refused(&bad, None);
        assert!(
            error.contains("does not fit in RAM") && error.contains("free is 0x100000..0x1000000"),
            "{error}"
        );
    }
    let unpacked = open(&bzimage(0x100, 1)).unwrap();
    assert!(refused(&unpacked, None).contains("needs 0x1000000..0x1000001"));

    let initramfs = file(&[]);
    initramfs.as_file().set_len(14 * MIB + 1).unwrap();
    let initramfs = Initramfs::open(initramfs.as_path()).unwrap();
    let error = refused(&kernel(0x20_0000, 0x9000), Some(&initramfs));
    assert!(error.starts_with("initramfs") && error.contains("free is 0x209000..0x1000000"), "{error}");
}

#[test]
fn command_lines_have_a_limit() {
    let kernel = open(&pvh_kernel(LOAD, 0x20_0000)).unwrap();
    let (map, _) = memory(16 * MIB);
    let with = |cmdline: &[u8]| plan(&kernel, None, cmdline, &map, None);
    assert!(with(&[b'a'; 65535]).is_ok());
    assert_eq!(
        message(with(&[b'a'; 65536])),
        "kernel command line of 65536 bytes is too long: the limit is 65535"
    );
    assert!(message(with(b"a\0b")).contains("NUL byte at position 1"));
}

#[test]
fn files_that_cannot_be_opened() {
    let error = message(Kernel::open(&PathBuf::from("/nonexistent/vmlinux")));
    assert_eq!(error, "cannot open kernel /nonexistent/vmlinux");
    assert_eq!(message(Kernel::open(Path::new("/tmp"))), "kernel /tmp is not a regular file");
    assert_eq!(message(Initramfs::open(Path::new("/dev/null"))), "initramfs /dev/null is not a regular file");
    let empty = file(&[]);
    assert!(message(Initramfs::open(empty.as_path())).ends_with("is empty"));
}

/// Headers with any byte changed give an error or a plan, never a panic, and a plan stays inside RAM and the file.
#[test]
fn corrupted_headers_are_survived() {
    let (map, _) = memory(32 * MIB);
    let mut plans = 0;
    for image in [pvh_kernel(LOAD, 0x20_0000), bzimage(0x100, 0x1000)] {
        let target = file(&image);
        for at in (0..0x300).chain(0x800..0x8a0) {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                target.as_file().write_all_at(&[value], at).unwrap();
                let planned = Kernel::open(target.as_path()).and_then(|k| plan(&k, None, b"", &map, None));
                for placement in planned.iter().flat_map(|p| &p.placements) {
                    plans += 1;
                    assert!(placement.gpa + placement.len <= 32 * MIB);
                    if let Source::File { offset, .. } = placement.source {
                        assert!(offset + placement.len <= image.len() as u64);
                    }
                }
            }
            target.as_file().write_all_at(&image[at as usize..][..1], at).unwrap();
        }
    }
    assert!(plans > 1_000);
}

/// Kernels of a distribution, where the lab has fetched some (`~/.cache/virga/kernel-*`).
#[test]
fn stock_kernels_load_either_way() {
    let cache = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/virga");
    let dirs = std::fs::read_dir(&cache).into_iter().flatten().flatten().map(|entry| entry.path());
    let images = dirs
        .filter(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kernel-")))
        .flat_map(|dir| [dir.join("vmlinux"), dir.join("bzImage")])
        .filter(|path| path.exists());
    let mut seen = 0;
    for path in images {
        let kernel = Kernel::open(&path).unwrap();
        let is_elf = path.ends_with("vmlinux");
        assert_eq!(matches!(kernel.entry(), Entry::Pvh { .. }), is_elf);
        let (map, mapped) = memory(256 * MIB);
        let plan = plan(&kernel, None, b"quiet", &map, Some(layout::RSDP)).unwrap();
        assert_disjoint(&plan);
        let loaded = plan.load(&mapped, Backing::PrivateAnonymous).unwrap();
        assert!(loaded.copied < 8 * PAGE_SIZE, "{}: {loaded:?}", path.display());
        let (_, copied) = memory(256 * MIB);
        plan.load(&copied, Backing::Other).unwrap();
        let (mut a, mut b) = (vec![0; MIB as usize], vec![0; MIB as usize]);
        for at in (0..256 * MIB).step_by(MIB as usize) {
            mapped.read_slice(&mut a, GuestAddress(at)).unwrap();
            copied.read_slice(&mut b, GuestAddress(at)).unwrap();
            assert!(a == b, "{}: mapping and copying differ at {at:#x}", path.display());
        }
        seen += 1;
    }
    if seen == 0 {
        eprintln!("SKIPPED: no stock kernel in {}; scripts/lab fetches them", cache.display());
    }
}
