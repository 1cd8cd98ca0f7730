//! A real block device: a loop device that the kernel detaches by itself when this test lets go of it, however that happens.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use block::{Choice, Format, Image, Options, Segment, Type};
use vmm_sys_util::tempdir::TempDir;

mod common;

// From <linux/loop.h>.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config` with the members that are of no interest left as bytes.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    before_flags: [u8; 52],
    flags: u32,
    rest: [u8; 240],
}

/// Attaches a file; the descriptor keeps the device alive. `None` if this machine or user cannot.
fn attach(file: &File, block_size: u32) -> Option<(File, PathBuf)> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").ok()?;
    // Another program may take the free one first.
    for _ in 0..10 {
        // SAFETY: no pointers.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).open(&path).ok()?;
        let config = LoopConfig {
            fd: file.as_raw_fd().cast_unsigned(),
            block_size,
            before_flags: [0; 52],
            flags: LO_FLAGS_AUTOCLEAR,
            rest: [0; 240],
        };
        // SAFETY: a valid structure of the size that the kernel reads.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) } == 0 {
            return Some((device, path));
        }
    }
    None
}

#[test]
fn block_devices_are_measured_read_and_written() {
    assert_eq!(size_of::<LoopConfig>(), 304);
    let dir = TempDir::new_in(std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    for (block_size, direct) in [(512, false), (512, true), (4096, false), (4096, true)] {
        let backing = dir.as_path().join("backing");
        fs::write(&backing, vec![3u8; 1 << 20]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&backing).unwrap();
        let Some((device, path)) = attach(&file, block_size) else {
            return eprintln!("no loop devices: not tested");
        };
        let options = Options { path, direct, format: Type::Stated(Format::Raw), ..Options::default() };
        let image = Image::open(&options).unwrap();
        assert_eq!(image.size(), 1 << 20);
        assert_eq!(image.topology().logical_block, block_size);
        assert!(Image::open(&options).is_err(), "locked");
        assert!(!image.id().is_empty());
        for choice in
            [Choice::default(), Choice { io_uring: false, aio: true }, Choice { io_uring: false, aio: false }]
        {
            let mut engine = image.engine(8, choice);
            let mut memory = vec![9u8; 512];
            // SAFETY: `memory` outlives the requests, which `drain` waits for.
            unsafe { engine.write(512, &[Segment::new(memory.as_mut_ptr(), 512)], 0).unwrap() };
            engine.drain(&mut |_, result| assert_eq!(result.unwrap(), 512)).unwrap();
            engine.flush(0).unwrap();
            let mut back = vec![0u8; 1536];
            // SAFETY: as above.
            unsafe { engine.read(0, &[Segment::new(back.as_mut_ptr(), 1536)], 1).unwrap() };
            engine.drain(&mut |_, result| assert!(result.is_ok())).unwrap();
            assert!(back[..512].iter().chain(&back[1024..]).all(|byte| *byte == 3));
            assert!(back[512..1024].iter().all(|byte| *byte == 9));
            if image.sparse().punch {
                engine.zero(8192, 4096, true, 2).unwrap();
                engine.drain(&mut |_, result| assert!(result.is_ok())).unwrap();
            }
        }
        drop((image, device));
    }
}

/// The device is larger than the image in it, and full of something else.
#[test]
fn a_qcow2_image_on_a_block_device_grows_into_it() {
    const MIB: usize = 1 << 20;
    let dir = TempDir::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let backing = dir.as_path().join("backing");
    for (direct, features) in
        [(false, "cluster_size=64k"), (true, "cluster_size=4k"), (false, "cluster_size=512")]
    {
        let image = backing.to_str().unwrap();
        common::qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", features, image, "6M"]);
        let mut bytes = fs::read(&backing).unwrap();
        bytes.resize(9 * MIB, 0xaa);
        fs::write(&backing, bytes).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&backing).unwrap();
        let Some((device, path)) = attach(&file, 512) else {
            return eprintln!("no loop devices: not tested");
        };
        let mut model = vec![0; 6 * MIB];
        for seed in 1..3 {
            let options = Options { direct, ..common::options(&path, Format::Qcow2) };
            let mut disk = common::Disk::open(&options);
            common::exercise(&mut disk, &mut model, &mut common::Random(seed), 100);
        }
        // The device ends: an error to whoever writes, and nothing is lost.
        let mut disk = common::Disk::open(&common::options(&path, Format::Qcow2));
        disk.image.resize(64 << 20).unwrap();
        let full = (0..40).map(|n| disk.write((6 + n) * MIB as u64, &vec![1; MIB])).find_map(Result::err);
        assert_eq!(full.unwrap().raw_os_error(), Some(libc::ENOSPC));
        assert!(disk.read(0, model.len()).unwrap() == model, "{features}");
        drop((disk, device));
        common::check(&backing, true);
        assert!(common::content(&backing, "qcow2")[..model.len()] == model, "{features}");
    }
}
