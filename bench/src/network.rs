//! Network cards on a tap, from inside a machine: throughput both ways, small frames, large segments, questions and answers.
//!
//! Tap and namespace are the bench's own. Nobody but the kernel is at the tap's other end: what is sent is dropped there, what is received
//! comes from a packet socket, and questions are asked by ARP, which the kernel answers itself.

use std::io::Error;
use std::path::Path;
use std::time::Duration;

use ::tests::tap::Tap;

use crate::grid::{self, Figures, NetCase, Traffic};
use crate::load::{Load, Setting};
use crate::rows::{Rows, turns};
use crate::served::unique;
use crate::subject::{Extra, Subject};

/// What the kernel offers machines that move frames inside it; only QEMU here can use it.
const VHOST: &str = "/dev/vhost-net";
/// The address of the host's end.
pub(crate) const HOST: [u8; 4] = [10, 11, 12, 1];

const PAIRS: [usize; 2] = [1, 2];

fn turn(setting: &Setting<'_>, subject: &Subject, case: &NetCase) -> Result<Figures, Error> {
    // Each VMM gets a new tap: none inherits another's settings.
    let name = format!("bench{}", unique());
    let tap = Tap::with_pairs(&name, case.pairs)?;
    tap.give_address(HOST)?;
    let [a, b, c, d] = HOST;
    let op = match case.traffic {
        Traffic::Send => "send",
        Traffic::Receive => "receive",
        Traffic::Ask => "ask",
    };
    let options = format!(
        "probe.op={op} probe.size={} probe.pairs={} probe.depth={} probe.host={a}.{b}.{c}.{d} probe.ip={a}.{b}.{c}.2",
        case.size, case.pairs, case.depth
    );
    let extra = Extra::Net { tap: &name, pairs: case.pairs };
    let load = Load { test: "bench-net", options: &options, rate: "frames/s", extra };
    let receives = case.traffic == Traffic::Receive;
    // A little longer than the guest listens.
    let time = Duration::from_millis(setting.millis + 50);
    let figures =
        setting.load(subject, &load, &[], || if receives { tap.flood(case.size, time) } else { Ok(()) })?;
    Ok(Figures { bytes: case.bytes(), ..figures })
}

/// All rows, by turns, in the network namespace of the calling thread.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, subjects: &[Subject]) {
    if !Path::new(VHOST).exists() {
        rows.skip(format!("network: QEMU does without vhost: there is no {VHOST}"));
    }
    let cases: Vec<_> =
        grid::net_cases("network", &PAIRS).filter(|case| setting.wants(&case.name, true)).collect();
    for round in 0..setting.runs {
        for case in &cases {
            for subject in turns(subjects, round).filter(|s| s.has_devices()) {
                match turn(setting, subject, case) {
                    Ok(figures) => {
                        figures.note(rows, &case.name, setting.yardstick, &subject.name, round);
                    }
                    Err(e) => rows.fail(format!("{}: {}: {e}", subject.name, case.name)),
                }
            }
        }
    }
}

/// What QEMU is told of vhost.
pub(crate) fn vhost() -> &'static str {
    if Path::new(VHOST).exists() { "on" } else { "off" }
}
