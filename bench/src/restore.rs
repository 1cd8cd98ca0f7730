//! Restores: process start until the guest runs on, for small and large machines in each way to bring memory back, and many at once.
//!
//! The guest writes a byte after the other to its serial port; the first that a new process shows was written by the restored guest.
//! The snapshot's files are in the page cache, as they are on a host that starts many machines from one.

use std::io::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::load::Setting;
use crate::process::{Process, promptly};
use crate::rows::{Better, Rows};
use crate::served::{Directory, Served};
use crate::start;
use crate::subject::{Extra, Subject};
use crate::targets::{BARE, OURS};

/// The value of `memory_restore_mode` that targets speak of.
pub(crate) const MAPPED: &str = "mmap";
const MODES: [&str; 3] = ["copy", "ondemand", MAPPED];
const SIZES: [(u64, &str); 3] = [(128, "128 MiB"), (1024, "1 GiB"), (8192, "8 GiB")];
/// MiB that the guest has touched, whatever the machine's size.
const TOUCHED: u64 = 64;
/// Restores at once.
const MANY: usize = 25;
const MANY_MIB: u64 = 1024;
const LIMIT: Duration = Duration::from_secs(60);

/// The name of a row.
pub(crate) fn row(size: &str, mode: &str) -> String {
    format!("restore to first instruction, {size}, {mode}")
}

/// The name of the row of failures.
pub(crate) fn failures(mode: &str) -> String {
    format!("{MANY} restores at once, {mode}: failures")
}

/// A snapshot of a program's machine.
pub(crate) struct Saved<'a> {
    subject: &'a Subject,
    pub(crate) directory: Directory,
    modes: Vec<&'static str>,
}

/// Takes a snapshot of a machine with `mib` of memory.
pub(crate) fn save<'a>(
    setting: &Setting<'_>,
    subject: &'a Subject,
    mib: u64,
    period: &str,
) -> Result<Saved<'a>, Error> {
    let cmdline = format!("probe.run=pulse probe.touch={TOUCHED} {period}");
    let machine =
        Served::start(subject, setting.probe, (&cmdline, "# pulse"), mib, setting.scratch, Extra::None)?;
    let directory = Directory::new(setting.scratch);
    machine.pause()?;
    machine.snapshot(&directory.0)?;
    Ok(Saved { subject, directory, modes: Vec::new() })
}

/// A snapshot of a machine of the size that the target for restores names.
pub(crate) fn save_usual(setting: &Setting<'_>, subject: &Subject) -> Result<Directory, Error> {
    save(setting, subject, MANY_MIB, "").map(|saved| saved.directory)
}

/// Restores it: the time until the guest runs on, and the process that it runs in.
pub(crate) fn restore(subject: &Subject, directory: &Path, mode: &str) -> Result<(Duration, Process), Error> {
    promptly(|| {
        let mut process = Process::start(subject.restored(directory, mode))?;
        process.read_until(LIMIT, |seen| !seen.is_empty())?;
        Ok((process.age(), process))
    })
}

/// Snapshots of every program that can take one, and the modes that it can restore by: each is tried once.
fn saved<'a>(
    setting: &Setting<'_>,
    rows: &mut Rows,
    subjects: &'a [Subject],
    mib: u64,
    period: &str,
) -> Vec<Saved<'a>> {
    let mut all = Vec::new();
    for subject in subjects.iter().filter(|s| s.has_api()) {
        let name = &subject.name;
        match save(setting, subject, mib, period) {
            Err(e) => rows.miss(&format!("{name}: restore"), &e),
            Ok(mut saved) => {
                for mode in MODES {
                    match restore(subject, &saved.directory.0, mode) {
                        Ok(_) => saved.modes.push(mode),
                        Err(e) if name == OURS => rows.fail(format!("{name}: restore by {mode}: {e}")),
                        Err(e) => rows.skip(format!("{name}: restore by {mode}: {e}")),
                    }
                }
                all.push(saved);
            }
        }
    }
    all
}

/// One at a time, by turns, among them bare KVM's start with as much memory: to make slots of gigabytes takes KVM milliseconds.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, subjects: &[Subject], first_byte: &Path) {
    for (mib, size) in SIZES {
        let all = saved(setting, rows, subjects, mib, "");
        for round in 0..setting.runs {
            let bare = subjects.iter().find(|s| s.name == BARE);
            let bare = bare.and_then(|s| promptly(|| start::first_byte_with(s, first_byte, mib)).ok());
            let bare = bare.map(|(time, _)| time);
            for mode in MODES {
                let mut note = |name: &str, time: Duration| {
                    let millis = time.as_secs_f64() * 1e3;
                    rows.note((&row(size, mode), "ms", Better::Less), BARE, name, round, millis);
                };
                let mut wrong = Vec::new();
                for saved in all.iter().filter(|s| s.modes.contains(&mode)) {
                    match restore(saved.subject, &saved.directory.0, mode) {
                        Ok((time, _)) => note(&saved.subject.name, time),
                        Err(e) => wrong.push(format!("{}: {}: {e}", saved.subject.name, row(size, mode))),
                    }
                    bare.iter().for_each(|time| note(BARE, *time));
                }
                wrong.into_iter().for_each(|what| rows.fail(what));
            }
        }
    }
}

/// Starts that many at once: time until the last has its first byte, how many never had, and what they cost then.
fn many(start: impl Fn() -> Result<Process, Error>) -> Result<(Duration, usize, f64, f64), Error> {
    let begun = Instant::now();
    let mut processes = (0..MANY).map(|_| start()).collect::<Result<Vec<_>, Error>>()?;
    let failed = |p: &mut Process| p.read_until(LIMIT, |seen| !seen.is_empty()).is_err();
    let alive: Vec<bool> = processes.iter_mut().map(|p| !failed(p)).collect();
    let time = begun.elapsed();
    let (mut proportional, mut resident) = (0.0, 0.0);
    for (process, _) in processes.iter().zip(&alive).filter(|(_, alive)| **alive) {
        let (footprint, _) = process.footprint()?;
        proportional += footprint.proportional / 1e3;
        resident += footprint.resident / 1e3;
    }
    Ok((time, alive.iter().filter(|alive| !**alive).count(), proportional, resident))
}

/// Twenty-five at once from one snapshot of 1 GiB, by turns; beside them as many starts of bare KVM.
pub(crate) fn measure_many(setting: &Setting<'_>, rows: &mut Rows, subjects: &[Subject], first_byte: &Path) {
    // These guests sleep most of the time, as idle machines do.
    let all = saved(setting, rows, subjects, MANY_MIB, "probe.period=1000");
    if all.is_empty() {
        return;
    }
    for round in 0..setting.runs {
        let bare = subjects.iter().find(|s| s.name == BARE);
        let bare = bare
            .and_then(|s| many(|| Process::start(s.run_with(first_byte, "", MANY_MIB, Extra::None))).ok());
        for mode in MODES {
            let last = format!("{MANY} restores at once, {mode}: last first byte");
            if let Some((time, ..)) = bare {
                let millis = time.as_secs_f64() * 1e3;
                rows.note((&last, "ms", Better::Less), BARE, BARE, round, millis);
            }
            for saved in all.iter().filter(|s| s.modes.contains(&mode)) {
                let name = &saved.subject.name;
                match many(|| Process::start(saved.subject.restored(&saved.directory.0, mode))) {
                    Err(e) => rows.fail(format!("{name}: {last}: {e}")),
                    Ok((time, failed, proportional, resident)) => {
                        let mut note = |row: &str, unit, value| {
                            rows.note((row, unit, Better::Less), BARE, name, round, value);
                        };
                        note(&last, "ms", time.as_secs_f64() * 1e3);
                        note(&failures(mode), "", failed as f64);
                        note(&format!("{MANY} restores at once, {mode}: PSS of all"), "MB", proportional);
                        note(&format!("{MANY} restores at once, {mode}: RSS of all"), "MB", resident);
                    }
                }
            }
        }
    }
}
