//! Measures VMMs side by side and by turns; `scripts/bench` builds what it needs and calls it.
//!
//! Every row is measured round by round, each program once a round, so that a load on the machine that comes and goes hits all alike.
//! Figures are medians; ratios are medians of the rounds' ratios.

mod block;
mod boot;
mod cards;
mod daemon;
mod folder;
mod grid;
mod image;
mod iperf;
mod layers;
mod load;
mod network;
mod order;
mod pause;
mod process;
mod restore;
mod rows;
mod served;
mod snapshot;
mod sockets;
mod start;
mod stats;
mod subject;
mod targets;
mod vhost;

use std::io::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ::tests::tap;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;

use crate::vhost::Storage;
use load::Setting;
use rows::{Row, Rows};
use subject::{Dialect, Subject};
use targets::{BARE, OURS, QEMU};

/// The last two need a stock kernel.
const SECTIONS: [&str; 16] = [
    "start", "layers", "rate", "exits", "block", "vhost", "network", "cards", "sockets", "folder", "pause",
    "snapshot", "restore", "many", "boot", "iperf",
];

fn command() -> Command {
    let path = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("path").value_parser(value_parser!(PathBuf)).help(help)
    };
    Command::new("bench")
        .about("Measures VMMs side by side; see scripts/bench, which calls this")
        .arg(path("programs", "Directory with cloud-hypervisor and bare-kvm").required(true))
        .arg(path("guests", "Directory with probe and first-byte").required(true))
        .arg(
            path("scratch", "Directory for disk images and snapshots, on a disk with 3 GiB to spare")
                .required(true),
        )
        .arg(
            Arg::new("qemu")
                .long("qemu")
                .value_name("word")
                .action(ArgAction::Append)
                .allow_hyphen_values(true)
                .help("A word of the command that starts QEMU; give it as often as there are words"),
        )
        .arg(Arg::new("runs").long("runs").value_parser(value_parser!(u16).range(1..)).default_value("15"))
        .arg(
            Arg::new("millis")
                .long("millis")
                .value_parser(value_parser!(u64).range(10..))
                .default_value("500"),
        )
        .arg(
            Arg::new("only")
                .long("only")
                .value_delimiter(',')
                .value_parser(SECTIONS)
                .default_values(&SECTIONS[..SECTIONS.len() - 2]),
        )
        .arg(
            Arg::new("rows")
                .long("rows")
                .value_name("word")
                .action(ArgAction::Append)
                .help("Measure the rows that have this in their names, of all that a grid has; with several, those that have them all"),
        )
        .arg(path("storage-daemon", "A qemu-storage-daemon for the section vhost").action(ArgAction::Append))
        .arg(path("virtiofsd", "A virtiofsd for the section folder"))
        .arg(path("testpmd", "DPDK's testpmd, with the drivers vhost and tap, for the section cards"))
        .arg(path("passt", "A passt for the section cards"))
        .arg(path("kernel", "Stock kernel (vmlinux) for the sections boot and iperf"))
        .arg(path("initramfs", "Its initramfs, which says \"guest: begin\""))
        .arg(path("iperf-initramfs", "One that runs iperf3 both ways, to the address in $iperf_host"))
        .arg(path("json", "Writes the figures to this file"))
        .arg(path("function-order", "Measures nothing; writes to this file which functions a start executes"))
        .arg(Arg::new("others").value_name("VMM").num_args(0..).value_parser(value_parser!(PathBuf)))
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    match run(&matches) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every program could be measured; missed targets are no failure of the bench.
fn run(matches: &ArgMatches) -> Result<bool, Error> {
    let path = |name| matches.get_one::<PathBuf>(name).cloned();
    let absent = |name: &str| Error::other(format!("--{name} is needed"));
    let programs = path("programs").ok_or_else(|| absent("programs"))?;
    let scratch = path("scratch").ok_or_else(|| absent("scratch"))?;
    let runs = usize::from(*matches.get_one::<u16>("runs").unwrap_or(&15));
    let millis = *matches.get_one::<u64>("millis").unwrap_or(&500);
    let subjects = subjects(matches, &programs);
    let others: Vec<String> = subjects
        .iter()
        .map(|s| s.name.clone())
        .filter(|name| ![OURS, BARE, QEMU].contains(&name.as_str()))
        .collect();
    let yardstick = if subjects.iter().any(|s| s.name == QEMU) { QEMU } else { OURS };
    let guests = path("guests").ok_or_else(|| absent("guests"))?;
    let probe = guests.join("probe");
    let setting = Setting {
        probe: &probe,
        scratch: &scratch,
        runs,
        millis,
        yardstick,
        rows: matches.get_many::<String>("rows").into_iter().flatten().cloned().collect(),
        khz: load::tsc_khz(),
    };
    let first_byte = guests.join("first-byte");

    for subject in &subjects {
        // Pages of a program just built count as its own dirty memory until they are on the disk.
        let synced = std::fs::File::open(&subject.program).and_then(|f| f.sync_all());
        synced.map_err(|e| Error::other(format!("{}: {e}", subject.program.display())))?;
    }
    if let (Some(target), Some(ours)) = (path("function-order"), subjects.iter().find(|s| s.name == OURS)) {
        return order::write(&setting, ours, &first_byte, &target).map(|()| true);
    }
    let mut rows = Rows::default();
    let load_before = load_average();
    for section in matches.get_many::<String>("only").into_iter().flatten() {
        eprintln!("bench: {section}, {runs} rounds ...");
        match section.as_str() {
            "start" => start::measure(&mut rows, &subjects, &first_byte, runs, ("", BARE)),
            "layers" => layers::measure(&setting, &mut rows, &subjects[0], &first_byte),
            "sockets" => sockets::measure(&setting, &mut rows, &subjects),
            "folder" => folder::measure(&setting, &mut rows, &subjects, path("virtiofsd").as_deref())?,
            "rate" => {
                let time = Duration::from_millis(millis);
                start::rate(&mut rows, &subjects, &first_byte, runs, time, BARE);
            }
            "exits" => setting.exits(&mut rows, &subjects, yardstick),
            "pause" => pause::measure(&setting, &mut rows, &subjects)?,
            "snapshot" => snapshot::measure(&setting, &mut rows, &subjects),
            "restore" => restore::measure(&setting, &mut rows, &subjects, &first_byte),
            "many" => restore::measure_many(&setting, &mut rows, &subjects, &first_byte),
            "block" => block::measure(&setting, &mut rows, &subjects, &storages(matches, &programs))?,
            "vhost" => vhost::measure(&setting, &mut rows, &storages(matches, &programs))?,
            "network" => {
                apart(&mut rows, section, |rows| network::measure(&setting, rows, &subjects));
            }
            "cards" => {
                let servers = cards::servers(programs.join("vhost_user_net"), path("testpmd"), path("passt"));
                apart(&mut rows, section, |rows| cards::measure(&setting, rows, &servers));
            }
            _ => {
                let kernel = path("kernel").ok_or_else(|| absent("kernel"))?;
                let stock = |name| path(name).ok_or_else(|| absent(name));
                if section == "boot" {
                    boot::measure(&setting, &mut rows, &subjects, (&kernel, &stock("initramfs")?));
                } else {
                    let initramfs = stock("iperf-initramfs")?;
                    apart(&mut rows, section, |rows| {
                        iperf::measure(&setting, rows, &subjects, (&kernel, &initramfs));
                    });
                }
            }
        }
    }
    let verdicts = targets::verdicts(&rows, &others);
    if let Some(path) = path("json") {
        let report = json!({
            "rows": rows.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "targets": verdicts.iter().map(targets::Verdict::json).collect::<Vec<_>>(),
            "failures": rows.failures,
            "skipped": rows.skipped,
            "command": std::env::args().collect::<Vec<_>>(),
            "load_average": [load_before, load_average()],
            "cpus": std::thread::available_parallelism()?.get(),
        });
        std::fs::write(&path, format!("{report:#}\n"))
            .map_err(|e| Error::other(format!("{}: {e}", path.display())))?;
    }
    print(&rows, &verdicts);
    Ok(rows.failures.is_empty())
}

/// Measures in a network namespace of its own.
fn apart(rows: &mut Rows, section: &str, work: impl FnOnce(&mut Rows) + Send) {
    // On a thread of its own: it does not come back from its network namespace.
    let work = || match tap::enter_private_network() {
        Ok(()) => work(rows),
        Err(e) => rows.fail(format!("{section}: no network namespace of our own: {e} (needs root)")),
    };
    std::thread::scope(|scope| scope.spawn(work).join().expect("it does not panic"));
}

/// Ours is the first.
fn subjects(matches: &ArgMatches, programs: &Path) -> Vec<Subject> {
    let mut subjects = vec![
        Subject {
            name: OURS.into(),
            program: programs.join("cloud-hypervisor"),
            dialect: Dialect::CloudHypervisor,
            words: Vec::new(),
        },
        Subject {
            name: BARE.into(),
            program: programs.join("bare-kvm"),
            dialect: Dialect::Bare,
            words: Vec::new(),
        },
    ];
    let mut words = matches.get_many::<String>("qemu").into_iter().flatten().cloned();
    if let Some(program) = words.next() {
        let dialect = Dialect::Qemu(words.collect());
        subjects.push(Subject { name: QEMU.into(), program: program.into(), dialect, words: Vec::new() });
    }
    for other in matches.get_many::<PathBuf>("others").into_iter().flatten() {
        let name = other.display().to_string();
        let dialect = Dialect::CloudHypervisor;
        subjects.push(Subject { name, program: other.clone(), dialect, words: Vec::new() });
    }
    subjects
}

/// The programs that serve disks: ours, QEMU's if there is one, and those that lie beside other VMMs.
fn storages(matches: &ArgMatches, programs: &Path) -> Vec<Storage> {
    let daemon = |name: String, directory: &Path| Storage {
        name,
        program: directory.join("vhost_user_block"),
        qemu: false,
    };
    let theirs = matches.get_one::<PathBuf>("storage-daemon");
    let theirs =
        theirs.map(|p| Storage { name: "qemu-storage-daemon".into(), program: p.clone(), qemu: true });
    let others = matches.get_many::<PathBuf>("others").into_iter().flatten();
    let others = others
        .filter_map(|other| Some(daemon(other.display().to_string(), other.parent()?)))
        .filter(|storage| storage.program.exists());
    std::iter::once(daemon(OURS.into(), programs)).chain(theirs).chain(others).collect()
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// Three figures or so.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn print(rows: &Rows, verdicts: &[targets::Verdict]) {
    println!("{:<44} {:<20} {:>9} {:>19} {:>9}  {:>7}", "", "", "median", "p10 - p90", "best", "ratio");
    for row in &rows.rows {
        for (n, program) in row.programs.iter().enumerate() {
            let Some(s) = row.summary(program) else { continue };
            let unit = if row.unit.is_empty() { String::new() } else { format!(", {}", row.unit) };
            let name = if n == 0 { format!("{}{unit}", row.name) } else { String::new() };
            let best = if row.better == rows::Better::Less { s.least } else { s.most };
            let ratio = row.ratio(program, &row.yardstick).map_or("-".into(), |r| format!("{r:.2} x"));
            let spread = format!("{} - {}", figure(s.p10), figure(s.p90));
            let short = program.rsplit('/').next().unwrap_or(program);
            println!(
                "{name:<44} {short:<20} {:>9} {spread:>19} {:>9}  {ratio:>7}",
                figure(s.median),
                figure(best)
            );
        }
    }
    if !verdicts.is_empty() {
        println!("\n{:<44} {:<26} {:>10}", "target", "", "reached");
    }
    for v in verdicts {
        println!("{:<44} {:<26} {:>10}  {}", v.what, v.aim, v.reached, if v.met { "met" } else { "NOT MET" });
    }
    for skipped in &rows.skipped {
        println!("skipped: {skipped}");
    }
    for failure in &rows.failures {
        println!("failed: {failure}");
    }
}
