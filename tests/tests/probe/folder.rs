//! Folders that virtiofsd shows, and devices of which this side knows no more than their type and queues.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::image::{self, SECTOR};
use tests::living::Living;
use tests::probe::{Guest, Report};
use tests::scratch::Scratch;
use tests::virtiofsd::{self, Virtiofsd};

const SHARED: &str = "size=256M,shared=on";
const SECTORS: u64 = 16;

/// It tells the tag to those who ask.
fn serve(folder: &Path, socket: &Path) -> Virtiofsd {
    Virtiofsd::start(folder, socket, &["--tag", "home"])
}

/// A guest that uses a file in a folder, its socket and its file.
fn guest(tests: &str, words: &str) -> (Guest, PathBuf, PathBuf) {
    let guest = Guest::new(tests).option(words).memory(SHARED).with_api();
    let folder = guest.file("folder");
    fs::create_dir(&folder).expect("the scratch directory takes a directory");
    let file = image::make(&folder.join("probe"), 7, SECTORS);
    let socket = guest.file("socket");
    (guest, socket, file)
}

/// The first half as it was, the second as the guest writes it.
#[track_caller]
fn was_used(file: &Path, seed: u64) {
    let content = fs::read(file).expect("the file is there");
    let (first, second) = content.split_at((SECTORS / 2 * SECTOR) as usize);
    assert!(first == image::pattern(7, 0, SECTORS / 2), "the first half changed");
    assert!(second == image::pattern(seed, SECTORS / 2, SECTORS / 2), "the second half is not the guest's");
}

/// Runs the guest to its end with this device.
#[track_caller]
fn uses(flag: &str, keys: &str) -> Report {
    let (guest, socket, file) = guest("fs", "probe.seed=5");
    let _daemon = serve(file.parent().expect("it is in a folder"), &socket);
    let line = format!("socket={},{keys}", socket.display());
    let mut running = guest.with(&[flag, &line]).start();
    running.wait_for("DONE", 1);
    was_used(&file, 5);
    let report = running.finish();
    report.all_passed();
    report
}

#[test]
fn a_file_of_the_host_is_read_and_written() {
    if virtiofsd::is_missing() {
        return;
    }
    let report = uses("--fs", "tag=ours");
    assert_eq!(report.fact("fs", "tag"), "ours", "{report}");
}

#[test]
fn the_same_by_a_device_of_which_only_the_type_is_known() {
    if virtiofsd::is_missing() {
        return;
    }
    let report = uses("--generic-vhost-user", "device_type=fs,queue_sizes=[64,64]");
    assert_eq!(report.fact("fs", "tag"), "home", "{report}");
}

#[test]
fn a_daemon_that_dies_is_reported_and_another_refuses_what_it_does_not_know() {
    if virtiofsd::is_missing() {
        return;
    }
    let (guest, socket, file) = guest("fs", "probe.seed=5 probe.again=1");
    let folder = file.parent().expect("it is in a folder").to_owned();
    let daemon = serve(&folder, &socket);
    let mut running = guest.with(&["--fs", &format!("socket={},tag=home,id=home", socket.display())]).start();
    running.wait_for("# used", 1);
    was_used(&file, 5);
    drop(daemon);
    let _daemon = serve(&folder, &socket);
    running.wait_for("# refused", 1);
    running.wait_for("DONE", 1);
    was_used(&file, 7);
    let report = running.finish();
    report.all_passed();
    assert!(report.messages.contains("lost the back end at"), "{report}");
}

#[test]
fn a_device_of_which_only_the_type_is_known_has_to_begin_anew() {
    if virtiofsd::is_missing() {
        return;
    }
    let (guest, socket, file) = guest("fs", "probe.seed=5 probe.broken=1");
    let folder = file.parent().expect("it is in a folder").to_owned();
    let daemon = serve(&folder, &socket);
    let line = format!("socket={},device_type=fs,queue_sizes=[64,64]", socket.display());
    let mut running = guest.with(&["--generic-vhost-user", &line]).start();
    running.wait_for("# used", 1);
    drop(daemon);
    let _daemon = serve(&folder, &socket);
    running.wait_for("# broken", 1);
    running.wait_for("DONE", 1);
    was_used(&file, 6);
    let report = running.finish();
    report.all_passed();
    assert!(report.messages.contains("the driver has to begin anew"), "{report}");
}

#[test]
fn a_file_stays_open_when_the_machine_goes_on_elsewhere_with_another_daemon() {
    if virtiofsd::is_missing() {
        return;
    }
    let scratch = Scratch::new();
    let (folder, saved) = (scratch.file("folder"), scratch.file("snapshot"));
    let sockets = ["first", "second", "third"].map(|name| scratch.file(&format!("{name}.socket")));
    for directory in [&folder, &saved] {
        fs::create_dir(directory).expect("the scratch directory takes a directory");
    }
    let file = image::make(&folder.join("probe"), 7, SECTORS);
    let daemon = serve(&folder, &sockets[0]);
    let keys = |socket: &Path| format!("id=home,socket={}", socket.display());
    let command = "probe.run=fs probe.seed=5 probe.keep=1";
    let mut machine = Living::boot(
        scratch.path(),
        "first",
        command,
        &["--memory", SHARED, "--fs", &format!("tag=home,{}", keys(&sockets[0]))],
    );
    machine.wait_for("# kept");
    was_used(&file, 5);
    machine.put("vm.pause", &Value::Null);
    machine.put("vm.snapshot", &json!({"destination_url": format!("file://{}", saved.display())}));
    drop((machine, daemon));

    let restore = format!("source_url=file://{},resume=on", saved.display());
    // Another folder has no such file.
    let other = scratch.file("other");
    fs::create_dir(&other).expect("the scratch directory takes a directory");
    let daemon = serve(&other, &sockets[2]);
    let refused = Living::restore(scratch.path(), "third", &restore, &["--fs", &keys(&sockets[2])]).refused();
    assert!(refused.messages.contains("it refused CHECK_DEVICE_STATE"), "{refused}");
    drop(daemon);

    let _daemon = serve(&folder, &sockets[1]);
    let machine = Living::restore(scratch.path(), "second", &restore, &["--fs", &keys(&sockets[1])]);
    let mut content = fs::read(&file).expect("the file is there");
    content[..8].fill(0);
    fs::write(&file, content).expect("the file can be written");
    machine.end().all_passed();
    let content = fs::read(&file).expect("the file is there");
    let half = (SECTORS / 2 * SECTOR) as usize;
    assert!(content[half..] == image::pattern(6, SECTORS / 2, SECTORS / 2), "the guest did not write again");
}

#[test]
fn a_folder_comes_and_goes() {
    if virtiofsd::is_missing() {
        return;
    }
    let guest = Guest::new("hang").memory(SHARED).with_api();
    let (folder, socket) = (guest.file("folder"), guest.file("socket"));
    fs::create_dir(&folder).expect("the scratch directory takes a directory");
    let _daemon = serve(&folder, &socket);
    let mut running = guest.start();
    running.wait_for("# hanging", 1);
    running.ask(&["add-fs", &format!("socket={},tag=home", socket.display())]);
    let info = running.info();
    assert!(info["device_tree"].get("_fs0").is_some() && info["config"]["fs"][0]["tag"] == "home", "{info}");
    running.ask(&["remove-device", "_fs0"]);
    running.signal(libc::SIGTERM);
    running.finish().ended_well();
}

#[test]
fn a_folder_is_there_after_a_reboot_though_virtiofsd_ends_with_its_connection() {
    if virtiofsd::is_missing() {
        return;
    }
    let (guest, socket, file) = guest("fs,hang", "probe.seed=5");
    let _daemon = serve(file.parent().expect("it is in a folder"), &socket);
    let mut running = guest.with(&["--fs", &format!("socket={},tag=home", socket.display())]).start();
    for life in 1..=3 {
        running.wait_for("# hanging", life);
        assert_eq!(running.serial().matches("PASS fs").count(), life, "{}", running.serial());
        was_used(&file, 5);
        if life < 3 {
            running.ask(&["reboot"]);
        }
    }
    running.signal(libc::SIGTERM);
    running.finish().ended_well();
}
