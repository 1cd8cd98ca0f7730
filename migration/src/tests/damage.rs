//! Files that are not what was written are found out, whichever byte it is.

use std::fs;
use std::path::{Path, PathBuf};

use device::fake::random::Random;
use device::ram::RamMap;
use vm_memory::{Bytes, GuestAddress};

use super::machine::{CONFIG_TEXT, Kind, copied, empty_like, fill, memory, open, save_with, try_open};
use super::scratch::Scratch;
use crate::{CONFIG, Error, MEMORY, Memory, PAGE, Progress, STATE, Source};

const RANGES: [(u64, u64); 2] = [(0, 64 * PAGE), (1 << 32, 32 * PAGE)];
const LENGTH: u64 = 96 * PAGE;

/// A page that no two moments have in common.
const CLOCK: GuestAddress = GuestAddress(5 * PAGE);

fn machine(moment: u64) -> RamMap {
    let ram = memory(Kind::Private, &RANGES);
    fill(&ram, 11, 2);
    ram.write_obj(moment, CLOCK).unwrap();
    ram
}

/// A snapshot, with what brings it back into shape.
struct Snapshot {
    path: PathBuf,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Snapshot {
    fn new(path: PathBuf, moment: u64, marks: &[GuestAddress], config: &str) -> Self {
        save_with(&path, &Memory { ram: &machine(moment), behind: None, marks }, config).unwrap();
        let files = [CONFIG, STATE, MEMORY].map(|name| (name, fs::read(path.join(name)).unwrap()));
        Snapshot { path, files: files.into() }
    }

    fn with(&self, name: &str, bytes: &[u8]) -> Result<Source, Error> {
        fs::write(self.path.join(name), bytes).unwrap();
        let opened = try_open(&self.path);
        let (_, good) = self.files.iter().find(|f| f.0 == name).unwrap();
        if opened.is_err() {
            fs::write(self.path.join(name), good).unwrap();
            assert!(try_open(&self.path).is_ok());
        }
        opened
    }

    fn repair(&self) {
        for (name, bytes) in &self.files {
            fs::write(self.path.join(name), bytes).unwrap();
        }
    }
}

#[test]
fn a_flipped_byte_is_found_in_each_file() {
    let scratch = Scratch::new();
    let snapshot = Snapshot::new(scratch.folder("a"), 1, &[], CONFIG_TEXT);
    let mut random = Random(1);
    for (name, good) in &snapshot.files {
        let positions: Vec<u64> = match *name {
            MEMORY => (0..400).map(|_| random.below(LENGTH)).collect(),
            _ => (0..good.len() as u64).collect(),
        };
        for position in positions {
            let mut bad = good.clone();
            bad[position as usize] ^= 1 << random.below(8);
            match snapshot.with(name, &bad) {
                Err(_) => {}
                Ok(source) => {
                    assert_eq!(*name, MEMORY, "at {position}");
                    let ram = empty_like(&source, Kind::Private);
                    let copied = source.copy(&ram, &Progress::new());
                    assert!(matches!(copied, Err(Error::Damaged { .. })), "at {position}: {copied:?}");
                    snapshot.repair();
                }
            }
        }
    }
}

#[test]
fn a_shorter_or_longer_file_is_found_out_before_anything_is_built() {
    let scratch = Scratch::new();
    let snapshot = Snapshot::new(scratch.folder("a"), 1, &[], CONFIG_TEXT);
    let mut random = Random(2);
    for (name, good) in &snapshot.files {
        let length = good.len() as u64;
        let mut lengths: Vec<u64> = match *name {
            MEMORY => (0..100).map(|_| random.below(length)).chain([0, length - 1, length - PAGE]).collect(),
            _ => (0..length).collect(),
        };
        lengths.extend([length + 1, length + PAGE]);
        for length in lengths {
            for filler in [0, b' ', b'}'] {
                let mut bad = good.clone();
                bad.resize(length as usize, filler);
                let opened = snapshot.with(name, &bad);
                assert!(opened.is_err(), "{name} with {length} bytes");
            }
        }
    }
}

#[test]
fn a_file_of_another_snapshot_is_found_out() {
    let scratch = Scratch::new();
    // The same machine a moment later, so that only its clock differs.
    let one = Snapshot::new(scratch.folder("one"), 1, &[CLOCK], CONFIG_TEXT);
    let two = Snapshot::new(scratch.folder("two"), 2, &[CLOCK], r#"{"cpus":{"boot_vcpus":2}}"#);
    for (name, bytes) in &two.files {
        let opened = one.with(name, bytes);
        assert!(matches!(opened, Err(Error::Damaged { .. })), "{name}: {opened:?}");
    }
    // Unless it is told, by a look at everything.
    let one = Snapshot::new(scratch.folder("three"), 1, &[], CONFIG_TEXT);
    let source = match one.with(MEMORY, &two.files[2].1) {
        Ok(source) => source,
        Err(Error::Damaged { .. }) => return,
        Err(e) => panic!("{e}"),
    };
    let ram = empty_like(&source, Kind::Private);
    assert!(matches!(source.copy(&ram, &Progress::new()), Err(Error::Damaged { .. })));
}

/// Edits a manifest and makes its checksum right again, as who is up to something would.
fn forged(good: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(good.to_vec()).unwrap();
    assert!(text.contains(from), "{from}");
    let text = text.replacen(from, to, 1);
    let body = &text[..text.rfind(",\"checksum\":\"").unwrap()];
    format!("{body},\"checksum\":\"{:08x}\"}}\n", crc32fast::hash(body.as_bytes())).into_bytes()
}

#[test]
fn what_is_forged_with_care_is_refused_too() {
    let scratch = Scratch::new();
    let snapshot = Snapshot::new(scratch.folder("a"), 1, &[], CONFIG_TEXT);
    let good = &snapshot.files[1].1;
    let second = r#"{"gpa":4294967296,"length":131072}"#;
    let cases = [
        (
            r#""format":"virga-snapshot""#,
            r#""format":"other""#,
            "has format \"other\", and this program reads virga-snapshot",
        ),
        (r#""version":1"#, r#""version":2"#, "has version 2, and this program reads 1"),
        (r#""version":1"#, r#""version":18446744073709551615"#, "has version 18446744073709551615"),
        (std::env::consts::ARCH, "vax", "has architecture \"vax\""),
        (second, r#"{"gpa":4294967297,"length":131072}"#, "whole pages"),
        (second, r#"{"gpa":4294967296,"length":131071}"#, "whole pages"),
        (second, r#"{"gpa":4294967296,"length":0}"#, "whole pages"),
        (second, r#"{"gpa":258048,"length":131072}"#, "not behind"),
        (second, r#"{"gpa":18446744073709547520,"length":131072}"#, "no end"),
        (second, r#"{"gpa":4294967296,"length":135168}"#, "its ranges have"),
        (second, r#"{"gpa":4294967296,"length":18446744069414584320}"#, "no end"),
        (second, r#"{"gpa":4294967296,"length":131072,"more":1}"#, "malformed"),
        (r#""program":"#, r#""extra":0,"program":"#, "malformed"),
        (r#""length":393216,"#, r#""length":393216,"length":393216,"#, "malformed"),
        (r#"{"offset":"#, r#"{"offset":1"#, "sample"),
    ];
    for (from, to, expected) in cases {
        let opened = snapshot.with(STATE, &forged(good, from, to)).map(drop).unwrap_err();
        let mut text = opened.to_string();
        if let Some(source) = std::error::Error::source(&opened) {
            text.push_str(&source.to_string());
        }
        assert!(text.contains(expected), "{to}: {text}");
    }
    // Nesting without end, and something else altogether.
    for text in
        ["[".repeat(1 << 20), "{}".into(), "null".into(), r#"{"snapshots":{},"snapshot_data":null}"#.into()]
    {
        assert!(snapshot.with(STATE, text.as_bytes()).is_err());
    }
}

fn replace(path: &Path, by: impl Fn(&Path)) -> Error {
    let kept = path.with_extension("kept");
    fs::rename(path, &kept).unwrap();
    by(path);
    let opened = try_open(path.parent().unwrap()).map(drop);
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        fs::remove_dir(path).unwrap();
    } else if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path).unwrap();
    }
    fs::rename(kept, path).unwrap();
    opened.unwrap_err()
}

#[test]
fn only_regular_files_are_read_and_no_more_than_is_sensible() {
    let scratch = Scratch::new();
    let snapshot = Snapshot::new(scratch.folder("a"), 1, &[], CONFIG_TEXT);
    for name in [CONFIG, STATE, MEMORY] {
        let path = snapshot.path.join(name);
        let link = replace(&path, |path| {
            std::os::unix::fs::symlink(path.with_extension("kept"), path).unwrap();
        });
        assert!(matches!(link, Error::NotAFile(_)), "{link}");
        let folder = replace(&path, |path| fs::create_dir(path).unwrap());
        assert!(matches!(folder, Error::NotAFile(_)), "{folder}");
        let pipe = replace(&path, |path| {
            let status = std::process::Command::new("mkfifo").arg(path).status().unwrap();
            assert!(status.success());
        });
        assert!(matches!(pipe, Error::NotAFile(_)), "{pipe}");
        let missing = replace(&path, |_| {});
        match name {
            STATE => assert!(matches!(missing, Error::Incomplete(_)), "{missing}"),
            _ => assert!(matches!(missing, Error::Damaged { .. }), "{missing}"),
        }
        if name != MEMORY {
            let long = replace(&path, |path| {
                fs::File::create(path).unwrap().set_len(crate::TEXT_LIMIT + 1).unwrap();
            });
            assert!(matches!(long, Error::TooLong { .. }), "{long}");
        }
    }
    assert!(matches!(Source::open(&scratch.path().join("none")), Err(Error::Missing(_))));
    assert!(matches!(Source::open(&snapshot.path.join(CONFIG)), Err(Error::NotADirectory(_))));
    copied(&open(&snapshot.path), Kind::Private);
}
