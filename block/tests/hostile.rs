//! Images that lie: an error, never a hang, a crash, runaway memory, or another file touched.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use block::{Format, Image, Options};
use common::{Disk, Random, directory, options, pattern, qemu};

const MIB: usize = 1 << 20;

/// A good image with a bit of everything.
fn good(path: &Path, features: &str) -> Vec<u8> {
    let image = path.to_str().unwrap();
    let raw = path.with_extension("raw");
    fs::write(&raw, pattern(MIB, &mut Random(1))).unwrap();
    qemu(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", features, raw.to_str().unwrap(), image],
    );
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 300k", "-c", "write -z 300k 100k", image]);
    fs::read(path).unwrap()
}

fn put(bytes: &mut [u8], at: usize, value: u64, width: usize) {
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Uses an image in every way, whatever comes of it. Returns whether it could be opened for writing.
fn abuse(options: &Options, seed: u64) -> bool {
    let begin = Instant::now();
    for readonly in [true, false] {
        let Ok(image) = Image::open(&Options { readonly, ..options.clone() }) else {
            if readonly {
                continue;
            }
            return false;
        };
        let engine = image.engine(16, block::Choice::default());
        let mut disk = Disk { image, engine };
        let size = disk.image.size();
        let mut random = Random(seed | 1);
        for _ in 0..60 {
            let length = (1 + random.below(300)) * 512;
            let offset = random.below((size.min(2 << 20) / 512).max(1)) * 512;
            let length = length.min(size - offset);
            // The results may be anything.
            let _ = match random.below(if readonly { 1 } else { 5 }) {
                0 => disk.read(offset, length as usize).map(drop),
                1 => disk.zero(offset, length, length.is_multiple_of(1024)),
                2 => disk.flush(),
                _ => disk.write(offset, &vec![0x77; length as usize]),
            };
        }
        if !readonly {
            let _ = disk.image.resize(size.saturating_add(64 << 20) / 512 * 512);
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?}", begin.elapsed());
    true
}

/// Most memory that this process ever had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn lies_about_tables_are_found_out() {
    let dir = directory();
    let path = dir.as_path().join("image");
    let bytes = good(&path, "cluster_size=4096");
    let (l1, table) = (get(&bytes, 40) as usize, get(&bytes, 48) as usize);
    let (l2, block) = ((get(&bytes, l1) & 0xff_ffff_ffff_fe00) as usize, get(&bytes, table) as usize);
    let length = bytes.len() as u64;
    // What is changed, and whether the image cannot even be opened.
    type Lie = Box<dyn Fn(&mut Vec<u8>)>;
    let field = |at: usize, value: u64, width: usize| -> Lie { Box::new(move |b| put(b, at, value, width)) };
    let lies: Vec<(&str, bool, Lie)> = vec![
        ("version", true, field(4, 4, 4)),
        ("cluster bits 0", true, field(20, 0, 4)),
        ("cluster bits 63", true, field(20, 63, 4)),
        ("size 0", true, field(24, 0, 8)),
        ("size huge", true, field(24, u64::MAX, 8)),
        ("size odd", true, field(24, 1000, 8)),
        ("size beyond the L1 table", true, field(24, 1 << 40, 8)),
        ("encrypted", true, field(32, 1, 4)),
        ("L1 size 0", true, field(36, 0, 4)),
        ("L1 size huge", true, field(36, u64::from(u32::MAX), 4)),
        ("L1 size beyond the file", true, field(36, 4 << 20, 4)),
        ("L1 offset 0", true, field(40, 0, 8)),
        ("L1 offset odd", true, field(40, l1 as u64 + 8, 8)),
        ("L1 offset past the end", true, field(40, 1 << 40, 8)),
        ("L1 offset wraps", true, field(40, !4095, 8)),
        ("L1 is the refcount table", true, field(40, table as u64, 8)),
        ("refcount table 0", true, field(48, 0, 8)),
        ("refcount table odd", true, field(48, table as u64 + 1, 8)),
        ("refcount table past the end", true, field(48, 1 << 50, 8)),
        ("refcount table of no clusters", true, field(56, 0, 4)),
        ("refcount table huge", true, field(56, u64::from(u32::MAX), 4)),
        ("unknown incompatible feature", true, field(72, 1 << 40, 8)),
        ("dirty", true, field(72, 1, 8)),
        ("corrupt", true, field(72, 2, 8)),
        ("external data file", true, field(72, 4, 8)),
        ("extended L2", true, field(72, 16, 8)),
        ("refcount order", true, field(96, 7, 4)),
        ("header length 0", true, field(100, 0, 4)),
        ("header length huge", true, field(100, u64::from(u32::MAX), 4)),
        ("compression type", true, field(104, 9, 1)),
        ("an extension that reaches far", true, field(112, 0x6803_f857_ffff_ffff, 8)),
        ("a backing name past the end", true, field(8, 1 << 40, 8)),
        ("an L2 table past the end", true, field(l1, 1 << 63 | 1 << 45, 8)),
        ("an L2 table odd", true, field(l1, 1 << 63 | (l2 as u64 + 512), 8)),
        ("the L2 table is the header", false, field(l1, 1 << 63, 8)),
        ("the L2 table is the L1 table", true, field(l1, 1 << 63 | l1 as u64, 8)),
        ("the L2 table is a refcount block", true, field(l1, 1 << 63 | block as u64, 8)),
        ("a refcount block past the end", true, field(table, 1 << 45, 8)),
        ("a refcount block odd", true, field(table, block as u64 | 1, 8)),
        ("a refcount block is the header's", true, field(table + 8, table as u64, 8)),
        ("two refcount blocks in one", true, field(table + 8, block as u64, 8)),
        ("data past the end", false, field(l2, 1 << 63 | 1 << 45, 8)),
        ("data odd", false, field(l2, (1 << 63) | (4096 + 512), 8)),
        ("data in the header's cluster", false, field(l2, 1 << 63 | 0x200, 8)),
        ("data is the L1 table", false, field(l2, 1 << 63 | l1 as u64, 8)),
        ("data is the L2 table itself", false, field(l2, 1 << 63 | l2 as u64, 8)),
        ("data is a refcount block", false, field(l2, 1 << 63 | block as u64, 8)),
        ("compressed past the end", false, field(l2, 1 << 62 | 1 << 50, 8)),
        ("compressed metadata", false, field(l2, 1 << 62 | l1 as u64, 8)),
        ("everything counted as free", false, Box::new(move |b| b[block..block + 4096].fill(0))),
        ("everything counted as used", false, Box::new(move |b| b[block..block + 4096].fill(0xff))),
        ("no refcount block", false, field(table, 0, 8)),
        (
            "all L2 entries alike",
            false,
            Box::new(move |b| {
                for n in 0..512 {
                    put(b, l2 + n * 8, 1 << 63 | (length - 1) & !4095, 8);
                }
            }),
        ),
    ];
    for (what, refused, lie) in lies {
        let mut lying = bytes.clone();
        lie(&mut lying);
        assert!(lying != bytes, "{what} is no lie");
        fs::write(&path, &lying).unwrap();
        let opened = abuse(&options(&path, Format::Qcow2), 5);
        assert_eq!(opened, !refused, "{what}");
        // Whatever was written, the header and the tables are no data.
        let after = fs::read(&path).unwrap();
        assert_eq!(after[..4], *b"QFI\xfb", "{what}");
        assert!(!after[..104].contains(&0x77), "{what}: the guest wrote to the header");
        assert!(after.len() < 200 * MIB, "{what}");
    }
    assert!(peak() < 400 << 20, "{}", peak());
}

/// What only extended entries can say.
#[test]
fn lies_about_subclusters_are_found_out() {
    let dir = directory();
    let path = dir.as_path().join("image");
    let bytes = good(&path, "cluster_size=16k,extended_l2=on");
    let (l1, first) =
        (get(&bytes, 40) as usize, |at: usize| (get(&bytes, at) & 0xff_ffff_ffff_fe00) as usize);
    let l2 = first(l1);
    let at = get(&bytes, l2);
    for (what, descriptor, parts) in [
        ("data that is zeros", at, u64::MAX),
        ("data in no cluster", 0, 1),
        ("data in no cluster of ours", 1 << 63, 0x8000_0000),
        ("data past the end", 1 << 63 | 1 << 45, 1 << 31),
        ("data odd", at | 0x200, 1),
        ("data is the L2 table itself", 1 << 63 | l2 as u64, 0xffff_ffff),
        ("reserved for data where the L1 table is", 1 << 63 | l1 as u64, 0),
        ("reserved for zeros where the L1 table is", 1 << 63 | l1 as u64, 0xffff_ffff << 32),
        ("a flag of standard entries", at | 1, 0),
    ] {
        let mut lying = bytes.clone();
        put(&mut lying, l2, descriptor, 8);
        put(&mut lying, l2 + 8, parts, 8);
        let unharmed = || {
            let after = fs::read(&path).unwrap();
            assert!(!after[..104].contains(&0x77) && !after[l1..l1 + 8].contains(&0x77), "{what}");
        };
        fs::write(&path, &lying).unwrap();
        let mut disk = Disk::open(&options(&path, Format::Qcow2));
        assert!(disk.write(0, &[0x77; 512]).is_err(), "{what}");
        drop(disk);
        unharmed();
        fs::write(&path, &lying).unwrap();
        assert!(abuse(&options(&path, Format::Qcow2), 5), "{what}");
        unharmed();
    }
    // Clusters too small to be divided.
    let mut small = bytes.clone();
    put(&mut small, 20, 13, 4);
    fs::write(&path, &small).unwrap();
    let error = Image::open(&options(&path, Format::Qcow2)).unwrap_err().to_string();
    assert!(
        error.ends_with("its clusters have 2^13 bytes; with extended L2 entries at least 2^14 are needed"),
        "{error}"
    );
}

#[test]
fn random_damage_does_no_harm() {
    let dir = directory();
    let path = dir.as_path().join("image");
    for features in [
        "cluster_size=4096",
        "cluster_size=512,compat=0.10",
        "compression_type=zstd",
        "extended_l2=on,cluster_size=16k",
    ] {
        let bytes = good(&path, features);
        let (l1, table) = (get(&bytes, 40) as usize, get(&bytes, 48) as usize);
        let l2 = (get(&bytes, l1) & 0xff_ffff_ffff_fe00) as usize;
        let block = get(&bytes, table) as usize;
        let mut random = Random(11);
        for round in 0..80 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + random.below(6) {
                let base = [0, l1, table, l2, block, random.below(bytes.len() as u64 - 200) as usize];
                let at = base[random.below(6) as usize] + random.below(150) as usize;
                damaged[at] =
                    [0, 0xff, 0x80, 1 << random.below(8), random.next() as u8][random.below(5) as usize];
            }
            if round % 10 == 0 {
                damaged.truncate(random.below(bytes.len() as u64) as usize);
            }
            fs::write(&path, &damaged).unwrap();
            abuse(&options(&path, Format::Qcow2), round);
        }
    }
    assert!(peak() < 400 << 20, "{}", peak());
}

#[test]
fn chains_that_bite_their_tail_or_reach_out_are_refused() {
    let dir = directory();
    let at = |name: &str| dir.as_path().join(name);
    let rebase = |name: &str, to: &str, format: &str| {
        qemu(
            "qemu-img",
            &["rebase", "-u", "-f", "qcow2", "-F", format, "-b", to, at(name).to_str().unwrap()],
        );
    };
    for name in ["a", "b"] {
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", at(name).to_str().unwrap(), "1M"]);
    }
    fs::write(at("secret"), vec![0x53; MIB]).unwrap();
    let open = |name: &str| {
        let options = Options { backing_files: true, readonly: true, ..options(&at(name), Format::Qcow2) };
        match Image::open(&options) {
            Ok(_) => "it was opened".to_owned(),
            Err(error) => format!("{error}: {error:?}"),
        }
    };
    rebase("a", "b", "qcow2");
    rebase("b", "a", "qcow2");
    assert!(open("a").contains("builds upon itself"), "{}", open("a"));
    rebase("a", "a", "qcow2");
    assert!(open("a").contains("builds upon itself"), "{}", open("a"));
    for (to, format, why) in [
        ("nbd://localhost/x", "raw", "is no path"),
        ("json:{\"driver\":\"null-co\"}", "raw", "is no path"),
        ("file:secret", "raw", "is no path"),
        ("secret", "vmdk", "cannot be used"),
        ("missing", "raw", "No such file"),
        ("/dev/zero", "raw", "character device"),
        ("/proc/self/mem", "raw", ""),
        ("secret", "qcow2", "QFI"),
    ] {
        // QEMU itself would not write some of these.
        rebase("a", &"x".repeat(to.len()), format);
        let mut bytes = fs::read(at("a")).unwrap();
        let name = get(&bytes, 8) as usize;
        bytes[name..name + to.len()].copy_from_slice(to.as_bytes());
        fs::write(at("a"), bytes).unwrap();
        let answer = open("a");
        assert!(answer.contains(why) && answer != "it was opened", "{to}: {answer}");
    }
    // A name without a format: what the backing image looks like may not decide.
    rebase("a", "secret", "raw");
    let mut bytes = fs::read(at("a")).unwrap();
    let extension = bytes.windows(4).position(|word| word == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[extension] = 0x12;
    fs::write(at("a"), bytes).unwrap();
    assert!(open("a").contains("does not say of what format"), "{}", open("a"));
    assert_eq!(fs::read(at("secret")).unwrap(), vec![0x53; MIB]);
}

/// A file without end, as far as it goes: there is nothing in most of it.
#[test]
fn a_file_that_is_longer_than_what_is_counted_in_it_is_not_searched() {
    let dir = directory();
    let path = dir.as_path().join("image");
    qemu(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path.to_str().unwrap(), "1M"],
    );
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 50).unwrap();
    let mut disk = Disk::open(&options(&path, Format::Qcow2));
    let begin = std::time::Instant::now();
    // The clusters that are counted are used up; there is no refcount table for those behind the end.
    let written = (0..600).take_while(|n| disk.write(n * 512, &[7; 512]).is_ok()).count();
    assert!((1..600).contains(&written), "{written}");
    assert!(begin.elapsed() < std::time::Duration::from_secs(20));
}

#[test]
fn a_cluster_that_is_counted_wrongly_does_not_keep_others_from_being_freed() {
    let dir = directory();
    let path = dir.as_path().join("image");
    let name = path.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", name, "1M"]);
    qemu(
        "qemu-io",
        &["-f", "qcow2", "-c", "write 0 64k", "-c", "write 64k 64k", "-c", "write 128k 64k", name],
    );
    let mut bytes = fs::read(&path).unwrap();
    let l2 = (get(&bytes, get(&bytes, 40) as usize) & 0xff_ffff_ffff_fe00) as usize;
    let block = get(&bytes, get(&bytes, 48) as usize) as usize;
    // Where the count of each of the three is.
    let counts =
        [0, 1, 2].map(|n| block + 2 * ((get(&bytes, l2 + 8 * n) & 0xff_ffff_ffff_fe00) >> 16) as usize);
    assert!(counts.iter().all(|at| bytes[*at..at + 2] == [0, 1]));
    put(&mut bytes, counts[0], 0, 2);
    fs::write(&path, &bytes).unwrap();
    let mut disk = Disk::open(&options(&path, Format::Qcow2));
    disk.zero(0, 192 << 10, true).unwrap();
    assert!((0..4).any(|_| disk.flush().is_err()), "it is told");
    drop(disk);
    let bytes = fs::read(&path).unwrap();
    assert!(counts.iter().all(|at| bytes[*at..at + 2] == [0, 0]), "the others are free");
}
