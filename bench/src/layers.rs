//! What each layer of confinement costs: the same start and the same restore with nothing, and with one more layer each time.
//! [`STARTS`] says how a program is started with them, which the order of its functions follows too (`order`).

use std::path::Path;

use crate::load::Setting;
use crate::restore;
use crate::rows::{Better, Rows};
use crate::start;
use crate::subject::Subject;

/// A layer, on top of those before it.
struct Layer {
    name: &'static str,
    /// What the VMM is told.
    words: &'static [&'static str],
    /// What it is told when it restores: of some layers the snapshot tells.
    restored: &'static [&'static str],
}

/// What the VMM is told, by layers: with filters of system calls, which it has unasked, with Landlock besides, in a jail besides.
/// [`told`] knows a place for what they name.
pub(crate) const STARTS: [&[&str]; 3] = [
    &[],
    &["--landlock", "--landlock-rules", "path=SCRATCH,access=rw"],
    &["--landlock", "--landlock-rules", "path=SCRATCH,access=rw", "--jail", "on"],
];
/// The first is what the others are compared with.
const LAYERS: [Layer; 4] = [
    Layer { name: "unconfined", words: &["--seccomp", "false"], restored: &["--seccomp", "false"] },
    Layer { name: "seccomp", words: STARTS[0], restored: &[] },
    Layer { name: "seccomp, landlock", words: STARTS[1], restored: &[] },
    Layer { name: ALL, words: STARTS[2], restored: &["--jail", "on"] },
];
/// Stands for a directory that is there.
const SCRATCH: &str = "SCRATCH";
/// What the names of the rows begin with.
pub(crate) const PREFIX: &str = "layers: ";
/// All of them, by its name.
pub(crate) const ALL: &str = "seccomp, landlock, jail";
const MIB: u64 = 1024;

/// The program when it is told these words besides.
pub(crate) fn told(program: &Subject, name: &str, words: &[&str], scratch: &Path) -> Subject {
    let scratch = scratch.display().to_string();
    Subject {
        name: name.to_owned(),
        words: words.iter().map(|word| word.replace(SCRATCH, &scratch)).collect(),
        ..program.clone()
    }
}

/// Start, footprint, and a mapped restore of a machine of 1 GiB, by turns.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, ours: &Subject, first_byte: &Path) {
    // The snapshots are in it.
    let scratch = setting.scratch;
    let layers: Vec<_> = LAYERS.iter().map(|layer| told(ours, layer.name, layer.words, scratch)).collect();
    let restored = LAYERS.iter().map(|layer| told(ours, layer.name, layer.restored, scratch));
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
