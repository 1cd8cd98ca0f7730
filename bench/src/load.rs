//! Loads from inside: the probe guest drives exits or a device and reports its figures on the serial port.

use std::collections::BTreeMap;
use std::io::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::grid::Figures;
use crate::process::Process;
use crate::rows::{Better, Rows};
use crate::subject::{Extra, Subject};

/// How long a guest may take until it begins.
const LIMIT: Duration = Duration::from_secs(20);

/// What every load shares.
#[derive(Clone, Debug)]
pub(crate) struct Setting<'a> {
    pub(crate) probe: &'a Path,
    pub(crate) scratch: &'a Path,
    pub(crate) runs: usize,
    /// How long the guest loads, each time.
    pub(crate) millis: u64,
    /// The program that ratios are taken to.
    pub(crate) yardstick: &'a str,
    /// Words that the names of rows must have; without any those rows are measured that say most.
    pub(crate) rows: Vec<String>,
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

/// Whether the guest has written a line that begins so, or is done.
fn said(seen: &[u8], line: &str) -> bool {
    let text = String::from_utf8_lossy(seen);
    text.lines().any(|l| l.starts_with(line) || l.starts_with("DONE "))
}

/// What a load is asked of a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    /// The probe's test, and its options.
    pub(crate) test: &'a str,
    pub(crate) options: &'a str,
    /// The name of the figure that is a rate.
    pub(crate) rate: &'a str,
    pub(crate) extra: Extra<'a>,
}

impl Setting<'_> {
    /// Whether a row of this name is to be measured.
    pub(crate) fn wants(&self, name: &str, usual: bool) -> bool {
        if self.rows.is_empty() { usual } else { self.rows.iter().all(|word| name.contains(word.as_str())) }
    }

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
        process.read_until(LIMIT + Duration::from_millis(4 * self.millis), done)?;
        facts(&process.text(), test)
    }

    /// Has a guest load its device, and `host` do its part meanwhile. `peers` are other processes that work for the guest.
    ///
    /// CPU time is that of all threads that serve the guest, its own and so its exits not among them, for each request that they did.
    pub(crate) fn load(
        &self,
        subject: &Subject,
        load: &Load<'_>,
        peers: &[&Daemon],
        host: impl FnOnce() -> Result<(), Error> + Send,
    ) -> Result<Figures, Error> {
        let mut process = self.start(subject, load.test, load.options, load.extra)?;
        let used = |process: &Process| {
            let peers = peers.iter().map(|peer| peer.cpu()).sum::<Result<Duration, Error>>()?;
            process.used_besides_guest().map(|own| own + peers)
        };
        process.read_until(LIMIT, |seen| said(seen, "# loading"))?;
        let before = used(&process);
        let limit = LIMIT + Duration::from_millis(4 * self.millis);
        let after = std::thread::scope(|scope| {
            let host = scope.spawn(host);
            let loaded = process.read_until(limit, |seen| said(seen, "# loaded"));
            // The machine may be gone already if the load failed; its report then says why.
            let after = used(&process);
            host.join().expect("it does not panic")?;
            loaded.map(|()| after)
        })?;
        let facts = self.finish(&mut process, load.test)?;
        let get = |name: &str| facts.get(name).copied();
        let per_second = get(load.rate).ok_or_else(|| Error::other(format!("no figure {}", load.rate)))?;
        let cpu = after?.saturating_sub(before?).as_secs_f64() * 1e6;
        let micros = |name| get(name).unwrap_or(0.0) / 1e3;
        Ok(Figures {
            per_second,
            cpu_us: get("requests").filter(|n| *n > 0.0).map_or(0.0, |n| cpu / n),
            p50_us: micros("p50-ns"),
            p99_us: micros("p99-ns"),
            bytes: 0.0,
        })
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
                let figures = self.start(subject, "exits", "", Extra::Bus);
                match figures.and_then(|mut process| self.finish(&mut process, "exits")) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Setting<'static> {
        /// One that is good for nothing but to choose rows.
        pub(crate) fn of_nothing() -> Self {
            let nowhere = Path::new("");
            Setting {
                probe: nowhere,
                scratch: nowhere,
                runs: 0,
                millis: 0,
                yardstick: "",
                rows: Vec::new(),
                khz: 1,
            }
        }
    }

    #[test]
    fn a_report_yields_its_figures_or_its_complaint() {
        let report = "# fact\nPASS bench-blk op=read iops=84153 mib/s=328\nDONE pass=1 fail=0 skip=0\n";
        let facts = facts(report, "bench-blk").unwrap();
        assert_eq!((facts["iops"], facts.get("op")), (84153.0, None));
        let why = super::facts("SKIP bench-blk: there is no disk 0\n", "bench-blk").unwrap_err();
        assert_eq!(why.to_string(), "SKIP bench-blk: there is no disk 0");
        assert!(done(report.as_bytes()) && !done(b"PASS x\n"));
        assert!(said(report.as_bytes(), "# loaded") && !said(b"# loading\n", "# loaded"));
    }
}
