//! All fuzz targets in one program, so that they are built and linked once.
//!
//! libFuzzer has `main` and its options. Which target runs is in the environment, for libFuzzer takes every argument for its own:
//!
//! * `VIRGA_FUZZ=name` chooses the target;
//! * `VIRGA_FUZZ_PREPARE=directory` writes what a run of it begins with (`seeds/`, `dictionary`, `options`) there, and ends;
//! * `VIRGA_FUZZ_LIST=1` lists the targets, and ends.
//!
//! A target panics when something is wrong, and libFuzzer keeps the input. `scripts/fuzz` does all that; see `docs/fuzzing.md`.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a target that cannot be set up is to end loudly")]

mod api;
mod damage;
mod devices;
mod guest;
mod image;
mod input;
mod json;
mod kernel;
mod machine_state;
mod metadata_service;
mod options;
mod pci_bus;
mod platform_devices;
mod resources;
mod scratch;
mod snapshot;
mod sockets;
mod vhost_user_peer;
mod virtio;

use std::path::Path;
use std::sync::OnceLock;
use std::{fs, process};

use libfuzzer_sys::fuzz_target;

/// One target.
pub struct Target {
    name: &'static str,
    about: &'static str,
    /// Longest input.
    length: usize,
    /// More options of libFuzzer.
    options: &'static [&'static str],
    /// Words that inputs are likely made of.
    words: fn() -> Vec<String>,
    /// Inputs to begin with.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Tries one input.
    run: fn(&[u8]),
}

fn targets() -> Vec<Target> {
    [
        image::targets(),
        devices::targets(),
        vec![pci_bus::target(), platform_devices::target(), machine_state::target()],
        vec![snapshot::target(), vhost_user_peer::target(), kernel::target(), metadata_service::target()],
        options::targets(),
        api::targets(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

static CHOSEN: OnceLock<Target> = OnceLock::new();

/// Formats what is logged, as a real logger would, and drops it.
struct Sink;

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if std::env::var_os("VIRGA_FUZZ_LOG").is_some() {
            eprintln!("{}: {}", record.level(), record.args());
        } else {
            drop(std::hint::black_box(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

fn prepare(target: &Target, directory: &Path) {
    let seeds = directory.join("seeds");
    fs::create_dir_all(&seeds).unwrap();
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        fs::write(seeds.join(format!("{number:03}")), seed).unwrap();
    }
    let quoted = |word: &String| {
        let bytes: String = word.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("\"{bytes}\"\n")
    };
    // Programs are not worth more for being short.
    let mut options = vec![format!("-max_len={}", target.length), "-len_control=0".to_owned()];
    let words: String = (target.words)().iter().map(quoted).collect();
    if !words.is_empty() {
        let dictionary = directory.join("dictionary");
        fs::write(&dictionary, words).unwrap();
        options.push(format!("-dict={}", dictionary.display()));
    }
    options.extend(target.options.iter().map(ToString::to_string));
    fs::write(directory.join("options"), options.join("\n")).unwrap();
}

/// Before the first input. libFuzzer has no other way to be told that there will be none than the end of the process.
#[expect(
    clippy::disallowed_methods,
    reason = "there is no `main` to return from, and nothing that a destructor would restore"
)]
fn begin() {
    let all = targets();
    if std::env::var_os("VIRGA_FUZZ_LIST").is_some() {
        for target in &all {
            println!("{:<16} {}", target.name, target.about);
        }
        process::exit(0);
    }
    let wanted = std::env::var("VIRGA_FUZZ").unwrap_or_default();
    let Some(target) = all.into_iter().find(|target| target.name == wanted) else {
        eprintln!("there is no fuzz target {wanted:?}: set VIRGA_FUZZ, or use scripts/fuzz");
        process::exit(2);
    };
    if let Some(directory) = std::env::var_os("VIRGA_FUZZ_PREPARE") {
        prepare(&target, Path::new(&directory));
        process::exit(0);
    }
    // As Rust's own start does, which is not ours here.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    log::set_logger(&Sink).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    assert!(CHOSEN.set(target).is_ok());
}

fuzz_target!(init: begin(), |data: &[u8]| {
    (CHOSEN.get().unwrap().run)(data);
    resources::check();
});
