//! Machines that start, stop, change and end in no order, while their hosts run out of things and their questioners misbehave: a random
//! walk for each machine, and a sum of it all.
//!
//!     cargo test -p tests --test soak -- --minutes 10 --seed 7 --machines 3
//!
//! The guest, the probe's `load`, checks every sector, frame and page; the host checks images, answers, and what is left behind. Whatever is
//! refused must be refused for the reason that there is. It ends with status 0 only if nothing was wrong.
//! The same seed makes the same choices as long as the same things come of them; it does not make the same moments.

mod asked;
mod extras;
mod life;
mod options;
mod plan;
mod questions;
mod random;
mod site;
mod tally;
mod traces;
mod trouble;
mod walk;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use options::Options;
use tally::Tally;
use traces::Traces;
use walk::{Course, Walk};

fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("soak: {text}");
            return ExitCode::from(2);
        }
    };
    println!("soak: {options}");
    // What is made once is made before the first count.
    tests::programs::probe();
    let before = Traces::of_us();
    let (tally, stop) = (Tally::default(), AtomicBool::new(false));
    let steps: Vec<_> = (0..options.machines).map(|_| Mutex::default()).collect();
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    std::thread::scope(|scope| {
        for (nth, steps) in steps.iter().enumerate() {
            let course = Course { nth, seed: options.seed, end, stop: &stop, tally: &tally, steps };
            let walk = move || {
                // What is wrong for a test's helper is wrong: it says what, and that was all for this machine.
                let walked = catch_unwind(AssertUnwindSafe(|| Walk::go(course)));
                if let Err(panic) = walked {
                    course.wrong(&text_of(panic.as_ref()));
                }
            };
            let thread = std::thread::Builder::new().name(format!("walk-{nth}"));
            thread.spawn_scoped(scope, walk).expect("a thread can be started");
        }
    });
    match before.left_behind() {
        None => tally.checked("of the soak itself: a process, a descriptor, a thread"),
        Some(left) => tally.wrong(left),
    }
    tally.print();
    println!("soak: seed {}: {}", options.seed, if tally.is_good() { "good" } else { "NOT GOOD" });
    if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a panic says.
fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}
