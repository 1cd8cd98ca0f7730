//! How much memory an image can make us use. Alone in its process, whose memory is what is looked at.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use block::Format;
use common::{Disk, directory, options, qemu};

const CLUSTER: u64 = 2 << 20;
/// Clusters that one block of counts is for.
const COUNTED: u64 = CLUSTER / 8;
/// Clusters of data, each counted in a block of its own.
const CLUSTERS: u64 = 200;

/// The most memory that this process has had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn clusters_that_are_given_back_do_not_bring_all_counts_into_memory() {
    let dir = directory();
    let path = dir.as_path().join("image");
    let features = "cluster_size=2M,refcount_bits=64,preallocation=metadata";
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", features, path.to_str().unwrap(), "8G"]);
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let read = |at: u64| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, at).unwrap();
        u64::from_be_bytes(word)
    };
    let write = |at: u64, value: u64| file.write_all_at(&value.to_be_bytes(), at).unwrap();
    let (l1, table) = (read(40), read(48));
    let l2 = read(l1) & 0x00ff_ffff_ffff_fe00;
    // There is nothing in most of the file.
    file.set_len((CLUSTERS + 2) * COUNTED * CLUSTER).unwrap();
    for n in 1..CLUSTERS {
        let (data, block) = (n * COUNTED * CLUSTER, (n * COUNTED + 1) * CLUSTER);
        write(table + 8 * n, block);
        write(block, 1);
        write(l2 + 8 * n, data | 1 << 63);
    }
    let mut disk = Disk::open(&options(&path, Format::Qcow2));
    let before = peak();
    disk.engine.discard(CLUSTER, (CLUSTERS - 1) * CLUSTER, 0).unwrap();
    disk.wait().unwrap();
    (0..4).for_each(|_| disk.flush().unwrap());
    let more = peak() - before;
    assert!(more < 100 << 20, "{more} bytes");
    drop(disk);
    for n in 1..CLUSTERS {
        assert_eq!(read((n * COUNTED + 1) * CLUSTER), 0, "cluster {n} is free");
    }
}
