//! Logs of VHDX images that would take for ever to replay. Nothing but the headers and the log is there, so that no image is ever opened:
//! what counts is how far it gets.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use block::{Format, Image};
use common::{directory, options};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 4096;
const GUID: [u8; 16] = [0x5a; 16];

/// CRC-32C.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 })
    })
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// An entry without descriptors, and whether it is whole.
struct Entry {
    at: u64,
    length: u64,
    tail: u64,
    sequence: u64,
    whole: bool,
}

/// How the opening of an image with such a log of 2 MiB ends.
fn open(entries: &[Entry]) -> String {
    let dir = directory();
    let path = dir.as_path().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(3 * MIB).unwrap();
    let mut header = vec![0; 4096];
    put(&mut header, 0, b"head");
    put(&mut header, 48, &GUID);
    put(&mut header, 66, &1u16.to_le_bytes());
    put(&mut header, 68, &(2 * MIB as u32).to_le_bytes());
    put(&mut header, 72, &MIB.to_le_bytes());
    let sum = checksum(&header);
    put(&mut header, 4, &sum.to_le_bytes());
    file.write_all_at(&header, 64 << 10).unwrap();
    for entry in entries {
        let mut bytes = vec![0; SECTOR as usize];
        put(&mut bytes, 0, b"loge");
        put(&mut bytes, 8, &(entry.length as u32).to_le_bytes());
        put(&mut bytes, 12, &(entry.tail as u32).to_le_bytes());
        put(&mut bytes, 16, &entry.sequence.to_le_bytes());
        put(&mut bytes, 32, &GUID);
        put(&mut bytes, 48, &(3 * MIB).to_le_bytes());
        let sum = checksum(&bytes);
        put(&mut bytes, 4, &if entry.whole { sum } else { !sum }.to_le_bytes());
        file.write_all_at(&bytes, MIB + entry.at).unwrap();
    }
    let error = Image::open(&options(&path, Format::Vhdx)).unwrap_err();
    format!("{error:?}")
}

/// One that fills a sector and follows upon itself alone.
fn single(number: u64, sequence: u64, whole: bool) -> Entry {
    let at = number * SECTOR;
    Entry { at, length: SECTOR, tail: at, sequence, whole }
}

const REPLAYED: &str = "region tables";

#[test]
fn entries_that_lie_in_each_other_are_refused_at_once() {
    let all = |length| -> Vec<Entry> {
        (0..2 * MIB / SECTOR).map(|n| Entry { length, ..single(n, n + 1, false) }).collect()
    };
    let error = open(&all(2 * MIB));
    assert!(error.contains("overlap"), "{error}");
    let error = open(&all(SECTOR));
    assert!(error.contains(REPLAYED), "as many as there is room for: {error}");
}

#[test]
fn only_so_many_entries_are_tried_as_the_last_one() {
    // Newer entries whose tails are not there.
    let broken = |count: u64| -> Vec<Entry> {
        let lost = |n| Entry { tail: 500 * SECTOR, ..single(n, 1000 + n, true) };
        [single(0, 1, true)].into_iter().chain((1..=count).map(lost)).collect()
    };
    let error = open(&broken(60));
    assert!(error.contains(REPLAYED), "{error}");
    let error = open(&broken(70));
    assert!(error.contains("cannot be replayed"), "{error}");
}
