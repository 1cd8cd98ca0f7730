//! qcow2, against QEMU's tools, in both directions.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use block::{Choice, Format, Image, Options, Type};
use common::{Disk, Random, check, content, directory, exercise, options, pattern, qemu};

const MIB: usize = 1 << 20;

/// Creates an image of `size` bytes.
fn create(path: &std::path::Path, features: &str, size: usize) {
    qemu(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", features, path.to_str().unwrap(), &size.to_string()],
    );
}

#[test]
fn images_of_every_kind_are_written_and_read_and_qemu_finds_them_in_order() {
    let dir = directory();
    let path = dir.as_path().join("image");
    for (n, features) in [
        "compat=v3",
        "compat=0.10",
        "compat=v3,cluster_size=512",
        "compat=0.10,cluster_size=4096",
        "compat=v3,cluster_size=2M",
        "compat=v3,refcount_bits=1",
        "compat=v3,refcount_bits=64,cluster_size=1024",
        "compat=v3,preallocation=metadata",
        "compat=v3,preallocation=full,cluster_size=8192",
        "compat=v3,lazy_refcounts=on",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on,cluster_size=2M",
        "extended_l2=on,cluster_size=128k,preallocation=metadata",
        "extended_l2=on,cluster_size=32k,preallocation=full,refcount_bits=1",
    ]
    .into_iter()
    .enumerate()
    {
        let size = 6 * MIB + 512 * 3;
        create(&path, features, size);
        let mut random = Random(n as u64 + 1);
        let mut model = vec![0; size];
        // Half of the content is QEMU's.
        qemu(
            "qemu-io",
            &["-f", "qcow2", "-c", "write -P 7 100k 3M", "-c", "write -z 300k 1M", path.to_str().unwrap()],
        );
        model[100 << 10..(100 << 10) + 3 * MIB].fill(7);
        model[300 << 10..(300 << 10) + MIB].fill(0);
        for choice in [Choice::default(), Choice { io_uring: false, aio: false }] {
            let mut disk = Disk::with(&options(&path, Format::Qcow2), choice);
            assert_eq!(disk.image.size(), size as u64);
            exercise(&mut disk, &mut model, &mut random, 150);
            drop(disk);
            check(&path, false);
            assert!(content(&path, "qcow2") == model, "{features}");
        }
        // And once more through QEMU.
        qemu(
            "qemu-io",
            &["-f", "qcow2", "-c", "write -P 9 2M 1M", "-c", "discard 64k 512k", path.to_str().unwrap()],
        );
        model = content(&path, "qcow2");
        let mut disk = Disk::open(&options(&path, Format::Qcow2));
        exercise(&mut disk, &mut model, &mut random, 50);
        drop(disk);
        check(&path, false);
    }
}

#[test]
fn direct_io_works_whatever_the_size_of_clusters() {
    let dir =
        vmm_sys_util::tempdir::TempDir::new_in(std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let path = dir.as_path().join("image");
    for cluster in ["512", "65536"] {
        create(&path, &format!("cluster_size={cluster}"), MIB);
        let mut model = vec![0; MIB];
        for choice in [Choice::default(), Choice { io_uring: false, aio: true }] {
            let options = Options { direct: true, ..options(&path, Format::Qcow2) };
            let mut disk = Disk::with(&options, choice);
            exercise(&mut disk, &mut model, &mut Random(5), 60);
            drop(disk);
            check(&path, false);
            assert!(content(&path, "qcow2") == model);
        }
    }
}

#[test]
fn compressed_clusters_are_read_and_replaced() {
    let dir = directory();
    let (path, raw) = (dir.as_path().join("image"), dir.as_path().join("raw"));
    let mut random = Random(3);
    let bytes = pattern(4 * MIB, &mut random);
    fs::write(&raw, &bytes).unwrap();
    for features in [
        "compression_type=zlib",
        "compression_type=zstd",
        "compression_type=zlib,cluster_size=4096",
        "compression_type=zstd,cluster_size=2M",
        "compat=0.10,cluster_size=512",
        "compression_type=zlib,extended_l2=on,cluster_size=16k",
        "compression_type=zstd,extended_l2=on",
    ] {
        let (raw, image) = (raw.to_str().unwrap(), path.to_str().unwrap());
        qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", features, raw, image]);
        let mut model = bytes.clone();
        let mut disk = Disk::open(&options(&path, Format::Qcow2));
        assert!(disk.read(0, model.len()).unwrap() == model, "{features}");
        exercise(&mut disk, &mut model, &mut random, 200);
        drop(disk);
        check(&path, false);
        assert!(content(&path, "qcow2") == model, "{features}");
    }
}

/// A chain of three: raw, qcow2, qcow2, each of another size.
fn chain(
    dir: &vmm_sys_util::tempdir::TempDir,
    features: [&str; 2],
    random: &mut Random,
) -> (PathBuf, Vec<u8>) {
    let at = |name: &str| dir.as_path().join(name);
    let mut bytes = pattern(3 * MIB, random);
    fs::write(at("base"), &bytes).unwrap();
    let (middle, top) = (at("middle"), at("top"));
    qemu(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            features[0],
            "-b",
            "base",
            "-F",
            "raw",
            middle.to_str().unwrap(),
            "4M",
        ],
    );
    let scattered =
        ["write -P 5 1M 200k", "write -P 6 2050k 3k", "write -z 1600k 7k"].map(|line| ["-c", line]);
    qemu("qemu-io", &[&["-f", "qcow2"], scattered.as_flattened(), &[middle.to_str().unwrap()]].concat());
    bytes.resize(4 * MIB, 0);
    bytes[MIB..MIB + (200 << 10)].fill(5);
    bytes[2050 << 10..2053 << 10].fill(6);
    bytes[1600 << 10..1607 << 10].fill(0);
    qemu(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            features[1],
            "-b",
            "middle",
            "-F",
            "qcow2",
            top.to_str().unwrap(),
            "5M",
        ],
    );
    bytes.resize(5 * MIB, 0);
    (top, bytes)
}

#[test]
fn backing_files_are_read_and_never_written_and_only_when_asked_for() {
    let plain = ["compat=v3", "compat=v3"];
    let divided = ["extended_l2=on", "extended_l2=on,cluster_size=16k"];
    for features in [plain, divided, [plain[0], divided[0]], [divided[1], plain[1]]] {
        let dir = directory();
        let mut random = Random(9);
        let (top, mut model) = chain(&dir, features, &mut random);
        let below = || ["base", "middle"].map(|name| fs::read(dir.as_path().join(name)).unwrap());
        let before = below();
        let allowed = Options { backing_files: true, ..options(&top, Format::Qcow2) };
        for refused in [
            Options { backing_files: false, ..allowed.clone() },
            Options { format: Type::Unknown, ..allowed.clone() },
            Options { format: Type::Found(Format::Qcow2), ..allowed.clone() },
        ] {
            let error = Image::open(&refused).unwrap_err().to_string();
            assert!(
                error.contains("builds upon \"middle\"; say image_type=qcow2,backing_files=on"),
                "{error}"
            );
        }
        let mut disk = Disk::open(&allowed);
        assert!(disk.read(0, model.len()).unwrap() == model);
        assert!(disk.image.resize(6 * MIB as u64).is_err());
        exercise(&mut disk, &mut model, &mut random, 200);
        drop(disk);
        check(&top, false);
        assert!(content(&top, "qcow2") == model, "{features:?}");
        assert!(below() == before);
    }
}

/// A few bytes are written: no more than their subclusters are copied from below, and space comes back by parts.
#[test]
fn subclusters_are_made_and_given_back_one_by_one() {
    use std::os::unix::fs::MetadataExt;
    let dir = directory();
    let path = dir.as_path().join("image");
    let image = path.to_str().unwrap();
    fs::write(dir.as_path().join("base"), vec![9; 4 * MIB]).unwrap();
    let create = |name: &str| {
        let features = "extended_l2=on,cluster_size=2M";
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", features, "-b", "base", "-F", "raw", name]);
    };
    create(image);
    let opened = || Disk::open(&Options { backing_files: true, ..options(&path, Format::Qcow2) });
    let used = || fs::metadata(&path).unwrap().blocks() * 512;
    let mut model = vec![9; 4 * MIB];
    let mut disk = opened();
    disk.flush().unwrap();
    let before = used();
    disk.write(70 << 10, &[1; 512]).unwrap();
    model[70 << 10..(70 << 10) + 512].fill(1);
    disk.flush().unwrap();
    // An L2 table and a subcluster of 64 KiB, not a cluster.
    assert!(used() - before <= (2 << 20) + (64 << 10), "{} bytes", used() - before);
    drop(disk);
    let map = qemu("qemu-img", &["map", "--output=json", image]);
    let part = r#""start": 65536, "length": 65536, "depth": 0"#;
    assert!(map.contains(part), "{map}");

    let mut disk = opened();
    disk.zero(64 << 10, 64 << 10, true).unwrap();
    model[64 << 10..128 << 10].fill(0);
    disk.zero(1 << 20, 33 << 10, false).unwrap();
    model[MIB..MIB + (33 << 10)].fill(0);
    drop(disk);
    check(&path, false);
    assert!(content(&path, "qcow2") == model);
}

#[test]
fn snapshots_inside_an_image_stay_as_they_are() {
    for features in ["cluster_size=4096", "cluster_size=16k,extended_l2=on"] {
        let dir = directory();
        let path = dir.as_path().join("image");
        create(&path, features, 2 * MIB);
        let image = path.to_str().unwrap();
        qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 3 0 1M", "-c", "write -P 4 1500k 2k", image]);
        qemu("qemu-img", &["snapshot", "-c", "first", image]);
        let then = content(&path, "qcow2");
        let mut model = then.clone();
        let mut disk = Disk::open(&options(&path, Format::Qcow2));
        exercise(&mut disk, &mut model, &mut Random(4), 200);
        drop(disk);
        check(&path, false);
        assert!(content(&path, "qcow2") == model);
        qemu("qemu-img", &["snapshot", "-a", "first", image]);
        check(&path, false);
        assert!(content(&path, "qcow2") == then, "{features}");
    }
}

#[test]
fn an_image_grows_and_does_not_shrink() {
    let dir = directory();
    let path = dir.as_path().join("image");
    for features in ["cluster_size=64k", "cluster_size=512", "cluster_size=16k,extended_l2=on"] {
        create(&path, features, MIB);
        let mut random = Random(2);
        let mut model = vec![0; MIB];
        let mut disk = Disk::open(&options(&path, Format::Qcow2));
        exercise(&mut disk, &mut model, &mut random, 50);
        for size in [2 * MIB, 40 * MIB, 41 * MIB] {
            assert!(disk.image.resize(MIB as u64 / 2).is_err());
            disk.image.resize(size as u64).unwrap();
            assert_eq!(disk.image.size(), size as u64);
            model.resize(size, 0);
            exercise(&mut disk, &mut model, &mut random, 60);
        }
        assert!(disk.image.resize(1 << 62).is_err());
        drop(disk);
        check(&path, false);
        assert!(content(&path, "qcow2") == model);
    }
}

/// Several queues at once, each on stripes of its own, so that tables and runs are everybody's.
#[test]
fn queues_share_an_image() {
    const STRIPE: usize = 96 << 10;
    let dir = directory();
    let path = dir.as_path().join("image");
    for features in [
        "cluster_size=64k",
        "cluster_size=4k",
        "compat=0.10,cluster_size=16k",
        "cluster_size=64k,extended_l2=on",
    ] {
        create(&path, features, 12 * MIB);
        let image = Image::open(&options(&path, Format::Qcow2)).unwrap();
        let model: Vec<u8> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3usize)
                .map(|queue| {
                    let image = image.clone();
                    scope.spawn(move || {
                        let engine = image.engine(8, Choice::default());
                        let mut disk = Disk { image, engine };
                        let mut random = Random(queue as u64 + 1);
                        let mut stripes = vec![vec![0u8; STRIPE]; 12 * MIB / STRIPE / 3];
                        for _ in 0..400 {
                            let n = random.below(stripes.len() as u64) as usize;
                            let base = ((n * 3 + queue) * STRIPE) as u64;
                            let start = random.below(STRIPE as u64 / 512) as usize * 512;
                            let length = ((1 + random.below(100) as usize) * 512).min(STRIPE - start);
                            let range = start..start + length;
                            let at = base + start as u64;
                            match random.below(6) {
                                0 => disk.flush().unwrap(),
                                1 | 2 => {
                                    disk.zero(at, length as u64, true).unwrap();
                                    stripes[n][range].fill(0);
                                }
                                3 => assert!(disk.read(at, length).unwrap() == stripes[n][range]),
                                _ => {
                                    stripes[n][range.clone()].fill(random.next() as u8);
                                    disk.write(at, &stripes[n][range]).unwrap();
                                }
                            }
                        }
                        stripes
                    })
                })
                .collect();
            let queues: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            (0..12 * MIB / STRIPE / 3 * 3).flat_map(|n| queues[n % 3][n / 3].clone()).collect()
        });
        drop(image);
        check(&path, false);
        assert!(content(&path, "qcow2")[..model.len()] == model, "{features}");
    }
}

/// A huge range of nothing is zeroed in no time.
#[test]
fn a_huge_hole_stays_one() {
    let dir = directory();
    let path = dir.as_path().join("image");
    create(&path, "cluster_size=64k", 1 << 42);
    let mut disk = Disk::open(&options(&path, Format::Qcow2));
    disk.write(1 << 41, &[7; 4096]).unwrap();
    let begin = std::time::Instant::now();
    disk.zero(0, 1 << 42, true).unwrap();
    assert!(begin.elapsed() < std::time::Duration::from_secs(30), "{:?}", begin.elapsed());
    assert_eq!(disk.read(1 << 41, 4096).unwrap(), [0; 4096]);
    drop(disk);
    check(&path, false);
    assert!(fs::metadata(&path).unwrap().len() < 4 << 20);
}

/// The refcount table has to move several times.
#[test]
fn a_large_image_of_small_clusters_fills_up() {
    let dir = directory();
    let path = dir.as_path().join("image");
    create(&path, "cluster_size=512", 64 * MIB);
    let mut disk = Disk::open(&options(&path, Format::Qcow2));
    let model = pattern(40 * MIB, &mut Random(1));
    for (n, chunk) in model.chunks(MIB).enumerate() {
        disk.write((n * MIB) as u64, chunk).unwrap();
        if n % 7 == 0 {
            disk.flush().unwrap();
        }
    }
    drop(disk);
    check(&path, false);
    assert!(content(&path, "qcow2")[..model.len()] == model);
}

/// Space that was given back is used again, and the file does not grow for ever.
#[test]
fn discarded_space_is_used_again() {
    let dir = directory();
    let path = dir.as_path().join("image");
    create(&path, "compat=v3", 64 * MIB);
    let mut disk = Disk::open(&options(&path, Format::Qcow2));
    let bytes = vec![0x11; 4 * MIB];
    for round in 0..40u64 {
        let offset = round % 16 * (4 * MIB) as u64;
        disk.write(offset, &bytes).unwrap();
        disk.flush().unwrap();
        disk.zero(offset, bytes.len() as u64, true).unwrap();
        disk.flush().unwrap();
    }
    drop(disk);
    check(&path, false);
    let length = fs::metadata(&path).unwrap().len();
    assert!(length < 20 * MIB as u64, "{length}");
}

/// A writer that is killed: everything that was flushed is there, and the image has no errors.
#[test]
fn a_killed_writer_leaves_a_good_image_with_all_that_was_flushed() {
    const CHILD: &str = "BLOCK_TEST_WRITER";
    const ROUND: usize = 512 << 10;
    if let Some(path) = std::env::var_os(CHILD) {
        let mut disk = Disk::open(&options(path.as_ref(), Format::Qcow2));
        let mut random = Random(7);
        for round in 0u64.. {
            // Scattered, so that tables are made all the time.
            let at = random.below(1000) * (1 << 20);
            disk.write(at, &vec![round as u8 | 1; ROUND]).unwrap();
            if round % 3 == 0 {
                disk.zero(random.below(1000) * (1 << 20) + (600 << 10), 300 << 10, true).unwrap();
            }
            if round % 5 == 0 {
                disk.flush().unwrap();
                println!("\ndurable: {at} {}", round as u8 | 1);
            }
        }
    }
    use std::io::{BufRead, BufReader};
    let dir = directory();
    let path = dir.as_path().join("image");
    for (rounds, features) in
        [(3, "compat=v3"), (30, "compat=0.10"), (40, "compat=v3,cluster_size=4096"), (11, "extended_l2=on")]
    {
        create(&path, features, 1001 << 20);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_writer_leaves_a_good_image_with_all_that_was_flushed", "--nocapture"])
            .env(CHILD, &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut last = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap) {
            let Some((_, durable)) = line.split_once("durable: ") else { continue };
            let (at, byte) = durable.split_once(' ').unwrap();
            last = Some((at.parse::<u64>().unwrap(), byte.parse::<u8>().unwrap()));
            if byte.parse::<u64>().unwrap() / 5 >= rounds {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        check(&path, true);
        let mut disk = Disk::open(&options(&path, Format::Qcow2));
        let (at, byte) = last.unwrap();
        let found = disk.read(at, ROUND).unwrap();
        // A write that was not flushed yet may have come later.
        assert!(found.iter().all(|found| *found >= byte), "{features}");
        disk.write(0, &[1; 4096]).unwrap();
        drop(disk);
        check(&path, true);
    }
}

#[test]
fn a_guest_that_never_flushes_cannot_make_the_file_grow_without_end() {
    let dir = directory();
    let path = dir.as_path().join("image");
    create(&path, "cluster_size=64k", MIB);
    let mut disk = Disk::open(&options(&path, Format::Qcow2));
    let bytes = vec![7; 64 << 10];
    let mut most = 0;
    for _ in 0..6000 {
        disk.write(0, &bytes).unwrap();
        disk.engine.discard(0, 64 << 10, 0).unwrap();
        disk.wait().unwrap();
        most = most.max(fs::metadata(&path).unwrap().len());
    }
    assert!(most < 200 * MIB as u64, "{most} bytes for a disk of one MiB");
    disk.write(0, &bytes).unwrap();
    assert!(disk.read(0, 64 << 10).unwrap() == bytes);
    drop(disk);
    check(&path, false);
}
