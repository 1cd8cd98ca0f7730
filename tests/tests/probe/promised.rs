//! What a guest was promised is in the image after the VMM was killed: each write that was flushed, or answered where the driver cannot flush;
//! and of each other one every sector is as it was, or as it was to become.

use std::time::Duration;

use tests::image::{qemu_img, text};
use tests::promised::{SIZE, Witness, killed};
use tests::scratch::Scratch;

/// Kills VMMs with disks of this format, for every engine, through the host's cache and past it.
fn kept_by_every_engine(format: &'static str, create: &[&str]) {
    let (mut moment, mut early) = (Duration::ZERO, 0);
    for engine in ["", ",_disable_io_uring=on", ",_disable_io_uring=on,_disable_aio=on"] {
        for direct in ["", ",direct=on"] {
            let mut witness = Witness::new(format, create);
            for words in ["", "probe.through=on"] {
                for _ in 0..2 {
                    witness.round(&format!("{engine}{direct}"), words, moment);
                    moment += Duration::from_micros(700);
                }
            }
            early += witness.early();
        }
    }
    assert!(early > 0, "no VMM was killed at work");
}

#[test]
fn promises_of_a_raw_disk_outlive_the_vmm() {
    kept_by_every_engine("raw", &[]);
}

/// Small clusters, so that there are many tables.
#[test]
fn promises_of_a_qcow2_disk_outlive_the_vmm() {
    kept_by_every_engine("qcow2", &["-o", "cluster_size=4096"]);
}

#[test]
fn promises_of_a_vhdx_disk_outlive_the_vmm() {
    kept_by_every_engine("vhdx", &["-o", "block_size=1M"]);
}

/// Even if it does not wait for the other's end, and what was under way holds the image for longer than that.
#[test]
fn the_next_vmm_has_the_disk_of_one_that_was_killed() {
    let scratch = Scratch::new();
    let image = scratch.file("image");
    qemu_img(&["create", "-q", "-f", "raw", text(&image), &SIZE.to_string()]);
    let disk = format!("path={},image_type=raw", image.display());
    let kill = |round| killed(&disk, "", Duration::from_millis(round));
    (0..8).map(kill).reduce(|_last, next| next);
}
