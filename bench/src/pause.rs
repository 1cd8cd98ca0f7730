//! Pause and resume: from the question over the API to its answer, with a guest that sleeps and one that loads its disk.

use std::io::Error;
use std::path::Path;
use std::time::Duration;

use crate::grid::Place;
use crate::image::Image;
use crate::load::Setting;
use crate::rows::{Better, Rows};
use crate::served::Served;
use crate::subject::{Extra, Subject};
use crate::targets::OURS;

/// Sectors that the guest's load uses.
const SECTORS: u64 = 8192;

fn start(setting: &Setting<'_>, subject: &Subject, image: Option<&Path>) -> Result<Served, Error> {
    let khz = setting.khz;
    let (guest, extra) = match image {
        None => (("probe.end=halt".to_owned(), "DONE "), Extra::None),
        Some(path) => {
            let load =
                format!("probe.run=load probe.sectors={SECTORS} probe.beat=1000000000 probe.khz={khz}");
            let place = Place { path, format: "raw", direct: false };
            ((load, "# loading "), Extra::Disk { place, queues: 1 })
        }
    };
    Served::start(subject, setting.probe, (&guest.0, guest.1), 512, setting.scratch, extra)
}

/// By turns: every program's machine runs all the time, each is paused once a round.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, subjects: &[Subject]) -> Result<(), Error> {
    for (what, loaded) in [("idle", false), ("disk load", true)] {
        let mut machines = Vec::new();
        for subject in subjects.iter().filter(|s| s.has_api()) {
            let image = loaded.then(|| Image::empty(setting.scratch, SECTORS * 512)).transpose()?;
            match start(setting, subject, image.as_ref().map(|i| i.path.as_path())) {
                Ok(machine) => machines.push((subject, machine, image)),
                Err(e) => rows.fail(format!("{}: pause, {what}: {e}", subject.name)),
            }
        }
        for round in 0..setting.runs {
            machines.retain(|(subject, machine, _)| {
                std::thread::sleep(Duration::from_millis(20));
                let times = machine.pause().and_then(|pause| {
                    std::thread::sleep(Duration::from_millis(5));
                    Ok([("pause", pause), ("resume", machine.resume()?)])
                });
                match times {
                    Ok(times) => {
                        for (verb, time) in times {
                            let name = format!("{verb}, {what}");
                            let millis = time.as_secs_f64() * 1e3;
                            rows.note((&name, "ms", Better::Less), OURS, &subject.name, round, millis);
                        }
                        true
                    }
                    Err(e) => {
                        rows.miss(&format!("{}: pause, {what}", subject.name), &e);
                        false
                    }
                }
            });
        }
    }
    Ok(())
}
