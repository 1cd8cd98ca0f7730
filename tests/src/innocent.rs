//! A machine that has nothing to do with another, which is under attack or attacks: it runs beside, with checked disk I/O all the while,
//! and must come out untouched.

use crate::image::{SECTOR, stamp};
use crate::living::Living;
use crate::scratch::Scratch;

const SECTORS: u64 = 2048;

/// The machine; killed on drop.
#[derive(Debug)]
pub struct Innocent {
    machine: Living,
    scratch: Scratch,
}

impl Innocent {
    /// Starts it, and waits until its disk is at work.
    ///
    /// # Panics
    /// If that does not come about.
    pub fn begin() -> Innocent {
        let scratch = Scratch::new();
        let disk = scratch.file("innocent");
        std::fs::write(&disk, vec![0; (SECTORS * SECTOR) as usize]).expect("there is room for an image");
        let disk = format!("path={},image_type=raw", disk.display());
        let words = format!("probe.run=load probe.sectors={SECTORS} probe.touch=4 probe.beat=200");
        let arguments = ["--disk", &disk, "--memory", "size=64M"];
        let mut machine = Living::boot(scratch.path(), "innocent", &words, &arguments);
        machine.wait_for("# loading ");
        machine.beat();
        Innocent { machine, scratch }
    }

    /// Checks that its I/O goes on, and that nothing was wrong with it so far.
    ///
    /// # Panics
    /// If it stands still, or found a sector, an answer or memory that is not as it should be.
    pub fn goes_on(&mut self) {
        self.machine.progress(200, 0);
    }

    /// The same, then has it read every sector and all of its memory again, and looks at its disk from outside.
    ///
    /// # Panics
    /// If anything is not as it should be.
    pub fn is_untouched(mut self) {
        self.goes_on();
        self.machine.end().all_passed();
        let bytes = std::fs::read(self.scratch.file("innocent")).expect("the image is there");
        let mut written = 0;
        for (sector, bytes) in (0..).zip(bytes.chunks(SECTOR as usize)) {
            let number = stamp(bytes, sector);
            written += u64::from(number.unwrap_or_else(|| panic!("sector {sector} is torn")) != 0);
        }
        assert!(written > 0, "nothing was written");
    }
}
