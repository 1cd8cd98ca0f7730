//! Loads from inside: the probe guest drives exits, a disk or a network card and reports its figures on the serial port.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::rows::{Better, Rows};
use crate::served::unique;
use crate::subject::{Extra, Subject};
use ::tests::tap::{self, Tap};

/// What every load shares.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    pub(crate) probe: &'a Path,
    pub(crate) scratch: &'a Path,
    pub(crate) runs: usize,
    /// How long the guest loads, each time.
    pub(crate) millis: u64,
    /// The program that ratios are taken to.
    pub(crate) yardstick: &'a str,
    /// Frequency of the host's time stamp counter; the guests' clocks are all the same.
    pub(crate) khz: u64,
}

/// Host TSC ticks in a millisecond.
pub(crate) fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 processor has the counter.
    let ticks = || unsafe { core::arch::x86_64::_rdtsc() };
    let (begun, first) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(100));
    let (last, time) = (ticks(), begun.elapsed());
    ((last - first) as f64 / time.as_secs_f64() / 1e3) as u64
}

/// The facts of the report's line `PASS name key=value ...`.
fn facts(report: &str, name: &str) -> Result<BTreeMap<String, f64>, Error> {
    let said = |prefix: &str| report.lines().find_map(|l| l.strip_prefix(prefix)?.strip_prefix(name));
    let Some(line) = said("PASS ") else {
        let why = report.lines().find(|l| l.starts_with("FAIL ") || l.starts_with("SKIP "));
        return Err(Error::other(why.unwrap_or("the guest reports nothing").to_owned()));
    };
    let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
    Ok(pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect())
}

fn done(seen: &[u8]) -> bool {
    String::from_utf8_lossy(seen).lines().any(|l| l.starts_with("DONE "))
}

impl Setting<'_> {
    fn start(
        &self,
        subject: &Subject,
        test: &str,
        options: &str,
        extra: Extra<'_>,
    ) -> Result<Process, Error> {
        let cmdline =
            format!("probe.run={test} probe.millis={} probe.khz={} {options}", self.millis, self.khz);
        Process::start(subject.run(self.probe, &cmdline, extra))
    }

    fn finish(&self, process: &mut Process, test: &str) -> Result<BTreeMap<String, f64>, Error> {
        process.read_until(Duration::from_millis(20_000 + 4 * self.millis), done)?;
        facts(&process.text(), test)
    }

    fn run(
        &self,
        subject: &Subject,
        test: &str,
        options: &str,
        extra: Extra<'_>,
    ) -> Result<BTreeMap<String, f64>, Error> {
        let mut process = self.start(subject, test, options, extra)?;
        self.finish(&mut process, test)
    }

    /// Exits a second.
    pub(crate) fn exits(&self, rows: &mut Rows, subjects: &[Subject], yardstick: &str) {
        let wanted = [
            ("port-reads/s", "port reads"),
            ("port-writes/s", "port writes"),
            ("mmio-reads/s", "MMIO reads (ECAM)"),
        ];
        for round in 0..self.runs {
            for subject in subjects {
                match self.run(subject, "exits", "", Extra::Bus) {
                    Err(e) => rows.fail(format!("{}: exits: {e}", subject.name)),
                    Ok(facts) => {
                        for (key, name) in wanted {
                            // Bare KVM has no configuration space to read.
                            if let Some(&value) = facts.get(key).filter(|v| **v > 0.0) {
                                let name = format!("exits: {name}");
                                rows.note(
                                    (&name, "/s", Better::More),
                                    yardstick,
                                    &subject.name,
                                    round,
                                    value,
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    /// Random 4 KiB requests on a file in the page cache.
    pub(crate) fn block(&self, rows: &mut Rows, subjects: &[Subject]) -> Result<(), Error> {
        let image = Image::new(self.scratch)?;
        for round in 0..self.runs {
            for direct in [false, true] {
                for op in ["read", "write"] {
                    for depth in [1, 32] {
                        for subject in subjects.iter().filter(|s| s.has_devices()) {
                            let name = block_row(op, depth, direct);
                            let options =
                                format!("probe.op={op} probe.depth={depth} probe.seed={}", round + 1);
                            let extra = Extra::Disk { path: &image.path, direct };
                            let iops = self.run(subject, "bench-blk", &options, extra).and_then(|f| {
                                f.get("iops").copied().ok_or_else(|| Error::other("no figure"))
                            });
                            match iops {
                                Ok(n) => rows.note(
                                    (&name, "/s", Better::More),
                                    self.yardstick,
                                    &subject.name,
                                    round,
                                    n,
                                ),
                                Err(e) => rows.fail(format!("{}: {name}: {e}", subject.name)),
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Frames through a tap. The calling thread is put into a network namespace of its own, for good.
    pub(crate) fn network(&self, rows: &mut Rows, subjects: &[Subject]) -> Result<(), Error> {
        tap::enter_private_network()?;
        for round in 0..self.runs {
            for op in ["send", "receive"] {
                for size in [64, 1514] {
                    for subject in subjects.iter().filter(|s| s.has_devices()) {
                        let name = format!("network {op}, {size}-byte frames");
                        match self.frames(subject, op, size) {
                            Ok(n) => rows.note(
                                (&name, "/s", Better::More),
                                self.yardstick,
                                &subject.name,
                                round,
                                n,
                            ),
                            Err(e) => rows.fail(format!("{}: {name}: {e}", subject.name)),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn frames(&self, subject: &Subject, op: &str, size: usize) -> Result<f64, Error> {
        // Each VMM gets a new tap: none inherits another's settings.
        let tap = Tap::new("bench0")?;
        let options = format!("probe.op={op} probe.size={size}");
        let mut process = self.start(subject, "bench-net", &options, Extra::Net { tap: "bench0" })?;
        if op == "receive" {
            let ready = |seen: &[u8]| String::from_utf8_lossy(seen).contains("# receiving") || done(seen);
            process.read_until(Duration::from_secs(20), ready)?;
            // A little longer than the guest listens.
            tap.flood(size, Duration::from_millis(self.millis + 50))?;
        }
        let facts = self.finish(&mut process, "bench-net")?;
        facts.get("frames/s").copied().ok_or_else(|| Error::other("no figure"))
    }
}

/// The name of a block row.
pub(crate) fn block_row(op: &str, depth: u32, direct: bool) -> String {
    let cache = if direct { "direct" } else { "page cache" };
    format!("block random 4 KiB {op}, depth {depth}, {cache}")
}

/// A raw image in the page cache; removed on drop.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
}

impl Image {
    const SIZE: u64 = 256 << 20;

    /// One of zeroes, which take no room.
    pub(crate) fn empty(directory: &Path, len: u64) -> Result<Image, Error> {
        let (image, file) = Image::create(directory)?;
        file.set_len(len)?;
        Ok(image)
    }

    fn create(directory: &Path) -> Result<(Image, File), Error> {
        let path = directory.join(format!("bench-{}-{}.raw", std::process::id(), unique()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok((Image { path }, file))
    }

    /// One full of noise.
    pub(crate) fn new(directory: &Path) -> Result<Image, Error> {
        let (image, mut file) = Image::create(directory)?;
        let mut noise = vec![0; 1 << 20];
        File::open("/dev/urandom")?.read_exact(&mut noise)?;
        for _ in 0..Self::SIZE >> 20 {
            file.write_all(&noise)?;
        }
        // On the disk, so that no write-back runs during the measurement; and read, so that it is cached.
        file.sync_all()?;
        for at in (0..Self::SIZE).step_by(noise.len()) {
            file.read_exact_at(&mut noise, at)?;
        }
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            eprintln!("bench: cannot remove {}: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_yields_its_figures_or_its_complaint() {
        let report = "# fact\nPASS bench-blk op=read iops=84153 mib/s=328\nDONE pass=1 fail=0 skip=0\n";
        let facts = facts(report, "bench-blk").unwrap();
        assert_eq!((facts["iops"], facts.get("op")), (84153.0, None));
        let why = super::facts("SKIP bench-blk: there is no disk 0\n", "bench-blk").unwrap_err();
        assert_eq!(why.to_string(), "SKIP bench-blk: there is no disk 0");
        assert!(done(report.as_bytes()) && !done(b"PASS x\n"));
    }
}
