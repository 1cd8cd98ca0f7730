//! Network cards on a tap, from inside a machine: throughput both ways, small frames, large segments, questions and answers.
//!
//! Tap and namespace are the bench's own. Nobody but the kernel is at the tap's other end: what is sent is dropped there, what is received
//! comes from a packet socket, and questions are asked by ARP, which the kernel answers itself.

use std::io::Error;
use std::path::Path;
use std::time::Duration;

use ::tests::tap::{self, Tap};

use crate::grid::Figures;
use crate::load::{Load, Setting};
use crate::rows::Rows;
use crate::served::unique;
use crate::subject::{Extra, Subject};

/// What the kernel offers machines that move frames inside it; only QEMU here can use it.
const VHOST: &str = "/dev/vhost-net";
const HOST: [u8; 4] = [10, 11, 12, 1];

/// Bytes of a frame and how it is called; the last is 45 whole TCP segments and their headers.
const SIZES: [(usize, &str); 3] =
    [(64, "64-byte frames"), (1514, "1514-byte frames"), (54 + 45 * 1448, "64 KiB segments")];
const PAIRS: [usize; 2] = [1, 2];
/// Questions under way.
const DEPTHS: [u16; 2] = [1, 32];

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    name: String,
    op: &'static str,
    size: usize,
    pairs: usize,
    depth: u16,
}

fn cases() -> impl Iterator<Item = Case> {
    let moves = ["send", "receive"].into_iter().flat_map(|op| {
        SIZES.iter().flat_map(move |&(size, what)| {
            PAIRS.map(|pairs| {
                let queues = if pairs > 1 { format!(", {pairs} queue pairs") } else { String::new() };
                Case { name: format!("network {op}, {what}{queues}"), op, size, pairs, depth: 1 }
            })
        })
    });
    let asks = DEPTHS.map(|depth| {
        let name = format!("network question and answer, depth {depth}");
        Case { name, op: "ask", size: 60, pairs: 1, depth }
    });
    moves.chain(asks)
}

fn turn(setting: &Setting<'_>, subject: &Subject, case: &Case) -> Result<Figures, Error> {
    // Each VMM gets a new tap: none inherits another's settings.
    let name = format!("bench{}", unique());
    let tap = Tap::with_pairs(&name, case.pairs)?;
    tap.give_address(HOST)?;
    let [a, b, c, d] = HOST;
    let options = format!(
        "probe.op={} probe.size={} probe.pairs={} probe.depth={} probe.host={a}.{b}.{c}.{d} probe.ip={a}.{b}.{c}.2",
        case.op, case.size, case.pairs, case.depth
    );
    let extra = Extra::Net { tap: &name, pairs: case.pairs };
    let load = Load { test: "bench-net", options: &options, rate: "frames/s", extra };
    let receives = case.op == "receive";
    // A little longer than the guest listens.
    let time = Duration::from_millis(setting.millis + 50);
    let figures =
        setting.load(subject, &load, &[], || if receives { tap.flood(case.size, time) } else { Ok(()) })?;
    let bytes = if case.size > SIZES[0].0 { case.size as f64 } else { 0.0 };
    Ok(Figures { bytes, ..figures })
}

/// All rows, by turns. The calling thread is put into a network namespace of its own, for good.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, subjects: &[Subject]) -> Result<(), Error> {
    tap::enter_private_network()?;
    if !Path::new(VHOST).exists() {
        rows.skip(format!("network: QEMU does without vhost: there is no {VHOST}"));
    }
    let cases: Vec<_> = cases().filter(|case| setting.wants(&case.name, true)).collect();
    for round in 0..setting.runs {
        for case in &cases {
            for subject in subjects.iter().filter(|s| s.has_devices()) {
                match turn(setting, subject, case) {
                    Ok(figures) => {
                        figures.note(rows, &case.name, setting.yardstick, &subject.name, round);
                    }
                    Err(e) => rows.fail(format!("{}: {}: {e}", subject.name, case.name)),
                }
            }
        }
    }
    Ok(())
}

/// What QEMU is told of vhost.
pub(crate) fn vhost() -> &'static str {
    if Path::new(VHOST).exists() { "on" } else { "off" }
}
