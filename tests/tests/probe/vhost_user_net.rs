//! Cards whose frames another process moves: no frame is lost for good when the process dies, the machine stands still, or both move.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tests::living::Living;
use tests::programs;
use tests::scratch::Scratch;
use tests::tap::{self, Partner, Tap};

const MAC: &str = "52:54:00:10:ad:01";
const MAC_BYTES: [u8; 6] = [0x52, 0x54, 0, 0x10, 0xad, 1];
const SHARED: &str = "size=256M,shared=on";
/// Frames that are out at most, so as many may be given up with each death or restore.
const WINDOW: u64 = 32;

/// The daemon on the tap `load0`; killed on drop.
struct Daemon(Child);

impl Daemon {
    fn start(tap: &str, socket: &Path, keys: &str) -> Daemon {
        let program = programs::vhost_user_net();
        let line = format!("tap={tap},socket={}{keys}", socket.display());
        let child = Command::new(program).args(["--net-backend", &line]).stdin(Stdio::null()).spawn();
        Daemon(child.expect("the daemon starts"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Loaded {
    scratch: Scratch,
    socket: PathBuf,
    _partner: Partner,
    _tap: Tap,
}

impl Loaded {
    fn new() -> Loaded {
        tap::enter_private_network().expect("these tests run as root");
        let scratch = Scratch::new();
        let socket = scratch.file("socket");
        let tap = Tap::new("load0").expect("a tap can be made");
        let partner = Partner::new("load0", MAC_BYTES, 0).expect("a partner can sit down at it");
        Loaded { scratch, socket, _partner: partner, _tap: tap }
    }

    fn boot(&self, keys: &str) -> Living {
        let net = format!("vhost_user=on,socket={},mac={MAC},id=net0{keys}", self.socket.display());
        let cmdline = format!("probe.run=load probe.interrupts=on probe.window={WINDOW}");
        let arguments = ["--memory", SHARED, "--net", &net];
        let mut machine = Living::boot(self.scratch.path(), "boot", &cmdline, &arguments);
        assert_eq!(machine.wait_for("# loading "), "disks=0 cards=1");
        machine
    }
}

#[test]
fn frames_go_both_ways_and_pauses_lose_none() {
    let loaded = Loaded::new();
    let _daemon = Daemon::start("load0", &loaded.socket, "");
    let mut machine = loaded.boot("");
    machine.progress(0, 2000);
    let held = machine.settled();
    for round in 0..50u64 {
        machine.pause_and_resume(Duration::from_millis(round % 3));
        std::thread::sleep(Duration::from_micros(round * 7919 % 9000));
    }
    machine.progress(0, 2000);
    machine.holds_no_more_than(held);
    machine.end().all_passed();
}

#[test]
fn the_daemon_may_connect_to_us_instead() {
    let loaded = Loaded::new();
    let _daemon = Daemon::start("load0", &loaded.socket, ",client=on");
    let mut machine = loaded.boot(",vhost_mode=server");
    machine.progress(0, 2000);
    machine.end().all_passed();
    assert!(!loaded.socket.exists());
}

/// Another tap, whose partner has the guest's frames of the past given up.
fn another(name: &str, nth: u32) -> (Tap, Partner) {
    let tap = Tap::new(name).expect("a tap can be made");
    let partner = Partner::new(name, MAC_BYTES, nth).expect("a partner can sit down at it");
    (tap, partner)
}

/// Ends the guest's load, whose report must be good, with frames given up only by what happened to the daemon.
fn end(machine: Living, times: u64) {
    let report = machine.end();
    report.all_passed();
    let abandoned: u64 = report.fact("load", "abandoned").parse().expect("a number");
    assert!(abandoned <= times * WINDOW, "{abandoned} frames were given up:\n{report}");
}

#[test]
fn frames_go_on_when_the_daemon_dies_and_another_comes() {
    let loaded = Loaded::new();
    let mut daemon = Daemon::start("load0", &loaded.socket, "");
    let mut machine = loaded.boot("");
    machine.progress(0, 2000);
    let mut taps = Vec::new();
    for nth in 1..=5 {
        let name = format!("load{nth}");
        drop(daemon);
        taps.push(another(&name, nth));
        daemon = Daemon::start(&name, &loaded.socket, "");
        machine.progress(0, 1000);
    }
    end(machine, 5);
}

#[test]
fn a_saved_machine_goes_on_with_another_daemon() {
    let loaded = Loaded::new();
    let daemon = Daemon::start("load0", &loaded.socket, "");
    let mut machine = loaded.boot(",mtu=1400");
    machine.progress(0, 2000);
    machine.put("vm.pause", &Value::Null);
    let saved = loaded.scratch.file("saved");
    std::fs::create_dir(&saved).expect("the scratch directory takes another");
    machine.put("vm.snapshot", &json!({ "destination_url": format!("file://{}", saved.display()) }));
    drop((machine, daemon));
    let _tap = another("load1", 1);
    let there = loaded.scratch.file("there");
    let _daemon = Daemon::start("load1", &there, "");
    let value = format!("source_url=file://{},resume=on", saved.display());
    let net = format!("id=net0,socket={}", there.display());
    let mut machine = Living::restore(loaded.scratch.path(), "restored", &value, &["--net", &net]);
    machine.progress(0, 2000);
    end(machine, 1);
}
