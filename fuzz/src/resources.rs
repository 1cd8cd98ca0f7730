//! Whether descriptors or threads become more with every input.

use std::cell::Cell;
use std::fs;

/// Inputs between two looks.
const PERIOD: u64 = 512;
/// How many more there may be than at the first look: some come and go.
const SLACK: usize = 32;

thread_local! {
    static RUNS: Cell<u64> = const { Cell::new(0) };
    static FIRST: Cell<Option<[usize; 2]>> = const { Cell::new(None) };
}

fn count() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|path| fs::read_dir(path).map_or(0, Iterator::count))
}

/// Looks now and then, after an input.
///
/// # Panics
/// There are many more than there were.
pub fn check() {
    let runs = RUNS.get() + 1;
    RUNS.set(runs);
    if !runs.is_multiple_of(PERIOD) {
        return;
    }
    let now = count();
    let first = FIRST.get().unwrap_or(now);
    FIRST.set(Some(first));
    let more = now.iter().zip(first).any(|(now, first)| *now > first + SLACK);
    assert!(
        !more,
        "descriptors and threads were {first:?} after {PERIOD} inputs and are {now:?} after {runs}"
    );
}
