//! Start-up: process start to the guest's first byte, what the process costs then, and how many a second.

use std::io::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::process::{Footprint, Process};
use crate::rows::{Better, Rows, turns};
use crate::subject::{Extra, Subject, USUAL_MIB};

const LIMIT: Duration = Duration::from_secs(20);

/// Names of the rows; targets refer to them.
pub(crate) const FIRST_BYTE: &str = "start to first guest byte";
pub(crate) const CPU_TIME: &str = "CPU time used until then";
pub(crate) const PROPORTIONAL: &str = "proportional set size";
pub(crate) const PRIVATE_DIRTY: &str = "private dirty memory";
pub(crate) const ANONYMOUS: &str = "anonymous memory";
pub(crate) const THREADS: &str = "threads";
pub(crate) const PER_SECOND: &str = "VMs started per second";
/// What the names of rows end with that leave out other processes than the VMM.
const ALONE: &str = ", the VMM alone";

/// Starts a guest that says one byte; the time until it came, and the process that runs on.
fn first_byte(subject: &Subject, kernel: &Path) -> Result<(Duration, Process), Error> {
    first_byte_with(subject, kernel, USUAL_MIB)
}

/// The same with `mib` of memory.
pub(crate) fn first_byte_with(
    subject: &Subject,
    kernel: &Path,
    mib: u64,
) -> Result<(Duration, Process), Error> {
    let mut process = Process::start(subject.run_with(kernel, "", mib, Extra::None))?;
    process.read_until(LIMIT, |seen| !seen.is_empty())?;
    Ok((process.age(), process))
}

fn once(subject: &Subject, kernel: &Path) -> Result<(Duration, (Footprint, Option<Footprint>)), Error> {
    let (time, process) = first_byte(subject, kernel)?;
    // The byte may overtake the last few things that the VMM does to get started.
    std::thread::sleep(Duration::from_millis(20));
    Ok((time, process.footprint()?))
}

/// Time and footprint, by turns, in rows whose names begin with `prefix`.
pub(crate) fn measure(
    rows: &mut Rows,
    subjects: &[Subject],
    kernel: &Path,
    runs: usize,
    (prefix, yardstick): (&str, &str),
) {
    for subject in subjects {
        // Once for nothing: the programs' files are then in the page cache.
        if let Err(e) = once(subject, kernel) {
            rows.fail(format!("{}: {FIRST_BYTE}: {e}", subject.name));
        }
    }
    for round in 0..runs {
        for subject in turns(subjects, round) {
            match once(subject, kernel) {
                Ok((time, (footprint, vmm))) => {
                    let mut note = |what: &str, unit, value| {
                        let name = format!("{prefix}{what}");
                        rows.note((&name, unit, Better::Less), yardstick, &subject.name, round, value);
                    };
                    note(FIRST_BYTE, "ms", time.as_secs_f64() * 1e3);
                    note(CPU_TIME, "ms", footprint.cpu_millis);
                    note(PROPORTIONAL, "kB", footprint.proportional);
                    note(PRIVATE_DIRTY, "kB", footprint.private_dirty);
                    note(ANONYMOUS, "kB", footprint.anonymous);
                    note(THREADS, "", footprint.threads);
                    if let Some(vmm) = vmm {
                        note(&format!("{PROPORTIONAL}{ALONE}"), "kB", vmm.proportional);
                        note(&format!("{PRIVATE_DIRTY}{ALONE}"), "kB", vmm.private_dirty);
                    }
                }
                Err(e) => rows.fail(format!("{}: {FIRST_BYTE}: {e}", subject.name)),
            }
        }
    }
}

/// Starts and ends VMs on every CPU at once for `time`; how many got to their first byte in a second.
fn burst(subject: &Subject, kernel: &Path, time: Duration) -> Result<f64, Error> {
    let cpus = std::thread::available_parallelism()?.get();
    let begun = Instant::now();
    let work = || -> Result<usize, Error> {
        let mut count = 0;
        while begun.elapsed() < time {
            first_byte(subject, kernel)?;
            count += 1;
        }
        Ok(count)
    };
    let counts: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cpus).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|w| w.join().expect("a worker does not panic")).collect()
    });
    let total: usize = counts.into_iter().sum::<Result<_, Error>>()?;
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}

/// VMs per second, by turns.
pub(crate) fn rate(
    rows: &mut Rows,
    subjects: &[Subject],
    kernel: &Path,
    runs: usize,
    time: Duration,
    yardstick: &str,
) {
    for round in 0..runs {
        for subject in turns(subjects, round) {
            match burst(subject, kernel, time) {
                Ok(n) => rows.note((PER_SECOND, "/s", Better::More), yardstick, &subject.name, round, n),
                Err(e) => rows.fail(format!("{}: {PER_SECOND}: {e}", subject.name)),
            }
        }
    }
}
