//! Sockets between host and guest: connections that the host makes, and bytes both ways.
//!
//! Of programs with Cloud Hypervisor's flags only: QEMU's are the kernel's, which many hosts lack, and are reached otherwise.

use std::io::{Error, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::daemon;
use crate::grid::Figures;
use crate::load::{Load, Setting};
use crate::rows::Rows;
use crate::subject::{Extra, Subject};
use crate::targets::OURS;

/// What the probe does, the name of the row, and bytes that each moves.
const OPS: [(&str, &str, u64); 3] = [
    ("accept", "sockets: connections made", 0),
    ("sink", "sockets: 64 KiB to the guest", CHUNK as u64),
    ("source", "sockets: 64 KiB from the guest", CHUNK as u64),
];
const CHUNK: usize = 64 << 10;
/// Where the probe listens.
const PORT: u32 = 1000;

/// Connects to the guest.
fn connect(socket: &Path, patience: Duration) -> Result<UnixStream, Error> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut answer = [0; 32];
    let mut len = 0;
    while len < answer.len() && !answer[..len].ends_with(b"\n") {
        // Not a byte more: what follows is the guest's.
        if stream.read(&mut answer[len..=len])? == 0 {
            return Err(Error::other("the guest does not take the connection"));
        }
        len += 1;
    }
    Ok(stream)
}

/// The host's part; it ends when the guest does, which has what there is to tell.
fn work(op: &str, socket: &Path, time: Duration) {
    let begun = Instant::now();
    let mut chunk = vec![7; CHUNK];
    if op == "accept" {
        while begun.elapsed() < time && connect(socket, time).is_ok() {}
        return;
    }
    let Ok(mut stream) = connect(socket, time) else { return };
    while begun.elapsed() < time {
        let went = if op == "sink" { stream.write_all(&chunk) } else { stream.read_exact(&mut chunk) };
        if went.is_err() {
            return;
        }
    }
}

fn turn(setting: &Setting<'_>, subject: &Subject, op: &str, bytes: u64) -> Result<Figures, Error> {
    let socket = daemon::socket(setting.scratch);
    let options = format!("probe.op={op} probe.size={CHUNK}");
    let load = Load {
        test: "bench-vsock",
        options: &options,
        rate: "ops/s",
        extra: Extra::Sockets { socket: &socket },
    };
    // A little longer than the guest listens.
    let time = Duration::from_millis(setting.millis + 50);
    let figures = setting.load(subject, &load, &[], || {
        work(op, &socket, time);
        Ok(())
    });
    // A VMM that is killed leaves it.
    let _ = std::fs::remove_file(&socket);
    Ok(Figures { bytes: bytes as f64, ..figures? })
}

/// All rows, by turns.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, subjects: &[Subject]) {
    if subjects.iter().any(Subject::is_qemu) {
        rows.skip("sockets: QEMU's are the kernel's, which is another way to the guest".to_owned());
    }
    for round in 0..setting.runs {
        for (op, name, bytes) in OPS.into_iter().filter(|(_, name, _)| setting.wants(name, true)) {
            for subject in subjects.iter().filter(|s| s.has_api()) {
                match turn(setting, subject, op, bytes) {
                    Ok(figures) => figures.note(rows, name, OURS, &subject.name, round),
                    Err(e) => rows.fail(format!("{}: {name}: {e}", subject.name)),
                }
            }
        }
    }
}
