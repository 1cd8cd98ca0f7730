//! Boot of a stock kernel to userspace: process start to the first line of the initramfs' script on the virtio console.

use std::io::Error;
use std::path::Path;
use std::time::Duration;

use crate::load::Setting;
use crate::process::Process;
use crate::rows::{Better, Rows, turns};
use crate::subject::{Extra, Subject};

/// Emulated processors take their time.
const LIMIT: Duration = Duration::from_secs(180);

/// Name of the row.
pub(crate) const USERSPACE: &str = "boot to userspace";

fn once(subject: &Subject, kernel: &Path, initramfs: &Path) -> Result<Option<f64>, Error> {
    let Some(command) = subject.boot(kernel, initramfs, ("", Extra::None)) else { return Ok(None) };
    let mut process = Process::start(command)?;
    process.read_until(LIMIT, |seen| String::from_utf8_lossy(seen).contains("guest: begin"))?;
    Ok(Some(process.age().as_secs_f64()))
}

/// By turns.
pub(crate) fn measure(
    setting: &Setting<'_>,
    rows: &mut Rows,
    subjects: &[Subject],
    (kernel, initramfs): (&Path, &Path),
) {
    if !setting.wants(USERSPACE, true) {
        return;
    }
    for round in 0..setting.runs {
        for subject in turns(subjects, round) {
            match once(subject, kernel, initramfs) {
                Ok(None) => {}
                Ok(Some(time)) => {
                    let row = (USERSPACE, "s", Better::Less);
                    rows.note(row, setting.yardstick, &subject.name, round, time);
                }
                Err(e) => rows.fail(format!("{}: {USERSPACE}: {e}", subject.name)),
            }
        }
    }
}
