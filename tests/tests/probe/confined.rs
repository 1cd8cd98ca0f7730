//! No thread of the VMM runs without a filter of system calls, whatever it is for, and the switch works.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::living::Living;
use tests::probe::Guest;
use tests::programs;
use tests::scratch::Scratch;

use crate::landlock::without;
use crate::loaded::{Loaded, MAC};

/// Names of threads, and the filters on each.
type Threads = BTreeMap<String, u32>;

/// The value of a line of `/proc/PID/task/TID/status`.
fn value<'a>(status: &'a str, key: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("no {key} in {status}"))
}

/// The threads that there are now; panics if one is not confined.
fn threads(process: u32) -> Threads {
    let mut threads = Threads::new();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    // One that has ended meanwhile has no status any more.
    let statuses: Vec<String> =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok()).collect();
    for status in &statuses {
        let name = value(status, "Name");
        let confined = value(status, "Seccomp") == "2" && value(status, "NoNewPrivs") == "1";
        // The main thread begins alone and confines itself before it starts others.
        assert!(confined || statuses.len() == 1, "thread {name} is not confined:\n{status}");
        let filters = value(status, "Seccomp_filters").parse().expect("a number");
        let least = threads.entry(name.to_owned()).or_insert(filters);
        *least = filters.min(*least);
    }
    threads
}

/// Looks at threads again and again, so that those are seen which live for moments only.
struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Threads>>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn begin(process: u32) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::<Mutex<Threads>>::default();
        let (stopped, all) = (stop.clone(), seen.clone());
        let watch = move || {
            while !stopped.load(Ordering::Relaxed) {
                let now = threads(process);
                all.lock().expect("nobody panics with this lock held").extend(now);
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(watch);
        Watch { stop, seen, thread: thread.expect("a thread can be started") }
    }

    /// Whether a thread of this name has been seen.
    fn saw(&self, name: &str) -> bool {
        self.seen.lock().expect("nobody panics with this lock held").contains_key(name)
    }

    /// Waits until one has been seen.
    fn wait_for(&self, name: &str) {
        let begun = Instant::now();
        while !self.saw(name) {
            assert!(begun.elapsed() < Duration::from_secs(60), "there is no thread {name}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(self) -> Threads {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
        std::mem::take(&mut self.seen.lock().expect("nobody panics with this lock held"))
    }
}

/// Pauses, and takes a snapshot.
fn snapshot(machine: &Living, directory: &Path) {
    machine.put("vm.pause", &Value::Null);
    machine.put("vm.snapshot", &json!({ "destination_url": format!("file://{}", directory.display()) }));
}

#[test]
fn every_thread_of_every_kind_is_confined() {
    let loaded = Loaded::new();
    let file = |name: &str| loaded.scratch.file(name).display().to_string();
    let disk = |name: &str, more: &str| {
        std::fs::write(loaded.scratch.file(name), vec![0; 1 << 20]).expect("the scratch directory has room");
        format!("path={},image_type=raw,id={name}{more}", file(name))
    };
    let disks = [
        disk("disk0", ""),
        disk("aio", ",_disable_io_uring=on"),
        disk("plain", ",_disable_io_uring=on,_disable_aio=on"),
    ];
    let net = format!("tap=load0,mac={MAC},id=net0");
    let (vsock, debug) = (format!("cid=3,socket={}", file("vsock")), format!("file={}", file("debug")));
    let arguments = ["--disk", &disks[0], &disks[1], &disks[2], "--net", &net, "--vsock", &vsock];
    let consoles = ["--console", "pty", "--debug-console", &debug];
    let arguments = [&arguments[..], &consoles].concat();
    let mut machine =
        Living::boot(loaded.scratch.path(), "boot", "probe.run=load probe.interrupts=on", &arguments);
    assert_eq!(machine.wait_for("# loading "), "disks=3 cards=1");

    let watch = Watch::begin(machine.id());
    machine.progress(500, 100);
    let held = UnixStream::connect(loaded.scratch.file("boot.api")).expect("the API takes connections");
    watch.wait_for("http-connection");
    drop(held);
    machine.put("vm.add-disk", &json!({ "path": file("disk1"), "image_type": "Raw", "id": "late" }));
    // It takes a moment only, in which the watch may not get to look.
    let begun = Instant::now();
    let saved = loop {
        let saved = Scratch::within(loaded.scratch.path());
        snapshot(&machine, saved.path());
        machine.put("vm.resume", &Value::Null);
        if watch.saw("snapshot") {
            break saved;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no thread writes snapshots");
    };
    machine.progress(100, 20);
    let seen = watch.end();
    // On top of what they inherit all but the main thread have a filter of their own.
    let own = ["vcpu0", "spawner", "devices", "disk0_q0", "aio_q0", "plain_q0", "net0_q0"];
    for name in own.into_iter().chain(["http-server", "http-connection", "snapshot"]) {
        let filters = *seen.get(name).unwrap_or_else(|| panic!("no thread {name} was seen: {seen:?}"));
        assert!(filters >= 2, "{name} has {filters} filters: {seen:?}");
    }
    // Those of devices come from a thread that is confined itself.
    assert!(seen["disk0_q0"] >= 3, "{seen:?}");
    // The main thread's own is the one that all others inherit.
    assert_eq!(seen.values().filter(|filters| **filters == 1).count(), 1, "{seen:?}");
    machine.put("vm.reboot", &Value::Null);
    machine.wait_for("# loading ");
    threads(machine.id());
    // In order, so that the locks of its disks are gone when it is.
    machine.shut_down().ended_well();

    let value =
        format!("source_url=file://{},memory_restore_mode=ondemand,resume=on", saved.path().display());
    // All memory may be in its place before the watch gets to look.
    let begun = Instant::now();
    let pager = loop {
        let mut machine = Living::restore(loaded.scratch.path(), "restored", &value, &[]);
        let watch = Watch::begin(machine.id());
        // The guest finds its disks changed, which is of no concern here.
        machine.wait_for("LOAD ");
        let seen = watch.end();
        machine.shut_down().ended_well();
        if let Some(filters) = seen.get("pager") {
            break *filters;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no thread brings memory back: {seen:?}");
    };
    assert_eq!(pager, 2);
}

#[test]
fn nothing_is_filtered_when_that_is_asked_for() {
    let mut running = Guest::new("hang").with(&["--seccomp", "false"]).start();
    running.wait_for("# hanging", 1);
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).expect("the VMM runs");
    assert_eq!((value(&status, "Seccomp"), value(&status, "Seccomp_filters")), ("0", "0"));
    running.signal(libc::SIGTERM);
    running.finish().ended_well();
}

#[test]
fn a_machine_works_the_same_in_every_mode() {
    for mode in ["true", "log", "errno"] {
        Guest::new("hello,memory-map").with(&["--seccomp", mode]).run().all_passed();
    }
}

#[test]
fn a_kernel_without_filters_runs_nothing_unless_told() {
    let run = |mode: &str| {
        let mut command = Command::new(programs::cloud_hypervisor());
        command.args(["--seccomp", mode, "--kernel"]).arg(programs::probe());
        command.args([
            "--cmdline",
            "probe.run=hello",
            "--console",
            "off",
            "--serial",
            "tty",
            "--memory",
            "size=64M",
        ]);
        without(&mut command, libc::SYS_seccomp).output().expect("the VMM starts")
    };
    let refused = run("true");
    let messages = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{messages}");
    assert!(messages.contains("Cannot confine the program; --seccomp false runs it without"), "{messages}");
    assert!(refused.stdout.is_empty(), "the guest was run");
    assert!(run("false").status.success());
}
