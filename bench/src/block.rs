//! Disks under load from inside a machine: the VMM's own, and disks that another process serves to it.

use std::io::Error;

use crate::grid::{self, Case, Figures, Place};
use crate::image::Image;
use crate::load::{Load, Setting};
use crate::rows::{Rows, turns};
use crate::subject::{Extra, Subject};
use crate::vhost::{self, Storage};

/// Most bytes in flight: the probe's memory must hold them.
const ROOM: u64 = 128 << 20;
/// The section's name, and the beginning of its rows.
pub(crate) const OWN: &str = "block";
const SERVED: &str = "block, served";

fn turn(
    setting: &Setting<'_>,
    subject: &Subject,
    storage: Option<&Storage>,
    (place, case, seed): (&Place<'_>, &Case, usize),
) -> Result<Figures, Error> {
    let options = format!(
        "probe.op={} probe.order={} probe.size={} probe.depth={} probe.queues={} probe.seed={seed}",
        if case.write { "write" } else { "read" },
        if case.random { "random" } else { "seq" },
        case.bytes,
        case.depth,
        case.queues,
    );
    Image::wait_unlocked(place.path)?;
    let daemon =
        storage.map(|storage| vhost::serve(storage, place, case.queues, setting.scratch)).transpose()?;
    let extra = match &daemon {
        Some(daemon) => Extra::Served { socket: &daemon.socket, queues: case.queues },
        None => Extra::Disk { place: *place, queues: case.queues },
    };
    let load = Load { test: "bench-blk", options: &options, rate: "iops", extra };
    let peers: Vec<_> = daemon.iter().collect();
    let figures = setting.load(subject, &load, &peers, || Ok(()))?;
    Ok(Figures { bytes: f64::from(case.bytes), ..figures })
}

/// All rows, by turns. A disk that is served is served to a program by the daemon of its own makers, to others by ours.
pub(crate) fn measure(
    setting: &Setting<'_>,
    rows: &mut Rows,
    subjects: &[Subject],
    storages: &[Storage],
) -> Result<(), Error> {
    let images = Image::of_formats(setting, rows, OWN)?;
    for round in 0..setting.runs {
        for place in images.iter().map(Image::place) {
            for (section, served) in [(OWN, false), (SERVED, true)] {
                for (case, name) in grid::cases(setting, section, &place, (ROOM, served)) {
                    for subject in turns(subjects, round).filter(|s| s.has_devices()) {
                        let storage = storages.iter().find(|s| s.qemu == subject.is_qemu());
                        if served && storage.is_none() {
                            continue;
                        }
                        let what = (&place, &case, round + 1);
                        match turn(setting, subject, storage.filter(|_| served), what) {
                            Ok(figures) => figures.note(rows, &name, setting.yardstick, &subject.name, round),
                            Err(e) => rows.fail(format!("{}: {name}: {e}", subject.name)),
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
