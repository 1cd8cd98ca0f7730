//! What is asked of disks and network cards, in machines and without them: one grid of each, its names, and the figures that come of a turn.

use std::io::Error;
use std::path::Path;
use std::time::Duration;

use crate::load::Setting;
use crate::rows::{Better, Rows};

/// Block sizes, requests in flight on each queue, and queues: every one with every other.
const BYTES: [u32; 3] = [4 << 10, 64 << 10, 1 << 20];
const DEPTHS: [u16; 4] = [1, 16, 32, 128];
const QUEUES: [usize; 2] = [1, 2];

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) write: bool,
    pub(crate) random: bool,
    pub(crate) bytes: u32,
    pub(crate) depth: u16,
    pub(crate) queues: usize,
}

/// Those that are measured when nobody asks for others: bytes, depth, queues, random, and whether also where few are to do.
const USUAL: [(u32, u16, usize, bool, bool); 8] = [
    (4 << 10, 1, 1, true, false),
    (4 << 10, 32, 1, true, true),
    (4 << 10, 32, 1, false, false),
    (4 << 10, 128, 1, true, false),
    (4 << 10, 32, 2, true, false),
    (64 << 10, 1, 1, true, false),
    (64 << 10, 32, 1, true, true),
    // Deeper does not fit into the memory of every front end.
    (1 << 20, 16, 1, false, false),
];

/// The image and how it is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) path: &'a Path,
    pub(crate) format: &'static str,
    pub(crate) direct: bool,
}

impl Case {
    /// Bytes of data in flight.
    pub(crate) fn room(&self) -> u64 {
        u64::from(self.bytes) * u64::from(self.depth) * self.queues as u64
    }

    fn is_usual(&self, few: bool) -> bool {
        USUAL.iter().any(|&(bytes, depth, queues, random, everywhere)| {
            (bytes, depth, queues, random) == (self.bytes, self.depth, self.queues, self.random)
                && (everywhere || !few)
        })
    }

    fn name(&self, section: &str, place: &Place<'_>) -> String {
        let size = if self.bytes < 1 << 20 {
            format!("{} KiB", self.bytes >> 10)
        } else {
            format!("{} MiB", self.bytes >> 20)
        };
        format!(
            "{section} {} {}, {} {size} {}, depth {}{}",
            place.format,
            if place.direct { "direct" } else { "page cache" },
            if self.random { "random" } else { "sequential" },
            if self.write { "write" } else { "read" },
            self.depth,
            if self.queues > 1 { format!(", {} queues", self.queues) } else { String::new() },
        )
    }
}

/// The name of the row that targets speak of: random 4 KiB requests on a raw image.
pub(crate) fn row(section: &str, write: bool, depth: u16, direct: bool) -> String {
    let place = Place { path: Path::new(""), format: "raw", direct };
    Case { write, random: true, bytes: 4 << 10, depth, queues: 1 }.name(section, &place)
}

/// The cases of a section that are wanted at a place and have at most `room` bytes in flight, with the names of their rows. Without a
/// choice of rows there are few of what is not raw, or where `few` are to do.
pub(crate) fn cases(
    setting: &Setting<'_>,
    section: &str,
    place: &Place<'_>,
    (room, few): (u64, bool),
) -> Vec<(Case, String)> {
    let few = few || place.format != "raw";
    let mut cases = Vec::new();
    for (bytes, depth) in BYTES.iter().flat_map(|bytes| DEPTHS.map(|depth| (*bytes, depth))) {
        for (queues, random) in QUEUES.iter().flat_map(|queues| [true, false].map(|random| (*queues, random)))
        {
            for write in [false, true] {
                let case = Case { write, random, bytes, depth, queues };
                let name = case.name(section, place);
                if case.room() <= room && setting.wants(&name, case.is_usual(few)) {
                    cases.push((case, name));
                }
            }
        }
    }
    cases
}

/// Bytes of a frame and how it is called; the last is 45 whole TCP segments and their headers.
const FRAMES: [(usize, &str); 3] =
    [(64, "64-byte frames"), (1514, "1514-byte frames"), (54 + 45 * 1448, "64 KiB segments")];
/// Questions under way.
const QUESTIONS: [u16; 2] = [1, 32];
/// Bytes of a frame that asks.
pub(crate) const QUESTION: usize = 60;

/// What a network card does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    Send,
    Receive,
    /// Asks, and is answered.
    Ask,
}

/// What is asked of a network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetCase {
    pub(crate) name: String,
    pub(crate) traffic: Traffic,
    /// Bytes of a frame.
    pub(crate) size: usize,
    /// Queue pairs.
    pub(crate) pairs: usize,
    /// Questions under way.
    pub(crate) depth: u16,
}

impl NetCase {
    /// Whether its frames are TCP segments that are to be cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.size > FRAMES[1].0
    }

    /// Bytes that each frame moves, where they are of interest.
    pub(crate) fn bytes(&self) -> f64 {
        if self.size > FRAMES[0].0 { self.size as f64 } else { 0.0 }
    }
}

/// All of a section, with each of these numbers of queue pairs.
pub(crate) fn net_cases(section: &str, pairs: &'static [usize]) -> impl Iterator<Item = NetCase> {
    let moves = [("send", Traffic::Send), ("receive", Traffic::Receive)].into_iter().flat_map(
        move |(what, traffic)| {
            FRAMES.iter().flat_map(move |&(size, frames)| {
                pairs.iter().map(move |&pairs| {
                    let queues = if pairs > 1 { format!(", {pairs} queue pairs") } else { String::new() };
                    let name = format!("{section} {what}, {frames}{queues}");
                    NetCase { name, traffic, size, pairs, depth: 1 }
                })
            })
        },
    );
    let asks = QUESTIONS.map(|depth| {
        let name = format!("{section} question and answer, depth {depth}");
        NetCase { name, traffic: Traffic::Ask, size: QUESTION, pairs: 1, depth }
    });
    moves.chain(asks)
}

/// What one turn gave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    /// CPU time of the host's side for each.
    pub(crate) cpu_us: f64,
    /// How long they took; 0 if that was not measured.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Bytes that each moves; 0 if that is not of interest.
    pub(crate) bytes: f64,
}

impl Figures {
    /// Those of a time, from how long each request took in nanoseconds, and the CPU time for all.
    pub(crate) fn of(mut latencies: Vec<u32>, time: Duration, cpu: Duration) -> Result<Figures, Error> {
        if latencies.is_empty() {
            return Err(Error::other("no request was done"));
        }
        latencies.sort_unstable();
        let quantile = |percent: usize| f64::from(latencies[(latencies.len() - 1) * percent / 100]) / 1e3;
        Ok(Figures {
            per_second: latencies.len() as f64 / time.as_secs_f64(),
            cpu_us: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
            p50_us: quantile(50),
            p99_us: quantile(99),
            bytes: 0.0,
        })
    }

    /// Notes them, each in its row.
    pub(crate) fn note(&self, rows: &mut Rows, name: &str, yardstick: &str, program: &str, round: usize) {
        let all = [
            ("", "/s", Better::More, self.per_second),
            (": throughput", "MiB/s", Better::More, self.per_second * self.bytes / f64::from(1 << 20)),
            (": CPU time each", "us", Better::Less, self.cpu_us),
            (": p50", "us", Better::Less, self.p50_us),
            (": p99", "us", Better::Less, self.p99_us),
        ];
        for (what, unit, better, value) in all.into_iter().filter(|all| all.3 > 0.0) {
            rows.note((&format!("{name}{what}"), unit, better), yardstick, program, round, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_words_of_their_names() {
        let setting = |rows: &[&str]| Setting {
            rows: rows.iter().map(|word| (*word).to_owned()).collect(),
            ..Setting::of_nothing()
        };
        let place = Place { path: Path::new("x"), format: "raw", direct: false };
        let count = |rows: &[&str], room| cases(&setting(rows), "block", &place, (room, false)).len();
        assert_eq!(count(&[], u64::MAX), 2 * USUAL.len());
        assert_eq!(count(&[""], u64::MAX), 3 * 4 * 2 * 2 * 2);
        assert_eq!(count(&["depth 128", "random 4 KiB", "2 queues"], u64::MAX), 2);
        assert_eq!(count(&["direct"], u64::MAX), 0);
        // 1 MiB at depth 32 and above does not fit, nor at depth 16 with two queues.
        assert_eq!(count(&["1 MiB"], 16 << 20), 4 + 4 + 4);
        let name = "block raw direct, random 4 KiB read, depth 32";
        assert_eq!(row("block", false, 32, true), name);
    }
}
