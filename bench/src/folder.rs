//! A folder of the host in a machine, by virtiofsd: names, files that come and go, and bytes, one request at a time.

use std::io::Error;
use std::path::Path;
use std::process::Command;

use crate::daemon::{self, Daemon};
use crate::grid::Figures;
use crate::load::{Load, Setting};
use crate::rows::{Rows, turns};
use crate::served::Directory;
use crate::subject::{Extra, Subject};

/// Bytes of the file that is read and written, and of one request.
const FILE: u64 = 16 << 20;
const REQUEST: u64 = 128 << 10;

/// What the probe does, the name of the row, and bytes that each moves.
const OPS: [(&str, &str, u64); 4] = [
    ("lookup", "folder: names looked up", 0),
    ("create", "folder: files made and removed", 0),
    ("read", "folder: 128 KiB read", REQUEST),
    ("write", "folder: 128 KiB written", REQUEST),
];

fn turn(
    setting: &Setting<'_>,
    subject: &Subject,
    (virtiofsd, folder): (&Path, &Path),
    (op, bytes): (&str, u64),
) -> Result<Figures, Error> {
    let socket = daemon::socket(setting.scratch);
    let mut command = Command::new(virtiofsd);
    command.arg("--shared-dir").arg(folder).arg("--socket-path").arg(&socket).args(["--sandbox", "none"]);
    // It takes one connection only.
    let daemon = Daemon::start(command, socket, false)?;
    let options = format!("probe.op={op} probe.size={REQUEST} probe.file={FILE}");
    let extra = Extra::Folder { socket: &daemon.socket };
    let load = Load { test: "bench-fs", options: &options, rate: "ops/s", extra };
    let figures = setting.load(subject, &load, &[&daemon], || Ok(()))?;
    Ok(Figures { bytes: bytes as f64, ..figures })
}

/// All rows, by turns, every program with a virtiofsd of its own on the same folder.
pub(crate) fn measure(
    setting: &Setting<'_>,
    rows: &mut Rows,
    subjects: &[Subject],
    virtiofsd: Option<&Path>,
) -> Result<(), Error> {
    let Some(virtiofsd) = virtiofsd else {
        rows.skip("folder: no virtiofsd was named".to_owned());
        return Ok(());
    };
    let folder = Directory::new(setting.scratch);
    std::fs::create_dir(&folder.0)?;
    std::fs::write(folder.0.join("probe"), vec![7; FILE as usize])?;
    for round in 0..setting.runs {
        for (op, name, bytes) in OPS.into_iter().filter(|(_, name, _)| setting.wants(name, true)) {
            for subject in turns(subjects, round).filter(|s| s.has_devices()) {
                match turn(setting, subject, (virtiofsd, &folder.0), (op, bytes)) {
                    Ok(figures) => figures.note(rows, name, setting.yardstick, &subject.name, round),
                    Err(e) => rows.fail(format!("{}: {name}: {e}", subject.name)),
                }
            }
        }
    }
    Ok(())
}
