//! What was done, how long it took, what was refused and how, which trouble was made, and what was found wrong; and the table of it all.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// What was found wrong is told up to this many times.
const TOLD: usize = 20;

/// One kind of operation.
#[derive(Debug, Default)]
struct Row {
    /// How long each took that was done.
    times: Vec<Duration>,
    /// How often it was refused, by the refusal.
    refused: BTreeMap<String, u64>,
}

/// One kind of trouble.
#[derive(Debug, Default)]
struct Trouble {
    made: u64,
    /// Questions refused, requests of the guest's failed: what it had as a consequence.
    felt: u64,
    /// Machines that ended by it, and said why.
    ended: u64,
}

#[derive(Debug, Default)]
struct Counts {
    rows: BTreeMap<&'static str, Row>,
    troubles: BTreeMap<&'static str, Trouble>,
    checks: BTreeMap<&'static str, u64>,
    wrong: Vec<String>,
}

/// All of it; shared by the walks.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counts>);

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("nobody panics with this lock held")
    }

    /// An operation was done.
    pub(crate) fn done(&self, what: &'static str, time: Duration) {
        self.counts().rows.entry(what).or_default().times.push(time);
    }

    /// An operation was refused, as it may be.
    pub(crate) fn refused(&self, what: &'static str, how: String) {
        *self.counts().rows.entry(what).or_default().refused.entry(how).or_default() += 1;
    }

    /// Trouble was made, with so many consequences, and is over; whether the machine outlived it.
    pub(crate) fn trouble(&self, what: &'static str, felt: u64, survived: bool) {
        let mut counts = self.counts();
        let trouble = counts.troubles.entry(what).or_default();
        trouble.made += 1;
        trouble.felt += felt;
        trouble.ended += u64::from(!survived);
    }

    /// Something was looked for that must not be, and was not found.
    pub(crate) fn checked(&self, what: &'static str) {
        *self.counts().checks.entry(what).or_default() += 1;
    }

    /// Something is wrong.
    pub(crate) fn wrong(&self, what: String) {
        self.counts().wrong.push(what);
    }

    /// Whether nothing is.
    pub(crate) fn is_good(&self) -> bool {
        self.counts().wrong.is_empty()
    }

    /// Prints the tables, and what is wrong.
    pub(crate) fn print(&self) {
        let counts = self.counts();
        println!("\n{:<44} {:>7} {:>8} {:>10} {:>10}", "operation", "done", "refused", "median", "worst");
        let (mut all, mut all_refused) = (0, 0);
        for (what, row) in &counts.rows {
            let mut times = row.times.clone();
            times.sort_unstable();
            let refused: u64 = row.refused.values().sum();
            let show = |time: Option<&Duration>| time.map_or("-".to_owned(), |time| format!("{time:.1?}"));
            let (median, worst) = (show(times.get(times.len() / 2)), show(times.last()));
            println!("{what:<44} {:>7} {refused:>8} {median:>10} {worst:>10}", times.len());
            row.refused.iter().for_each(|(how, count)| println!("    {count:>5} x {how}"));
            all += times.len();
            all_refused += refused;
        }
        println!("{:<44} {all:>7} {all_refused:>8}", "all");
        println!("\n{:<44} {:>7} {:>12} {:>10}", "trouble", "made", "consequences", "VMM ended");
        for (what, trouble) in &counts.troubles {
            println!("{what:<44} {:>7} {:>12} {:>10}", trouble.made, trouble.felt, trouble.ended);
        }
        println!("\n{:<44} {:>7}", "looked for, and not found", "times");
        counts.checks.iter().for_each(|(what, times)| println!("{what:<44} {times:>7}"));
        println!("\nwrong: {}", counts.wrong.len());
        counts.wrong.iter().take(TOLD).for_each(|wrong| println!("WRONG {wrong}"));
    }
}

/// A refusal without what is different each time: its status and innermost message, paths and numbers left out.
pub(crate) fn kind_of(status: u16, text: &str) -> String {
    let chain: Vec<String> = serde_json::from_str(text).unwrap_or_else(|_| vec![text.to_owned()]);
    let last = chain.last().map_or("", String::as_str);
    let plain = |word: &str| match word {
        word if word.contains('/') => "PATH".to_owned(),
        word => word.chars().map(|c| if c.is_ascii_digit() { 'N' } else { c }).collect(),
    };
    let words: Vec<String> = last.split_whitespace().map(plain).collect();
    format!("{status} {}", words.join(" ").replace("NN", "N"))
}
