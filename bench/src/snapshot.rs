//! Snapshots: how long one takes for each GiB of memory that the guest has touched, and for each that it has not.

use std::io::Error;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::load::Setting;
use crate::rows::{Better, Rows};
use crate::served::{Directory, Served};
use crate::subject::{Extra, Subject};
use crate::targets::OURS;

/// Memory and what is touched of it, in MiB: the rest of a machine, one touched GiB more, eight untouched ones more.
const MACHINES: [(u64, u64); 3] = [(1280, 0), (1280, 1024), (9472, 0)];

/// What a directory takes on its disk, in MB; holes take nothing.
fn size(directory: &Path) -> Result<f64, Error> {
    let mut blocks = 0;
    for entry in std::fs::read_dir(directory)? {
        blocks += entry?.metadata()?.blocks();
    }
    Ok(blocks as f64 * 512.0 / 1e6)
}

/// One snapshot of each of the three: time, and size on the disk.
fn round(machines: &[Served], scratch: &Path) -> Result<Vec<(Duration, f64)>, Error> {
    let one = |machine: &Served| -> Result<_, Error> {
        let directory = Directory::new(scratch);
        machine.pause()?;
        let taken = machine.snapshot(&directory.0);
        machine.resume()?;
        Ok((taken?, size(&directory.0)?))
    };
    machines.iter().map(one).collect()
}

/// By turns.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, subjects: &[Subject]) {
    let mut all = Vec::new();
    for subject in subjects.iter().filter(|s| s.has_api()) {
        let start = |(mib, touch): (u64, u64)| {
            // A sign of life now and then, lest the pipe fill.
            let cmdline = format!("probe.run=pulse probe.touch={touch} probe.period=100000");
            Served::start(subject, setting.probe, (&cmdline, "# pulse"), mib, setting.scratch, Extra::None)
        };
        match MACHINES.into_iter().map(start).collect::<Result<Vec<_>, Error>>() {
            Ok(machines) => all.push((subject, machines)),
            Err(e) => rows.fail(format!("{}: snapshot: {e}", subject.name)),
        }
    }
    for n in 0..setting.runs {
        all.retain(|(subject, machines)| match round(machines, setting.scratch) {
            Err(e) => {
                rows.miss(&format!("{}: snapshot", subject.name), &e);
                false
            }
            Ok(taken) => {
                let mut note = |name: &str, unit, value| {
                    rows.note((name, unit, Better::Less), OURS, &subject.name, n, value);
                };
                let millis: Vec<f64> = taken.iter().map(|(time, _)| time.as_secs_f64() * 1e3).collect();
                note("snapshot, 1.25 GiB, untouched", "ms", millis[0]);
                note("snapshot, each GiB touched", "ms", millis[1] - millis[0]);
                note("snapshot, each GiB untouched", "ms", (millis[2] - millis[0]) / 8.0);
                note("snapshot on the disk, 1.25 GiB, untouched", "MB", taken[0].1);
                note("snapshot on the disk, 1 GiB touched", "MB", taken[1].1);
                true
            }
        });
    }
}
