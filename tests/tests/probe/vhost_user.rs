//! Disks that another process serves: their data, and that nothing is lost when the process dies, the machine stands still, or both move.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::image::{self, SECTOR, written};
use tests::limits;
use tests::living::Living;
use tests::probe::Guest;
use tests::scratch::Scratch;
use tests::storage_daemon::StorageDaemon;

use crate::loaded::SECTORS;

const SHARED: &str = "size=256M,shared=on";
/// How long the VMM may take to notice something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest with a disk of the pattern 7 behind a daemon; more keys for the daemon.
fn with_disk(tests: &str, keys: &str) -> (Guest, Daemon, PathBuf) {
    let guest = Guest::new(tests).memory(SHARED);
    let path = image::make(&guest.file("disk"), 7, SECTORS);
    let socket = guest.file("socket");
    let daemon = Daemon::start(&path, &socket, keys);
    let guest = guest.with(&["--disk", &disk(&socket, "")]);
    (guest, daemon, path)
}

fn disk(socket: &Path, keys: &str) -> String {
    format!("vhost_user=on,socket={}{keys}", socket.display())
}

#[test]
fn a_guest_reads_what_is_in_the_image_of_the_daemon() {
    let (guest, _daemon, path) = with_disk("blk-info,blk-read,blk-id", ",serial=of-the-daemon");
    let wanted = format!("{:08x}", image::crc32(&fs::read(path).expect("the image is there")));
    let report = guest.option("probe.serial=of-the-daemon").run();
    report.all_passed();
    assert_eq!(report.fact("blk-info", "sectors"), SECTORS.to_string(), "{report}");
    assert_eq!(report.fact("blk-read", "crc32"), wanted, "{report}");
}

#[test]
fn what_a_guest_writes_is_in_the_image_of_the_daemon_and_nothing_else_changed() {
    let (guest, _daemon, path) = with_disk("blk-write", ",image_type=raw");
    let mut running = guest.option("probe.seed=99 probe.sector=1000 probe.sectors=3001").start();
    running.wait_for("DONE", 1);
    let content = fs::read(path).expect("the image is there");
    running.finish().all_passed();
    let mut wanted = image::pattern(7, 0, SECTORS);
    wanted[(1000 * SECTOR) as usize..(4001 * SECTOR) as usize]
        .copy_from_slice(&image::pattern(99, 1000, 3001));
    assert!(content == wanted, "the image is not what the guest made of it");
}

#[test]
fn requests_of_every_shape_are_answered_by_the_daemon() {
    let (guest, _daemon, _) = with_disk("blk-flush,blk-segments,blk-full-ring,blk-range,blk-zeroes", "");
    guest.run().all_passed();
}

#[test]
fn a_machine_waits_for_a_daemon_that_is_started_later() {
    let guest = Guest::new("blk-info,blk-read").memory(SHARED);
    let (path, socket) = (image::make(&guest.file("disk"), 7, SECTORS), guest.file("socket"));
    let mut running = guest.with(&["--disk", &disk(&socket, "")]).start();
    running.wait_for_message("no back end at");
    let _daemon = Daemon::start(&path, &socket, "");
    running.finish().all_passed();
}

/// The surroundings of a machine under load whose disk a daemon serves.
struct Loaded {
    scratch: Scratch,
    socket: PathBuf,
    image: PathBuf,
}

impl Loaded {
    fn new() -> (Loaded, Daemon) {
        let scratch = Scratch::new();
        let (socket, image) = (scratch.file("socket"), scratch.file("image"));
        empty(&image);
        let daemon = Daemon::start(&image, &socket, ",image_type=raw");
        (Loaded { scratch, socket, image }, daemon)
    }

    fn boot(&self, words: &str) -> Living {
        let cmdline = format!("probe.run=load {words}");
        let disk = disk(&self.socket, ",id=data");
        let arguments = ["--memory", SHARED, "--disk", &disk];
        let mut machine = Living::boot(self.scratch.path(), "boot", &cmdline, &arguments);
        assert_eq!(machine.wait_for("# loading "), "disks=1 cards=0");
        machine
    }

    /// Ends the load, whose report must be good.
    fn end(&self, machine: Living) {
        machine.end().all_passed();
        assert!(written(&self.image, SECTORS) > 0, "nothing was written to the image");
    }
}

fn empty(image: &Path) {
    File::create(image).and_then(|file| file.set_len(SECTORS * SECTOR)).expect("there is room for an image");
}

/// Names of a process's threads.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the VMM runs");
    let mut names: Vec<_> = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect();
    names.sort();
    names
}

fn dies_again_and_again(words: &str) {
    let (loaded, mut daemon) = Loaded::new();
    let mut machine = loaded.boot(words);
    machine.progress(4000, 0);
    let held = machine.settled();
    assert!(!threads(machine.id()).contains(&"data".to_owned()), "{:?}", threads(machine.id()));
    for round in 0..20 {
        // At other points of the daemon's work each time; now and then away for a while.
        std::thread::sleep(Duration::from_micros(round * 7919 % 40_000));
        let dead = daemon.die();
        if round % 5 == 4 {
            std::thread::sleep(Duration::from_millis(300));
        }
        daemon = dead.rise();
        machine.progress(2000, 0);
    }
    machine.holds_no_more_than(held);
    assert!(!threads(machine.id()).contains(&"data".to_owned()), "{:?}", threads(machine.id()));
    loaded.end(machine);
}

#[test]
fn a_guest_that_sleeps_loses_nothing_when_the_daemon_dies() {
    dies_again_and_again("probe.interrupts=on");
}

#[test]
fn a_guest_that_polls_loses_nothing_when_the_daemon_dies() {
    dies_again_and_again("probe.interrupts=off");
}

#[test]
fn pauses_lose_nothing_and_what_the_daemon_did_not_do_waits_for_the_next_one() {
    let (loaded, mut daemon) = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(2000, 0);
    for round in 0..100u64 {
        machine.pause_and_resume(Duration::from_millis(round % 3));
        std::thread::sleep(Duration::from_micros(round * 7919 % 9000));
    }
    machine.progress(2000, 0);
    // It dies while the machine stands still,
    machine.put("vm.pause", &Value::Null);
    daemon = daemon.die_and_rise();
    machine.put("vm.resume", &Value::Null);
    machine.progress(2000, 0);
    // and before: then the machine is stopped and goes on without it.
    let lost = || machine.messages().matches("lost the back end").count();
    let before = lost();
    let dead = daemon.die();
    let begun = Instant::now();
    while lost() == before {
        assert!(begun.elapsed() < PATIENCE, "{}", machine.said());
        std::thread::sleep(Duration::from_millis(5));
    }
    let (pause, resume) = machine.pause_and_resume(Duration::from_millis(50));
    // Less than an answer is waited for.
    assert!(pause + resume < Duration::from_secs(5), "{pause:?} {resume:?}");
    let directory = loaded.scratch.file("none");
    machine.put("vm.pause", &Value::Null);
    fs::create_dir(&directory).expect("the scratch directory takes another");
    let url = json!({ "destination_url": format!("file://{}", directory.display()) });
    let (status, text) = machine.ask("PUT", "vm.snapshot", &url);
    assert!(status != 204 && text.contains("went away with requests under way"), "{status} {text}");
    let _daemon = dead.rise();
    machine.put("vm.resume", &Value::Null);
    machine.progress(2000, 0);
    loaded.end(machine);
}

/// Neither a descriptor nor a thread to look for the next daemon with.
#[test]
fn a_daemon_that_dies_while_there_are_no_descriptors_is_found_again_later() {
    let (loaded, mut daemon) = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(2000, 0);
    limits::leave_descriptors(machine.id(), 0);
    daemon = daemon.die_and_rise();
    machine.wait_for_message("cannot look for a back end: ");
    limits::set(machine.id(), libc::RLIMIT_NOFILE, None);
    machine.progress(2000, 0);
    loaded.end(machine);
    drop(daemon);
}

/// The back end cannot be given what interrupts. That is no reason to have the driver begin anew.
#[test]
fn a_resume_without_descriptors_loses_nothing() {
    let (loaded, daemon) = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(2000, 0);
    // Two are for the connection; the others are gone at one point or another.
    for left in 2..10 {
        machine.put("vm.pause", &Value::Null);
        machine.settled();
        limits::leave_descriptors(machine.id(), left);
        let (status, text) = machine.ask("PUT", "vm.resume", &Value::Null);
        limits::set(machine.id(), libc::RLIMIT_NOFILE, None);
        if status != 204 {
            assert!(status == 500 && text.contains("Too many open files"), "{status} {text}");
            machine.put("vm.resume", &Value::Null);
        }
        machine.progress(1000, 0);
    }
    let said = machine.messages();
    assert!(said.contains("cannot pass an interrupt on: Too many open files"), "{said}");
    loaded.end(machine);
    drop(daemon);
}

#[test]
fn a_saved_machine_goes_on_with_a_copy_of_the_disk_at_another_socket() {
    let (loaded, daemon) = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(4000, 0);
    machine.put("vm.pause", &Value::Null);
    let saved = loaded.scratch.file("saved");
    fs::create_dir(&saved).expect("the scratch directory takes another");
    machine.put("vm.snapshot", &json!({ "destination_url": format!("file://{}", saved.display()) }));
    let tree = machine.info()["device_tree"].clone();
    let (copy, there) = (loaded.scratch.file("copy"), loaded.scratch.file("there"));
    fs::copy(&loaded.image, &copy).expect("there is room for a copy");
    let before = fs::read(&loaded.image).expect("the image is there");
    drop(machine);

    let mut other = Daemon::start(&copy, &there, ",image_type=raw");
    let replaced = format!("id=data,socket={}", there.display());
    let value = format!("source_url=file://{}", saved.display());
    let restore = |name: &str, more: &str, disk: &str| {
        Living::restore(loaded.scratch.path(), name, &format!("{value}{more}"), &["--disk", disk])
    };
    let mut machine = restore("restored", ",resume=on", &replaced);
    machine.progress(4000, 0);
    assert_eq!(machine.info()["device_tree"], tree, "the restored machine is another");
    other = other.die_and_rise();
    machine.progress(2000, 0);
    machine.end().all_passed();
    assert!(written(&copy, SECTORS) > 0 && fs::read(&loaded.image).expect("the image is there") == before);

    // Neither can it be another disk, nor have memory that is not there yet.
    drop((daemon, other));
    let small = loaded.scratch.file("small");
    File::create(&small).and_then(|file| file.set_len(SECTOR)).expect("there is room for an image");
    let _small = Daemon::start(&small, &there, ",image_type=raw");
    for (name, more, wanted) in [
        ("small", "", "the disk had 8192 sectors of 512 bytes, and has 1"),
        ("late", ",memory_restore_mode=ondemand", "ondemand cannot be used with a --disk"),
    ] {
        let report = restore(name, more, &replaced).refused();
        assert!(report.messages.contains(wanted), "{report}");
    }
}

#[test]
fn a_disk_comes_and_goes_while_its_daemon_lives_and_dies() {
    let guest = Guest::new("hotplug").option("probe.seed=5").with_api().memory(SHARED);
    let load = image::make(&guest.file("load"), 1, 4096);
    let mut running = guest.with(&["--disk", &format!("path={},image_type=raw", load.display())]).start();
    running.wait_for("# waiting", 1);
    let sectors = 256;
    let (path, socket) = (running.file("plugged"), running.file("socket"));
    let line = disk(&socket, ",id=plugged");
    // Nobody is there: an answer comes soon, and nothing of the disk is left.
    let begun = Instant::now();
    let refused = running.remote(&["add-disk", &line]).unwrap_err();
    assert!(refused.contains("cannot connect to socket"), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());

    for round in 0..3 {
        image::make(&path, 7, sectors);
        let mut daemon = Daemon::start(&path, &socket, ",image_type=raw");
        running.ask(&["add-disk", &line, "--wait", "60"]);
        assert!(running.info()["device_tree"].get("plugged").is_some());
        if round > 0 {
            daemon = daemon.die_and_rise();
        }
        running.wait_for("# taken", round + 1);
        let mut dead = None;
        if round == 2 {
            dead = Some(daemon.die());
        }
        running.ask(&["remove-device", "plugged", "--wait", "60"]);
        assert!(running.info()["device_tree"].get("plugged").is_none());
        drop(dead);
        let content = fs::read(&path).expect("the image is there");
        let (first, second) = content.split_at((sectors / 2 * SECTOR) as usize);
        assert!(first == image::pattern(7, 0, sectors / 2), "the first half changed");
        assert!(second == image::pattern(5, sectors / 2, sectors / 2), "the second half is not the guest's");
    }
    running.ask(&["power-button"]);
    running.finish().all_passed();
}

#[test]
fn a_disk_that_grows_in_the_daemon_grows_for_the_guest() {
    let guest = Guest::new("resize").with_api().memory(SHARED);
    let path = image::make(&guest.file("disk"), 7, 1024);
    let socket = guest.file("socket");
    let daemon = Daemon::start(&path, &socket, ",image_type=raw");
    let mut running = guest.with(&["--disk", &disk(&socket, ",id=d")]).start();
    running.wait_for("# sectors 1024", 1);
    let refused = running.remote(&["resize-disk", "--disk", "d", "--size", "1M"]).unwrap_err();
    assert!(refused.contains("NotFound"), "{refused}");
    File::options().write(true).open(&path).and_then(|file| file.set_len(1 << 20)).expect("the image grows");
    daemon.signal(libc::SIGHUP);
    let report = running.finish();
    report.all_passed();
    assert_eq!(report.fact("resize", "after"), "2048");
}

#[test]
fn a_back_end_that_stops_answering_holds_up_neither_machine_nor_end() {
    let (loaded, daemon) = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(2000, 0);
    daemon.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(100));
    // Its rings do not come to rest; that is waited for, but not for ever.
    let pause = machine.put("vm.pause", &Value::Null);
    assert!(pause < Duration::from_secs(40), "{pause:?}");
    // The next one that listens there is another: this one still holds what it was given, and so nothing is shared with both.
    daemon.signal(libc::SIGCONT);
    machine.put("vm.resume", &Value::Null);
    machine.progress(2000, 0);
    loaded.end(machine);
}

#[test]
fn peers_at_the_socket_that_are_none_are_told_of_and_outlived() {
    let (loaded, daemon) = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(2000, 0);
    let dead = daemon.die();
    fs::remove_file(&loaded.socket).expect("the socket is there");
    let listener = UnixListener::bind(&loaded.socket).expect("the socket can be taken");
    // One that hangs up, one that says nonsense, one that says nothing.
    for words in [&b""[..], &[0xa5; 4096], b"x"] {
        let (mut peer, _) = listener.accept().expect("the VMM comes");
        std::io::Write::write_all(&mut peer, words).expect("the VMM is there");
        if words.len() == 1 {
            std::thread::sleep(Duration::from_secs(1));
        }
        assert_eq!(machine.info()["state"], "Running");
    }
    drop(listener);
    fs::remove_file(&loaded.socket).expect("the socket is there");
    let _daemon = dead.rise();
    machine.progress(2000, 0);
    let report = machine.end();
    report.all_passed();
    let lost = report.messages.matches("lost the back end").count();
    assert!((1..4).contains(&lost) && report.messages.contains("trying again"), "{report}");
}

#[test]
fn the_daemon_of_qemu_serves_a_disk_and_pauses_lose_nothing() {
    let (loaded, daemon) = Loaded::new();
    drop(daemon);
    let _daemon = StorageDaemon::start(&loaded.image, &loaded.socket, 2);
    let disk = disk(&loaded.socket, ",id=data,num_queues=2");
    let arguments = ["--memory", SHARED, "--cpus", "boot=2", "--disk", &disk];
    let cmdline = "probe.run=load probe.interrupts=on";
    let mut machine = Living::boot(loaded.scratch.path(), "qemu", cmdline, &arguments);
    assert_eq!(machine.wait_for("# loading "), "disks=1 cards=0");
    machine.progress(4000, 0);
    for round in 0..50u64 {
        machine.pause_and_resume(Duration::from_millis(round % 3));
        std::thread::sleep(Duration::from_micros(round * 7919 % 9000));
    }
    machine.progress(2000, 0);
    loaded.end(machine);
}

#[test]
fn a_daemon_that_keeps_no_account_leaves_a_disk_that_needs_a_reset_when_it_dies() {
    let (loaded, daemon) = Loaded::new();
    drop(daemon);
    let daemon = StorageDaemon::start(&loaded.image, &loaded.socket, 2);
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(4000, 0);
    drop(daemon);
    let _daemon = StorageDaemon::start(&loaded.image, &loaded.socket, 2);
    machine.wait_for_message("what became of them is not known");
    assert_eq!(machine.info()["state"], "Running");
    machine.shut_down().ended_well();
}
