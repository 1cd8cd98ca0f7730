//! The command line.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

const USAGE: &str = "options are --minutes N, --seed S, --machines K";
/// As many have a disk's daemon, a card's and a file system each.
const MOST_MACHINES: usize = 64;

/// How long, which way, how many at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) minutes: f64,
    pub(crate) seed: u64,
    pub(crate) machines: usize,
}

impl Options {
    /// Half a minute with two machines, by a seed of the time's, unless the arguments say otherwise.
    ///
    /// # Errors
    /// What cannot be understood of them.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut options = Options { minutes: 0.4, seed: now, machines: 2 };
        while let Some(flag) = arguments.next() {
            // What `cargo test` gives to all tests, which this one has no use for.
            if flag == "--nocapture" {
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{flag} has no value: {USAGE}"))?;
            match flag.as_str() {
                "--minutes" => options.minutes = number(&flag, &value)?,
                "--seed" => options.seed = number(&flag, &value)?,
                "--machines" => options.machines = number(&flag, &value)?,
                _ => return Err(format!("{flag} is not known: {USAGE}")),
            }
        }
        if !(1..=MOST_MACHINES).contains(&options.machines) || !(0.0..1e6).contains(&options.minutes) {
            return Err(format!("1 to {MOST_MACHINES} machines, for some minutes: {USAGE}"));
        }
        Ok(options)
    }
}

fn number<T: FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{flag} {value} is no number: {USAGE}"))
}

impl Display for Options {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Options { minutes, seed, machines } = self;
        write!(f, "--minutes {minutes} --seed {seed} --machines {machines}")
    }
}
