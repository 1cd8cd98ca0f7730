//! A guest that does all the harm it can think of, on a machine with everything in it, while the host pauses, resumes, saves, restores, plugs,
//! unplugs and restarts it at random; and another machine beside, which must not notice.
//!
//! `scripts/hostile` has it go on for as long as asked (`VIRGA_HOSTILE_SECONDS`) and with another seed (`VIRGA_HOSTILE_SEED`). The guest's choices
//! follow from the seed alone, what the host does also from how fast things go.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::ask;
use tests::bounds::{Most, Watch};
use tests::daemon::Daemon;
use tests::image::{pattern_word, qemu_img, text};
use tests::innocent::Innocent;
use tests::living::Living;
use tests::scratch::Scratch;
use tests::tap::{self, Tap};

/// How long a life of the machine is, in seconds; each has its own seed.
const LIFE: u64 = 20;
/// Disks that come and go.
const LATE: u64 = 3;
/// Why a machine may not be saved: its guest was asked for a device and did not answer.
const LEAVING: &str = "The guest was asked to let go of device";
/// What is answered while the program ends.
const ENDING: &str = "The VMM is shutting down";
/// For everything that a machine does beyond its time: to answer, to be restored, to end.
const PATIENCE: Duration = Duration::from_secs(90);

/// What was done, and how often.
type Counts = BTreeMap<String, u64>;

/// Draws for the host's part.
struct Draws {
    seed: u64,
    drawn: u64,
}

impl Draws {
    fn below(&mut self, limit: u64) -> u64 {
        self.drawn += 1;
        pattern_word(self.seed, self.drawn, 7) % limit
    }
}

/// One life of the machine, from its first start to its end.
///
/// The machine goes before what it has open.
struct Life {
    machine: Living,
    daemon: Daemon,
    tap: Tap,
    scratch: Scratch,
    name: String,
    watch: Watch,
    /// The same for the daemon.
    served: Watch,
    most: Most,
    draws: Draws,
    restores: u64,
}

fn file(scratch: &Scratch, name: &str, bytes: u64) -> PathBuf {
    let path = scratch.file(name);
    let file = std::fs::File::create(&path).and_then(|file| file.set_len(bytes));
    file.expect("the scratch directory takes files");
    path
}

impl Life {
    fn begin(seed: u64, seconds: u64) -> Life {
        let scratch = Scratch::new();
        let tap = Tap::new("storm0").expect("a tap can be made");
        let qcow2 = scratch.file("qcow2");
        qemu_img(&["create", "-q", "-f", "qcow2", text(&qcow2), "4M"]);
        let raw = file(&scratch, "raw", 4 << 20);
        let (served, socket) = (file(&scratch, "served", 4 << 20), scratch.file("served.sock"));
        (0..LATE).for_each(|nth| drop(file(&scratch, &format!("late{nth}"), 1 << 20)));
        let daemon = Daemon::start(&served, &socket, ",image_type=raw");
        let disks = [
            format!("path={},image_type=raw,id=raw", raw.display()),
            format!("path={},image_type=qcow2,id=qcow2", qcow2.display()),
            format!("vhost_user=on,socket={},id=served", socket.display()),
        ];
        let vsock = format!("cid=3,socket={}", scratch.file("vsock").display());
        let pmem = format!("file={}", file(&scratch, "pmem", 4 << 20).display());
        let (console, debug) = (scratch.file("console"), scratch.file("debug"));
        let (console, debug) = (format!("file={}", console.display()), format!("file={}", debug.display()));
        let cmdline =
            format!("probe.run=attack probe.second=1 probe.seed={seed} probe.millis={}", seconds * 1000);
        let arguments = [
            ["--memory", "size=256M,shared=on"],
            ["--cpus", "boot=2"],
            ["--vsock", &vsock],
            ["--pmem", &pmem],
            ["--console", &console],
            ["--debug-console", &debug],
            ["--net", "tap=storm0,id=net0"],
            ["--platform", "num_pci_segments=2"],
        ];
        let disks = ["--disk", &disks[0], &disks[1], &disks[2]];
        let machine =
            Living::boot(scratch.path(), "life", &cmdline, &[&disks[..], arguments.as_flattened()].concat());
        let (watch, served) = (Watch::begin(machine.id()), Watch::begin(daemon.id()));
        let draws = Draws { seed, drawn: 0 };
        Life {
            scratch,
            tap,
            daemon,
            machine,
            name: "life".into(),
            watch,
            served,
            most: Most::default(),
            draws,
            restores: 0,
        }
    }

    /// Asks, unless the machine has come to its end; what was answered.
    fn ask(&mut self, verb: &str, name: &str, body: &Value) -> Option<(u16, String)> {
        let socket = self.scratch.file(&format!("{}.api", self.name));
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let begun = Instant::now();
        loop {
            let answer = ask::ask(&socket, verb, name, body.as_bytes());
            if let Some((status, text)) = &answer {
                // What a guest can bring about is never a mistake of the program's or of the host's.
                assert!(*status < 500 || *status == 504, "{name} {body}: {status} {text}");
                return answer;
            }
            if self.machine.has_ended() {
                return None;
            }
            assert!(begun.elapsed() < PATIENCE, "{name} is not answered:\n{}", self.machine.serial());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn put(&mut self, name: &str, body: &Value) -> Option<u16> {
        self.ask("PUT", name, body).map(|(status, _)| status)
    }

    /// One thing that a host does; what it was, and what was answered.
    fn act(&mut self) -> (String, Option<u16>) {
        let dice = self.draws.below(20);
        let nth = self.draws.below(LATE);
        let late = format!("late{nth}");
        let (what, body) = match dice {
            0..=4 => {
                self.put("vm.pause", &Value::Null);
                std::thread::sleep(Duration::from_millis(self.draws.below(30)));
                return ("pause".into(), self.put("vm.resume", &Value::Null));
            }
            5 | 6 => return ("save".into(), self.save(false)),
            7 => return ("restore".into(), self.save(true)),
            8..=11 => {
                let path = self.scratch.file(&late);
                (
                    "vm.add-disk",
                    json!({"path": path, "image_type": "Raw", "id": late, "pci_segment": nth % 2}),
                )
            }
            12 | 13 => ("vm.remove-device", json!({ "id": late })),
            14 => ("vm.resize-disk", json!({"id": "raw", "desired_size": (4 << 20) + (nth << 20)})),
            15 => {
                let sent = self.tap.flood(60 + 400 * nth as usize, Duration::from_millis(20));
                return ("frames".into(), sent.ok().map(|()| 200));
            }
            16 => {
                // Somebody who wants to be connected, and goes.
                let stream = UnixStream::connect(self.scratch.file("vsock"));
                let sent =
                    stream.and_then(|mut stream| stream.write_all(format!("CONNECT {nth}\n").as_bytes()));
                return ("connect".into(), sent.ok().map(|()| 200));
            }
            17 => return ("counters".into(), self.ask("GET", "vm.counters", &Value::Null).map(|a| a.0)),
            18 if self.draws.below(12) == 0 => ("vm.reboot", Value::Null),
            18 => ("vm.power-button", Value::Null),
            _ => return ("info".into(), self.ask("GET", "vm.info", &Value::Null).map(|a| a.0)),
        };
        (what.into(), self.put(what, &body))
    }

    /// Saves the machine, and has it go on, in this process or in another.
    fn save(&mut self, elsewhere: bool) -> Option<u16> {
        if self.put("vm.pause", &Value::Null)? >= 300 {
            return Some(409);
        }
        let saved = self.scratch.file("saved");
        std::fs::create_dir(&saved).expect("the scratch directory takes another");
        let url = format!("file://{}", saved.display());
        let (status, text) = self.ask("PUT", "vm.snapshot", &json!({ "destination_url": url }))?;
        let leaving = status == 409 && text.contains(LEAVING);
        // The guest may have powered the machine off before it was paused.
        let ending = status == 409 && text.contains(ENDING);
        let saved_well = status < 300;
        assert!(
            saved_well || leaving || ending,
            "a machine whose guest lies cannot be saved: {status} {text}"
        );
        if elsewhere && saved_well {
            self.go_on_elsewhere(&saved);
        } else {
            self.put("vm.resume", &Value::Null);
        }
        std::fs::remove_dir_all(&saved).expect("the snapshot is there");
        Some(status)
    }

    fn go_on_elsewhere(&mut self, saved: &std::path::Path) {
        self.restores += 1;
        self.name = format!("life{}", self.restores);
        // The old one lets go of its files first, as it does when it ends in any way.
        let old = std::mem::replace(&mut self.machine, Living::wait(self.scratch.path(), &self.name));
        let log = old.shut_down().ended_well().messages.clone();
        let watch = std::mem::replace(&mut self.watch, Watch::begin(self.machine.id()));
        let most = watch.end();
        most.is_bounded(&log);
        self.most = self.most.or(most);
        let url = format!("file://{}", saved.display());
        let request = json!({"source_url": url, "resume": true});
        let (status, text) = self.machine.ask("PUT", "vm.restore", &request);
        assert!(status < 300, "a machine whose guest lies cannot be restored: {status} {text}");
        // All of it is there before its files go, unless the guest ends it at once.
        while let Some((200, text)) = self.ask("GET", "vm.info", &Value::Null)
            && !text.contains("\"Running\"")
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Does things to the machine until its guest has had enough; what was most.
    fn live(mut self, counts: &mut Counts) -> Most {
        let begun = Instant::now();
        let most = PATIENCE + Duration::from_secs(3 * LIFE);
        while !self.machine.has_ended() {
            let (what, status) = self.act();
            let class = status.map_or("-".into(), |status| format!("{}xx", status / 100));
            *counts.entry(format!("{what} {class}")).or_default() += 1;
            std::thread::sleep(Duration::from_millis(self.draws.below(150)));
            assert!(begun.elapsed() < most, "the guest does not end:\n{}", self.machine.serial());
        }
        assert!(self.daemon.lives(), "the daemon has ended");
        self.served.end().is_bounded("");
        let report = self.machine.ends();
        let most = self.watch.end();
        most.is_bounded(&report.messages);
        assert!(report.serial.contains("PASS attack "), "{report}");
        report.ended_well();
        for (key, value) in numbers(&report.serial) {
            *counts.entry(format!("guest: {key}")).or_default() += value;
        }
        self.most.or(most)
    }
}

/// The figures of the guest's report.
fn numbers(serial: &str) -> Vec<(String, u64)> {
    let lines = serial.lines().filter(|l| l.starts_with("# attacked ") || l.starts_with("PASS attack "));
    let words = lines.flat_map(str::split_whitespace).filter_map(|word| word.split_once('='));
    words
        .filter(|(key, _)| *key != "seed")
        .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
        .collect()
}

fn number(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

#[test]
fn a_guest_that_attacks_everything_harms_nothing() {
    tap::enter_private_network().expect("these tests run as root");
    let (seconds, seed) = (number("VIRGA_HOSTILE_SECONDS", 8), number("VIRGA_HOSTILE_SEED", 1));
    let mut innocent = Innocent::begin();
    let (begun, mut counts, mut most) = (Instant::now(), Counts::new(), Most::default());
    for life in 0.. {
        let left = seconds.saturating_sub(begun.elapsed().as_secs());
        if left == 0 {
            break;
        }
        println!("life {life}: probe.seed={}", seed + life);
        most = most.or(Life::begin(seed + life, left.min(LIFE)).live(&mut counts));
        innocent.goes_on();
    }
    innocent.is_untouched();
    println!("{:.0?}, {most:?}", begun.elapsed());
    for (what, count) in &counts {
        println!("{count:>9} {what}");
    }
    assert!(counts.get("guest: rounds").is_some_and(|rounds| *rounds > 0), "{counts:?}");
}
