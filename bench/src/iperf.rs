//! TCP between a stock Linux and its host by a tap, one connection, both ways: iperf3 at both ends. The guest has it in its initramfs.

use std::io::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ::tests::tap::Tap;

use crate::load::Setting;
use crate::network::HOST;
use crate::process::Process;
use crate::rows::{Better, Rows, turns};
use crate::served::unique;
use crate::subject::{Extra, Subject};

/// Emulated processors take their time.
const LIMIT: Duration = Duration::from_secs(300);
/// Seconds of each way.
const SECONDS: u32 = 5;

/// Names of the rows, in the order of the guest's reports.
const WAYS: [&str; 2] = ["iperf3: TCP from the guest", "iperf3: TCP to the guest"];

/// What the receiver got, in Mbit/s, of each way that the guest reports.
fn rates(report: &str) -> Vec<f64> {
    let lines = report.lines().filter(|line| line.contains("receiver"));
    let rate = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let unit = words.iter().position(|word| *word == "Kbits/sec")?;
        words[..unit].last()?.parse::<f64>().ok().map(|kilo| kilo / 1e3)
    };
    lines.filter_map(rate).collect()
}

fn once(subject: &Subject, kernel: &Path, initramfs: &Path) -> Result<Option<Vec<f64>>, Error> {
    let name = format!("bench{}", unique());
    let [a, b, c, d] = HOST;
    // The kernel hands what it does not know to the first program, as its environment.
    let words = format!("iperf_host={a}.{b}.{c}.{d} iperf_guest={a}.{b}.{c}.2 iperf_seconds={SECONDS}");
    let extra = Extra::Net { tap: &name, pairs: 1 };
    let Some(command) = subject.boot(kernel, initramfs, (&words, extra)) else { return Ok(None) };
    let tap = Tap::new(&name)?;
    tap.give_address(HOST)?;
    let mut server = Command::new("iperf3");
    server.args(["--server", "--bind", &format!("{a}.{b}.{c}.{d}")]);
    server.stdin(Stdio::null()).stdout(Stdio::null());
    let _server = Process::start(server)?;
    let mut process = Process::start(command)?;
    process.read_until(LIMIT, |seen| String::from_utf8_lossy(seen).contains("guest: status"))?;
    let rates = rates(&process.text());
    if rates.len() == WAYS.len() {
        Ok(Some(rates))
    } else {
        Err(Error::other(format!("the guest reports {:?}", process.text())))
    }
}

/// By turns, in the network namespace of the calling thread.
pub(crate) fn measure(
    setting: &Setting<'_>,
    rows: &mut Rows,
    subjects: &[Subject],
    (kernel, initramfs): (&Path, &Path),
) {
    if !WAYS.iter().any(|name| setting.wants(name, true)) {
        return;
    }
    for round in 0..setting.runs {
        for subject in turns(subjects, round) {
            match once(subject, kernel, initramfs) {
                Ok(None) => {}
                Ok(Some(rates)) => {
                    for (name, rate) in WAYS.iter().zip(rates) {
                        let row = (*name, "Mbit/s", Better::More);
                        rows.note(row, setting.yardstick, &subject.name, round, rate);
                    }
                }
                Err(e) => rows.fail(format!("{}: iperf3: {e}", subject.name)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_receiver() {
        let report = "guest: begin\r\n\
            [  5]   0.00-5.01   sec   115 MBytes  192853 Kbits/sec   12             sender\r\n\
            [  5]   0.00-5.04   sec   114 MBytes  190001 Kbits/sec                  receiver\r\n\
            [  5]   0.00-5.00   sec  58.1 MBytes  97500 Kbits/sec                  receiver\r\n";
        assert_eq!(rates(report), [190.001, 97.5]);
        assert!(rates("iperf3: error - unable to connect to server").is_empty());
    }
}
