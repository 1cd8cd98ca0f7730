//! What each layer of confinement costs: the same start and the same restore with nothing, and with one more layer each time.

use std::path::Path;

use crate::load::Setting;
use crate::restore;
use crate::rows::{Better, Rows};
use crate::start;
use crate::subject::Subject;

/// A layer, on top of those before it.
struct Layer {
    name: &'static str,
    /// What the VMM is told; [`SCRATCH`] stands for the directory of the snapshots.
    words: &'static [&'static str],
    /// What it is told when it restores: of some layers the snapshot tells.
    restored: &'static [&'static str],
}

/// The first is what the others are compared with.
const LAYERS: [Layer; 4] = [
    Layer { name: "unconfined", words: &["--seccomp", "false"], restored: &["--seccomp", "false"] },
    Layer { name: "seccomp", words: &[], restored: &[] },
    Layer {
        name: "seccomp, landlock",
        words: &["--landlock", "--landlock-rules", "path=SCRATCH,access=rw"],
        restored: &[],
    },
    Layer {
        name: "seccomp, landlock, jail",
        words: &["--landlock", "--landlock-rules", "path=SCRATCH,access=rw", "--jail", "on"],
        restored: &["--jail", "on"],
    },
];
const SCRATCH: &str = "SCRATCH";
/// What the names of the rows begin with.
const PREFIX: &str = "layers: ";
const MIB: u64 = 1024;

/// Start, footprint, and a mapped restore of a machine of 1 GiB, by turns.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, ours: &Subject, first_byte: &Path) {
    let scratch = setting.scratch.display().to_string();
    let told = |layer: &Layer, words: &[&str]| Subject {
        name: layer.name.to_owned(),
        words: words.iter().map(|word| word.replace(SCRATCH, &scratch)).collect(),
        ..ours.clone()
    };
    let layers: Vec<_> = LAYERS.iter().map(|layer| told(layer, layer.words)).collect();
    let restored = LAYERS.iter().map(|layer| told(layer, layer.restored));
    let yardstick = LAYERS[0].name;
    start::measure(rows, &layers, first_byte, setting.runs, (PREFIX, yardstick));
    let name = format!("{PREFIX}{}", restore::row("1 GiB", restore::MAPPED));
    let mut saved = Vec::new();
    for (layer, restored) in layers.iter().zip(restored) {
        match restore::save(setting, layer, MIB, "") {
            Ok(snapshot) => saved.push((restored, snapshot)),
            Err(e) => rows.fail(format!("{}: {name}: {e}", layer.name)),
        }
    }
    for round in 0..setting.runs {
        for (layer, snapshot) in &saved {
            match restore::restore(layer, &snapshot.directory.0, restore::MAPPED) {
                Ok((time, _)) => {
                    let millis = time.as_secs_f64() * 1e3;
                    rows.note((&name, "ms", Better::Less), yardstick, &layer.name, round, millis);
                }
                Err(e) => rows.fail(format!("{}: {name}: {e}", layer.name)),
            }
        }
    }
}
