//! VHD, VHDX and VMDK, against QEMU's tools, in both directions.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use block::{Choice, Format, Image, Options, Type};
use common::{Disk, Random, content, directory, exercise, options, pattern, qemu};

const MIB: usize = 1 << 20;

fn convert(from: &Path, format: &str, features: &str, to: &Path) {
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    qemu("qemu-img", &["convert", "-f", "raw", "-O", format, "-o", features, from, to]);
}

fn message(options: &Options) -> String {
    Image::open(options).map(drop).map_err(|e| e.to_string()).unwrap_err()
}

#[test]
fn a_fixed_vhd_is_the_disk_and_a_footer() {
    let dir = directory();
    let (raw, path) = (dir.as_path().join("raw"), dir.as_path().join("image"));
    let mut random = Random(1);
    let mut model = pattern(3 * MIB, &mut random);
    fs::write(&raw, &model).unwrap();
    convert(&raw, "vpc", "subformat=fixed,force_size=on", &path);
    let footer = fs::read(&path).unwrap()[model.len()..].to_vec();
    let mut disk = Disk::open(&options(&path, Format::Vhd));
    assert_eq!(disk.image.size(), model.len() as u64);
    exercise(&mut disk, &mut model, &mut random, 100);
    assert!(disk.image.resize(4 * MIB as u64).is_err());
    drop(disk);
    assert!(content(&path, "vpc") == model);
    assert!(fs::read(&path).unwrap()[model.len()..] == footer);

    // Not stated: recognised, and the first sector is protected.
    let guess = Image::open(&Options { format: Type::Unknown, ..options(&path, Format::Vhd) }).unwrap();
    assert!(guess.format() == Format::Vhd && guess.protects_sector0());
    drop(guess);
    // Found to be raw once: raw for ever, whatever is in its last sector.
    let found = Options { format: Type::Found(Format::Raw), ..options(&path, Format::Raw) };
    assert_eq!(Image::open(&found).unwrap().size(), model.len() as u64 + 512);

    convert(&raw, "vpc", "subformat=dynamic", &path);
    assert!(message(&options(&path, Format::Vhd)).contains("subformat=fixed"));
    for lie in [u64::MAX, 0, 511, model.len() as u64 + 512] {
        let mut bytes = footer.clone();
        bytes[48..56].copy_from_slice(&lie.to_be_bytes());
        bytes[64..68].fill(0);
        let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        fs::write(&path, [&model[..], &bytes].concat()).unwrap();
        assert!(message(&options(&path, Format::Vhd)).contains("size does not fit"), "{lie}");
    }
}

#[test]
fn a_flat_vmdk_is_the_file_that_its_descriptor_names() {
    let dir = directory();
    let (raw, path) = (dir.as_path().join("raw"), dir.as_path().join("image.vmdk"));
    let mut random = Random(2);
    let mut model = pattern(3 * MIB, &mut random);
    fs::write(&raw, &model).unwrap();
    convert(&raw, "vmdk", "subformat=monolithicFlat", &path);
    let mut disk = Disk::open(&options(&path, Format::Vmdk));
    exercise(&mut disk, &mut model, &mut random, 100);
    assert!(message(&options(&path, Format::Vmdk)).contains("locked"), "both files are");
    drop(disk);
    assert!(content(&path, "vmdk") == model);
    let guess = Options { format: Type::Unknown, ..options(&path, Format::Vmdk) };
    assert!(message(&guess).contains("say image_type=vmdk"));

    // The file that is named must be there itself.
    let flat = dir.as_path().join("image-flat.vmdk");
    fs::rename(&flat, dir.as_path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.as_path().join("elsewhere"), &flat).unwrap();
    assert!(message(&options(&path, Format::Vmdk)).contains("image-flat.vmdk"));
    convert(&raw, "vmdk", "subformat=monolithicSparse", &path);
    assert!(message(&options(&path, Format::Vmdk)).contains("only flat ones"));
}

#[test]
fn vhdx_images_are_written_and_read_and_qemu_finds_them_in_order() {
    let dir = directory();
    let (raw, path) = (dir.as_path().join("raw"), dir.as_path().join("image"));
    for (n, features) in
        ["block_size=1M", "block_size=8M,subformat=fixed", "block_size=2M,log_size=1M", "log_size=2M"]
            .into_iter()
            .enumerate()
    {
        let mut random = Random(n as u64 + 1);
        let mut model = pattern(24 * MIB, &mut random);
        model[5 * MIB..15 * MIB].fill(0);
        fs::write(&raw, &model).unwrap();
        convert(&raw, "vhdx", features, &path);
        for choice in [Choice::default(), Choice { io_uring: false, aio: false }] {
            let mut disk = Disk::with(&options(&path, Format::Vhdx), choice);
            assert_eq!(disk.image.size(), model.len() as u64);
            exercise(&mut disk, &mut model, &mut random, 100);
            assert!(disk.image.resize(40 * MIB as u64).is_err());
            drop(disk);
            qemu("qemu-img", &["check", "-f", "vhdx", path.to_str().unwrap()]);
            assert!(content(&path, "vhdx") == model, "{features}");
        }
        qemu("qemu-io", &["-f", "vhdx", "-c", "write -P 9 6M 3M", path.to_str().unwrap()]);
        model[6 * MIB..9 * MIB].fill(9);
        let mut disk = Disk::open(&options(&path, Format::Vhdx));
        assert!(disk.read(0, model.len()).unwrap() == model);
    }
}

/// QEMU is killed while it writes, so that its log is not empty.
#[test]
fn the_log_of_a_vhdx_is_replayed() {
    let dir = directory();
    let path = dir.as_path().join("image");
    let mut replayed = 0;
    for round in 0..40 {
        qemu(
            "qemu-img",
            &["create", "-q", "-f", "vhdx", "-o", "block_size=1M", path.to_str().unwrap(), "64M"],
        );
        let writes: Vec<String> = (0..60).map(|n| format!("write -P {} {}M 1M", n + 1, n)).collect();
        let mut command = std::process::Command::new("qemu-io");
        command.args(["-f", "vhdx", path.to_str().unwrap()]).stdout(std::process::Stdio::null());
        for write in &writes {
            command.args(["-c", write]);
        }
        let mut child = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(15 + round * 4));
        child.kill().unwrap();
        child.wait().unwrap();
        let before = fs::read(&path).unwrap();
        let current =
            if before[64 * 1024 + 8..][..8].iter().rev().gt(before[128 * 1024 + 8..][..8].iter().rev()) {
                64
            } else {
                128
            };
        let has_log = before[current * 1024 + 48..][..16].iter().any(|byte| *byte != 0);
        let readonly = Options { readonly: true, ..options(&path, Format::Vhdx) };
        assert_eq!(Image::open(&readonly).is_err(), has_log);
        let mut disk = Disk::open(&options(&path, Format::Vhdx));
        for n in 0..60 {
            let bytes = disk.read(n * MIB as u64, MIB).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0 || u64::from(*byte) == n + 1), "{n}");
        }
        drop(disk);
        qemu("qemu-img", &["check", "-f", "vhdx", path.to_str().unwrap()]);
        replayed += u32::from(has_log);
        if replayed >= 3 {
            return;
        }
    }
    assert!(replayed > 0, "QEMU was never killed at the right moment");
}

#[test]
fn random_damage_to_a_vhdx_does_no_harm() {
    let dir = directory();
    let (raw, path) = (dir.as_path().join("raw"), dir.as_path().join("image"));
    fs::write(&raw, pattern(3 * MIB, &mut Random(1))).unwrap();
    convert(&raw, "vhdx", "block_size=1M", &path);
    let bytes = fs::read(&path).unwrap();
    let mut random = Random(3);
    let starts = [0, 64 << 10, 128 << 10, 192 << 10, 256 << 10, 2 * MIB, 2 * MIB + (64 << 10), 3 * MIB];
    for round in 0..100 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + random.below(4) {
            let at = starts[random.below(8) as usize] + random.below(180) as usize;
            damaged[at] = [0, 0xff, 1 << random.below(8), random.next() as u8][random.below(4) as usize];
        }
        // Headers and regions are believed only with their checksums.
        for (at, length) in
            [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)]
        {
            let sum = crc32c(&damaged[at..at + length]);
            damaged[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
        if round % 10 == 0 {
            damaged.truncate(random.below(bytes.len() as u64) as usize);
        }
        fs::write(&path, &damaged).unwrap();
        let Ok(image) = Image::open(&options(&path, Format::Vhdx)) else { continue };
        let engine = image.engine(4, Choice::default());
        let mut disk = Disk { image, engine };
        let size = disk.image.size();
        for _ in 0..10 {
            let offset = random.below((size / 512).min(8192)) * 512;
            let length = (64 << 10).min(size - offset);
            let _ = disk.read(offset, length as usize);
            let _ = disk.write(offset, &vec![0x77; length as usize]);
            let _ = disk.zero(offset, length, true);
        }
        let _ = disk.flush();
        drop(disk);
        assert!(fs::metadata(&path).unwrap().len() < 2 << 30);
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for (at, byte) in bytes.iter().enumerate() {
        crc ^= u32::from(if (4..8).contains(&at) { 0 } else { *byte });
        (0..8).for_each(|_| crc = if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 });
    }
    !crc
}
