//! Kernels and initial RAM file systems that are none.

use std::fs;

use tests::programs;

use crate::bench::{Bench, heeding_permissions, root};

const OUTER: [&str; 2] = ["Error booting VM", "Cannot load the kernel"];
const NO_SUCH_FILE: &str = "No such file or directory (os error 2)";

#[track_caller]
fn refuses(bench: &Bench, inner: &[&str]) {
    bench.refuses(&["--kernel", "k"], &[&OUTER, inner].concat());
}

#[track_caller]
fn refuses_file(content: &[u8], message: &str) {
    let bench = Bench::new();
    bench.file("k", content);
    refuses(&bench, &[message]);
}

#[test]
fn a_kernel_that_is_no_file() {
    let bench = Bench::new();
    refuses(&bench, &["cannot open kernel k", NO_SUCH_FILE]);
    fs::create_dir(bench.path("k")).unwrap();
    refuses(&bench, &["kernel k is not a regular file"]);
    fs::remove_dir(bench.path("k")).unwrap();
    bench.fifo("k");
    refuses(&bench, &["kernel k is not a regular file"]);
    let inner = ["cannot open kernel k/k", "Not a directory (os error 20)"];
    bench.refuses(&["--kernel", "k/k"], &[&OUTER[..], &inner].concat());
    let inner = ["kernel /dev/null is not a regular file"];
    bench.refuses(&["--kernel", "/dev/null"], &[&OUTER[..], &inner].concat());
}

#[test]
fn boot_files_that_may_not_be_read() {
    if !root("boot files without permission") {
        return;
    }
    let bench = Bench::new();
    for name in ["k", "i"] {
        bench.file(name, "secret");
        let mut permissions = fs::metadata(bench.path(name)).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0);
        fs::set_permissions(bench.path(name), permissions).unwrap();
    }
    let denied = "Permission denied (os error 13)";
    let mut command = bench.machine(&["--kernel", "k"]);
    let chain = [OUTER[0], OUTER[1], "cannot open kernel k", denied];
    bench.refused(heeding_permissions(&mut command), &chain);
    let mut command = bench.machine(&["--initramfs", "i"]);
    let chain = [OUTER[0], "Cannot load the initramfs", "cannot open initramfs i", denied];
    bench.refused(heeding_permissions(&mut command), &chain);
}

#[test]
fn an_initramfs_that_is_no_file() {
    let bench = Bench::new();
    let refuses = |inner: &[&str]| {
        bench.refuses(&["--initramfs", "i"], &[&[OUTER[0], "Cannot load the initramfs"], inner].concat());
    };
    refuses(&["cannot open initramfs i", NO_SUCH_FILE]);
    bench.file("i", "");
    refuses(&["initramfs i is empty"]);
    fs::remove_file(bench.path("i")).unwrap();
    fs::create_dir(bench.path("i")).unwrap();
    refuses(&["initramfs i is not a regular file"]);
}

#[test]
fn an_initramfs_larger_than_memory() {
    let bench = Bench::new();
    fs::File::create(bench.path("i")).unwrap().set_len(65 << 20).unwrap();
    let mut command = bench.machine(&["--initramfs", "i"]);
    let outcome = bench.run_unchanged(&mut command);
    assert_eq!(outcome.status.code(), Some(1));
    assert!(
        outcome.messages.contains("initramfs i does not fit in RAM: it needs 0x"),
        "{}",
        outcome.messages
    );
}

#[test]
fn files_that_are_no_kernel() {
    let nothing = "k is not a kernel: neither an ELF file nor a bzImage";
    refuses_file(b"", "kernel k is empty");
    refuses_file(b"\n", nothing);
    refuses_file(b"#!/bin/sh\nexec qemu\n", nothing);
    refuses_file(&[0; 0x300], nothing);
    refuses_file(b"\x1f\x8b\x08 a compressed vmlinux", nothing);
    let mut arm = [0; 0x40];
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    refuses_file(&arm, "kernel k is for aarch64, this machine is x86_64");
}

/// An ELF header with a program header table of `segments` behind it.
fn elf(machine: u16, segments: &[[u64; 7]]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16] = 2;
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[32] = 64; // the table's offset
    file[54] = 56; // the size of its entries
    file[56] = u8::try_from(segments.len()).unwrap();
    file.extend(segments.iter().flatten().flat_map(|word| word.to_le_bytes()));
    file
}

#[test]
fn elf_files_that_are_no_kernel() {
    let load = |address, in_file, in_memory| [1, 0, address, address, in_file, in_memory, 4096];
    refuses_file(&elf(183, &[]), "kernel k is for aarch64, this machine is x86_64");
    refuses_file(&elf(3, &[]), "kernel k is for i386 (32-bit), this machine is x86_64");
    let lacks = "Kernel lacks PVH header: k is an ELF file without a Xen note of type 18";
    refuses_file(&elf(62, &[]), lacks);
    refuses_file(&elf(62, &[load(0x10_0000, 8, 4096)]), lacks);
    refuses_file(
        &elf(62, &[load(0x10_0000, 4096, 8)]),
        "kernel k is malformed: a segment is longer in the file than in memory",
    );
    refuses_file(
        &elf(62, &[load(u64::MAX, 8, 8)]),
        "kernel k is malformed: a segment wraps around the address space",
    );
    refuses_file(
        &elf(62, &[[4, 0, 0, 0, u64::MAX, 0, 4]]),
        "kernel k is malformed: 0xffffffffffffffff bytes of notes",
    );
    let mut odd = elf(62, &[]);
    odd[54] = 55;
    refuses_file(&odd, "kernel k is malformed: program headers of 55 bytes");
    let program = fs::read("/bin/sh").unwrap();
    let bench = Bench::new();
    bench.file("k", program);
    refuses(&bench, &[lacks]);
}

#[test]
fn a_truncated_elf_kernel_is_refused_whatever_its_length() {
    let whole = fs::read(programs::probe()).unwrap();
    let word = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
    let (table, count) = (word(32), usize::from(whole[56]));
    let entries = (0..count).map(|i| table + 56 * i);
    // Ends of what the loader reads: header, table, and each segment that is loaded or has notes.
    let parts = entries.filter(|at| matches!(whole[*at], 1 | 4)).map(|at| word(at + 8) + word(at + 32));
    let ends: Vec<usize> = [64, table + 56 * count].into_iter().chain(parts).collect();
    let mut lengths: Vec<usize> =
        ends.iter().flat_map(|end| [end / 2, end - 1]).chain([4, 5, 16, 65]).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let last = *ends.iter().max().unwrap();
    let bench = Bench::new();
    for length in lengths.into_iter().filter(|length| (4..last).contains(length)) {
        bench.file("k", &whole[..length]);
        let outcome = bench.run_unchanged(&mut bench.machine(&["--kernel", "k"]));
        assert_eq!(outcome.status.code(), Some(1), "{length} bytes");
        let wanted = "Cannot load the kernel\n  2: kernel k is truncated: its ".to_owned();
        assert!(outcome.messages.contains(&wanted), "{length} bytes: {}", outcome.messages);
        let told = format!(", the file at {length:#x}\n");
        assert!(outcome.messages.ends_with(&told), "{length} bytes: {}", outcome.messages);
    }
}

/// A bzImage of protocol 2.15 whose protected-mode part has `paragraphs` of 16 bytes and is filled with halts.
fn bzimage(paragraphs: u32) -> Vec<u8> {
    let mut file = vec![0xf4; 1024 + 16 * paragraphs as usize];
    file[..1024].fill(0);
    file[0x1f1] = 1; // sectors of setup code
    file[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x211] = 1; // loaded high
    file
}

#[test]
fn a_truncated_bzimage_is_refused_whatever_its_length() {
    let whole = bzimage(256);
    let nothing = "k is not a kernel: neither an ELF file nor a bzImage".to_owned();
    let cut = |part, end: usize, length: usize| {
        format!("kernel k is truncated: its {part} ends at {end:#x}, the file at {length:#x}")
    };
    let protected = 1024 + 16 * 256 - 15;
    for (length, message) in [
        (0x1ff, nothing.clone()),
        (0x205, nothing),
        (0x206, cut("setup header", 0x212, 0x206)),
        (0x211, cut("setup header", 0x212, 0x211)),
        (0x212, cut("setup header", 0x268, 0x212)),
        (0x267, cut("setup header", 0x268, 0x267)),
        (0x268, cut("protected-mode part", protected, 0x268)),
        (1024, cut("protected-mode part", protected, 1024)),
        (protected - 1, cut("protected-mode part", protected, protected - 1)),
    ] {
        refuses_file(&whole[..length], &message);
    }
    let mut old = whole.clone();
    old[0x211] = 0;
    refuses_file(&old, "kernel k is malformed: an old zImage, which loads below 1 MiB");
    refuses_file(&bzimage(0), "kernel k is malformed: it has no protected-mode part");
}
