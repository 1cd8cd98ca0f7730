//! What a guest was promised is in the image after the VMM was killed: each write that was flushed, or answered where the driver cannot flush;
//! and of each other one every sector is as it was, or as it was to become.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::image::{SECTOR, pattern_word, stamp};
use tests::probe::{Guest, Running};
use tests::scratch::Scratch;

use crate::formats::{qemu_img, raw_copy, text};

/// As in the probe's `promise`.
const SLOTS: u64 = 2048;
const SLOT_SECTORS: u64 = 8;
const WINDOW: u64 = 512;

/// Where a write goes, and the stamp that it leaves: see the probe's `promise`.
fn place(number: u64) -> (std::ops::Range<u64>, u64) {
    let dice = pattern_word(number, 0, 0);
    let count = 1 + dice % SLOT_SECTORS;
    let first = number * 1021 % SLOTS * SLOT_SECTORS + (dice >> 8) % (SLOT_SECTORS - count + 1);
    (first..first + count, if (dice >> 16).is_multiple_of(8) { 0 } else { number })
}

/// Has a guest write, and kills its VMM a `moment` after the first promises.
fn killed(disk: &str, words: &str, moment: Duration) -> Running {
    let mut running = Guest::new("promise").option(words).with(&["--disk", disk]).start();
    // The first line is whole when the second comes.
    running.wait_for("HELD ", 2);
    std::thread::sleep(moment);
    running.signal(libc::SIGKILL);
    running
}

/// An image, and what must be in it.
struct Witness {
    _scratch: Scratch,
    image: PathBuf,
    format: &'static str,
    stamps: Vec<u64>,
    /// The next number.
    first: u64,
    /// Writes found that nobody had been told of: the VMM was at work when it was killed.
    early: usize,
}

impl Witness {
    fn new(format: &'static str, create: &[&str]) -> Witness {
        let scratch = Scratch::new();
        let image = scratch.file("image");
        let size = (SLOTS * SLOT_SECTORS * SECTOR).to_string();
        qemu_img(&[&["create", "-q", "-f", format], create, &[text(&image), &size]].concat());
        let stamps = vec![0; (SLOTS * SLOT_SECTORS) as usize];
        Witness { _scratch: scratch, image, format, stamps, first: 1, early: 0 }
    }

    /// Has a guest write, kills its VMM, and looks at the image.
    fn round(&mut self, keys: &str, words: &str, moment: Duration) {
        let disk = format!("path={},image_type={}{keys}", self.image.display(), self.format);
        let report = killed(&disk, &format!("probe.first={} {words}", self.first), moment).finish();
        let what = format!("{disk} {words}");
        assert!(!report.serial.contains("FAIL"), "{what}: {report}");
        // The last line that is whole.
        let whole = report.serial.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let held = whole.lines().rev().find_map(|line| line.strip_prefix("HELD ")?.parse::<u64>().ok());
        wait_for_lock(&self.image);
        let held = held.unwrap_or_else(|| panic!("{what}: no promise is whole: {report}"));
        self.check(held, &what);
    }

    fn check(&mut self, held: u64, what: &str) {
        for (sectors, stamp) in (self.first..held).map(place) {
            self.stamps[sectors.start as usize..sectors.end as usize].fill(stamp);
        }
        let later = |(sectors, stamp)| Iterator::map(sectors, move |sector: u64| (sector, stamp));
        let later: HashMap<u64, u64> = (held..held + WINDOW).map(place).flat_map(later).collect();
        let bytes = std::fs::read(raw_copy(&self.image, self.format)).expect("the image is there");
        assert_eq!(bytes.len() as u64, SLOTS * SLOT_SECTORS * SECTOR, "{what}");
        for (sector, bytes) in (0..).zip(bytes.chunks(SECTOR as usize)) {
            let found = stamp(bytes, sector).unwrap_or_else(|| panic!("{what}: sector {sector} is torn"));
            let (wanted, later) = (&mut self.stamps[sector as usize], later.get(&sector));
            if found != *wanted {
                let promised = (self.first, held);
                assert_eq!(
                    Some(&found),
                    later,
                    "{what}: sector {sector}, {wanted} was promised of {promised:?}"
                );
                self.early += 1;
            }
            *wanted = found;
        }
        self.first = held + WINDOW;
    }
}

/// Waits until the kernel has brought to its end what the VMM had under way: it keeps the lock as long.
fn wait_for_lock(image: &Path) {
    let file = File::options().read(true).write(true).open(image).expect("the image is there");
    // SAFETY: all zeroes are a lock of the whole file.
    let lock = libc::flock { l_type: libc::F_WRLCK as i16, ..unsafe { std::mem::zeroed() } };
    let begun = Instant::now();
    // SAFETY: an open descriptor, and a lock to read.
    while unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } != 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "{} stays locked", image.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

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
            early += witness.early;
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
    qemu_img(&["create", "-q", "-f", "raw", text(&image), &(SLOTS * SLOT_SECTORS * SECTOR).to_string()]);
    let disk = format!("path={},image_type=raw", image.display());
    let kill = |round| killed(&disk, "", Duration::from_millis(round));
    (0..8).map(kill).reduce(|_last, next| next);
}
