//! What a guest was promised, and whether it is in the image after its VMM was killed: see the probe's `promise`.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::image::{SECTOR, pattern_word, qemu_img, raw_copy, stamp, text};
use crate::probe::{Guest, Running};
use crate::scratch::Scratch;

/// As in the probe's `promise`.
const SLOTS: u64 = 2048;
const SLOT_SECTORS: u64 = 8;
/// Bytes of its disk.
pub const SIZE: u64 = SLOTS * SLOT_SECTORS * SECTOR;
const WINDOW: u64 = 512;

/// Where a write goes, and the stamp that it leaves: see the probe's `promise`.
fn place(number: u64) -> (std::ops::Range<u64>, u64) {
    let dice = pattern_word(number, 0, 0);
    let count = 1 + dice % SLOT_SECTORS;
    let first = number * 1021 % SLOTS * SLOT_SECTORS + (dice >> 8) % (SLOT_SECTORS - count + 1);
    (first..first + count, if (dice >> 16).is_multiple_of(8) { 0 } else { number })
}

/// Has a guest write, and kills its VMM a `moment` after the first promises.
pub fn killed(disk: &str, words: &str, moment: Duration) -> Running {
    let mut running = Guest::new("promise").option(words).with(&["--disk", disk]).start();
    // The first line is whole when the second comes.
    running.wait_for("HELD ", 2);
    std::thread::sleep(moment);
    running.signal(libc::SIGKILL);
    running
}

/// An image, and what must be in it.
#[derive(Debug)]
pub struct Witness {
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
    /// An empty image of this format, with more arguments for `qemu-img create`.
    pub fn new(format: &'static str, create: &[&str]) -> Witness {
        let scratch = Scratch::new();
        let image = scratch.file("image");
        let size = SIZE.to_string();
        qemu_img(&[&["create", "-q", "-f", format], create, &[text(&image), &size]].concat());
        let stamps = vec![0; (SLOTS * SLOT_SECTORS) as usize];
        Witness { _scratch: scratch, image, format, stamps, first: 1, early: 0 }
    }

    /// Has a guest write, kills its VMM, and looks at the image. `keys` are more of the disk's, `words` more for the probe.
    ///
    /// # Panics
    /// If something that was promised is not there.
    pub fn round(&mut self, keys: &str, words: &str, moment: Duration) {
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

    /// Writes found so far that nobody had been told of.
    pub fn early(&self) -> usize {
        self.early
    }

    fn check(&mut self, held: u64, what: &str) {
        for (sectors, stamp) in (self.first..held).map(place) {
            self.stamps[sectors.start as usize..sectors.end as usize].fill(stamp);
        }
        let later = |(sectors, stamp)| Iterator::map(sectors, move |sector: u64| (sector, stamp));
        let later: HashMap<u64, u64> = (held..held + WINDOW).map(place).flat_map(later).collect();
        let bytes = std::fs::read(raw_copy(&self.image, self.format)).expect("the image is there");
        assert_eq!(bytes.len() as u64, SIZE, "{what}");
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

/// Waits until the kernel has brought to its end what a VMM had under way that was killed: it keeps the lock of the image as long.
///
/// # Panics
/// If it takes too long.
pub fn wait_for_lock(image: &Path) {
    let file = File::options().read(true).write(true).open(image).expect("the image is there");
    // SAFETY: all zeroes are a lock of the whole file.
    let lock = libc::flock { l_type: libc::F_WRLCK as i16, ..unsafe { std::mem::zeroed() } };
    let begun = Instant::now();
    // SAFETY: an open descriptor, and a lock to read.
    while unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } != 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} stays locked", image.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}
