//! Devices that come and go while the guest runs, with another disk under load; nothing of them stays behind.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::held::Held;
use tests::image::{self, SECTOR};
use tests::probe::{Guest, Report, Running};

const SECTORS: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest with a disk under load, and the test that takes up what comes.
fn guest() -> Guest {
    let guest = Guest::new("hotplug").option("probe.seed=5").with_api();
    let path = image::make(&guest.file("load"), 1, 4096);
    let events = guest.file("events").display().to_string();
    guest
        .with(&["--disk", &format!("path={},image_type=raw", path.display())])
        .with(&["--event-monitor", &format!("path={events}")])
        .in_private_network()
}

/// Tells the guest that this was all.
fn ends(running: Running) -> Report {
    running.ask(&["power-button"]);
    let report = running.finish();
    report.all_passed();
    report
}

/// A fresh image in the guest's directory.
fn disk(running: &Running, name: &str) -> PathBuf {
    image::make(&running.file(name), 7, SECTORS)
}

/// The first half as it was, the second as the guest writes it.
#[track_caller]
fn was_used(path: &PathBuf) {
    let content = fs::read(path).expect("the image is there");
    let (first, second) = content.split_at((SECTORS / 2 * SECTOR) as usize);
    assert!(first == image::pattern(7, 0, SECTORS / 2), "the first half changed");
    assert!(second == image::pattern(5, SECTORS / 2, SECTORS / 2), "the second half is not the guest's");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Properties of the events of this name so far.
fn events(running: &Running, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(running.file("events")).expect("the event monitor has a file");
    let records = text.split_terminator("\n\n").map(json);
    records.filter(|r| r["source"] == "vm" && r["event"] == name).map(|r| r["properties"].clone()).collect()
}

/// Waits until the VMM holds what it held then: the kernel takes its time to close a ring's files.
#[track_caller]
fn holds_again(running: &Running, before: &Held) -> Held {
    let begun = Instant::now();
    loop {
        let now = Held::at_rest(running.id());
        if now.is_within(before) {
            return now;
        }
        assert!(begun.elapsed() < PATIENCE, "{before:#?}\n{now:#?}");
    }
}

#[test]
fn disks_and_cards_come_and_go_on_two_segments() {
    let guest = guest()
        .with(&["--platform", "num_pci_segments=2"])
        .with(&["--pci-segment", "pci_segment=1,mmio32_aperture_weight=2,mmio64_aperture_weight=3"]);
    let mut running = guest.start();
    running.wait_for("# waiting", 1);
    let before = Held::at_rest(running.id());
    let tree = running.info()["device_tree"].clone();
    let mut names = Vec::new();
    for (n, segment) in [0, 1].into_iter().enumerate() {
        let image = disk(&running, &format!("disk{segment}"));
        let keys = format!("path={},pci_segment={segment}", image.display());
        let info = json(&running.ask(&["add-disk", &keys, "--wait", "60"]));
        // The first slot of segment 1 is 0; on segment 0 the host bridge, a disk and the rng come before.
        let slot = ["0000:00:03.0", "0001:00:00.0"][n];
        // One counter for all kinds; the disk from the start is 0.
        assert_eq!(info["id"], format!("_disk{}", 2 * n + 1));
        assert_eq!(info["bdf"], slot);
        let keys = format!("mac=52:54:00:aa:bb:0{segment},pci_segment={segment}");
        let card = json(&running.ask(&["add-net", &keys, "--wait", "60"]));
        assert_eq!(card["id"], format!("_net{}", 2 * n + 2));
        names.extend([info, card].map(|i| i["id"].as_str().expect("a name").to_owned()));
    }
    running.wait_for("# taken", 4);
    let info = running.info();
    assert_eq!(info["config"]["disks"][2]["id"], "_disk3");
    assert_eq!(info["config"]["disks"][2]["image_type"], "Raw");
    assert_eq!(info["config"]["net"][1]["tap"], "vmtap1");
    assert_eq!(info["device_tree"]["_virtio-pci-_net4"]["pci_bdf"], "0001:00:01.0");
    assert_eq!(events(&running, "device-added").len(), 4);
    assert!(Held::at_rest(running.id()).threads >= before.threads + 4);

    for name in ["_disk1", "_virtio-pci-_disk3", "_net2", "_virtio-pci-_net4"] {
        running.ask(&["remove-device", name, "--wait", "60"]);
    }
    assert_eq!(running.info()["device_tree"], tree);
    assert_eq!(running.info()["config"]["net"], Value::Null);
    let removed = events(&running, "device-removed");
    assert_eq!(removed[1], serde_json::json!({"id": "_disk3", "bdf": "0001:00:00.0"}));
    assert_eq!(removed.len(), 4);
    for segment in [0, 1] {
        was_used(&running.file(&format!("disk{segment}")));
    }
    let report = ends(running);
    assert_eq!(report.fact("hotplug", "gone"), "4");
}

#[test]
fn a_hundred_rounds_under_load_leak_nothing() {
    const ROUNDS: u32 = 100;
    let mut running = guest().start();
    running.wait_for("# waiting", 1);
    let tree = running.info()["device_tree"].clone();
    let image = disk(&running, "disk");
    let mut places = Vec::new();
    let mut round = || {
        image::make(&image, 7, SECTORS);
        let add = |command: &str, keys: &str| {
            let info = json(&running.ask(&[command, keys, "--wait", "60"]));
            (info["id"].as_str().expect("a name").to_owned(), info["bdf"].clone())
        };
        let (disk, card) =
            (add("add-disk", &format!("path={},id=d", image.display())), add("add-net", "id=n"));
        let info = running.info();
        let bar = |id: &str| info["device_tree"][format!("_virtio-pci-{id}")]["resources"].clone();
        places.push((disk.1, bar("d"), card.1, bar("n")));
        running.ask(&["remove-device", "d"]);
        running.ask(&["remove-device", "n", "--wait", "60"]);
        running.ask(&["wait-device", "d", "--until", "removed", "--timeout", "60"]);
        was_used(&image);
    };
    round(); // what is made once and kept is made now
    let before = Held::at_rest(running.id());
    (0..ROUNDS).for_each(|_| round());
    let after = holds_again(&running, &before);
    assert!(places.iter().all(|place| *place == places[0]), "{places:#?}");
    // A page for each round would be 400 KiB.
    assert!(after.memory < before.memory + 300, "{before:?}\n{after:?}");
    assert_eq!(running.info()["device_tree"], tree);
    let report = ends(running);
    assert_eq!(report.fact("hotplug", "gone"), (2 * ROUNDS + 2).to_string());
}

#[test]
fn a_guest_lets_go_of_what_it_likes_and_the_rest_stays() {
    let mut running = guest().option("probe.own=1 probe.hostile=1").start();
    running.wait_for("# waiting", 1);
    // It ejected every slot: the disk from the start is gone, and from the description too.
    running.ask(&["wait-device", "_disk0", "--until", "removed"]);
    let info = running.info();
    assert_eq!(info["config"].get("disks"), None);
    assert!(info["device_tree"].get("__rng").is_some() && info["device_tree"].get("_disk0").is_none());
    assert!(info["device_tree"].get("__pci_hotplug").is_some());
    let image = disk(&running, "disk");
    running.ask(&["add-disk", &format!("path={},id=mine", image.display())]);
    running.ask(&["wait-device", "mine", "--until", "removed", "--timeout", "60"]);
    was_used(&image);
    let removed = events(&running, "device-removed");
    assert_eq!(removed.iter().map(|r| r["id"].clone()).collect::<Vec<_>>(), ["_disk0", "mine"]);
    // Its image is free for others.
    let again = tests::probe::Guest::new("hello").with(&["--disk", &format!("path={}", image.display())]);
    again.run().all_passed();
    ends(running);
}

#[test]
fn a_reboot_keeps_names_and_slots_of_what_came_later() {
    let mut running = guest().start();
    running.wait_for("# waiting", 1);
    let first = disk(&running, "first");
    let second = disk(&running, "second");
    running.ask(&["add-disk", &format!("path={}", first.display()), "--wait", "60"]);
    running.ask(&["add-net", "", "--wait", "60"]);
    running.ask(&["add-disk", &format!("path={}", second.display()), "--wait", "60"]);
    running.ask(&["remove-device", "_disk1", "--wait", "60"]);
    let before = running.info();
    let bdfs = |info: &Value| -> Vec<(String, Value)> {
        let tree = info["device_tree"].as_object().expect("a tree");
        tree.iter().map(|(id, node)| (id.clone(), node["pci_bdf"].clone())).collect()
    };
    running.ask(&["reboot"]);
    let after = running.info();
    assert_eq!(bdfs(&before), bdfs(&after));
    assert_eq!(before["config"], after["config"]);
    // A name that was given is not given again, and a slot that was left is.
    running.wait_for("# waiting", 2);
    let info = json(&running.ask(&["add-disk", &format!("path={}", first.display())]));
    assert_eq!((info["id"].as_str(), info["bdf"].as_str()), (Some("_disk4"), Some("0000:00:03.0")));
    running.signal(libc::SIGTERM);
    running.finish().ended_well();
}

#[test]
fn a_removal_that_the_guest_never_answers_is_done_by_a_reboot() {
    let guest = Guest::new("hang").with_api();
    let path = image::make(&guest.file("disk"), 7, SECTORS);
    let mut running = guest.with(&["--disk", &format!("path={},id=d", path.display())]).start();
    running.wait_for("# hanging", 1);
    let late = running.remote(&["wait-device", "d", "--until", "ready", "--timeout", "0.1"]).unwrap_err();
    assert!(late.contains("Server responded with GatewayTimeout"), "{late}");
    assert!(late.contains("Device \"d\" is not used by the guest after 100 ms"), "{late}");
    let late = running.remote(&["remove-device", "d", "--wait", "0.1"]).unwrap_err();
    assert!(late.contains("Device \"d\" was not let go of by the guest after 100 ms"), "{late}");
    // Asked again it is no error, and its name is not free yet.
    running.ask(&["remove-device", "d"]);
    let info = running.info();
    assert!(info["config"].get("disks").is_none() && info["device_tree"].get("d").is_some());
    let taken = running.remote(&["add-disk", &format!("path={},id=d", path.display())]).unwrap_err();
    assert!(taken.contains("Conflict") && taken.contains("Identifier d is not unique"), "{taken}");
    running.ask(&["reboot"]);
    assert!(running.info()["device_tree"].get("d").is_none());
    let gone = running.remote(&["remove-device", "d"]).unwrap_err();
    assert!(gone.contains("NotFound") && gone.contains("No device with id \"d\" to remove"), "{gone}");
    running.signal(libc::SIGTERM);
    running.finish().ended_well();
}

#[test]
fn a_disk_grows_under_load() {
    let guest = Guest::new("resize").with_api();
    let path = image::make(&guest.file("disk"), 7, 1024);
    let mut running =
        guest.with(&["--disk", &format!("path={},id=d,image_type=raw", path.display())]).start();
    running.wait_for("# sectors 1024", 1);
    let refused = running.remote(&["resize-disk", "--disk", "d", "--size", "600000"]).unwrap_err();
    assert!(refused.contains("Size 600000 is no multiple of 512 bytes"), "{refused}");
    let refused = running.remote(&["resize-disk", "--disk", "__rng", "--size", "1M"]).unwrap_err();
    assert!(
        refused.contains("NotFound") && refused.contains("No disk with id \"__rng\" to resize"),
        "{refused}"
    );
    running.ask(&["resize-disk", "--disk", "d", "--size", "1M"]);
    running.wait_for("DONE", 1);
    let report_path = path.clone();
    let report = running.finish();
    report.all_passed();
    assert_eq!(report.fact("resize", "after"), "2048");
    assert!(!report_path.exists() || fs::metadata(&report_path).is_ok_and(|m| m.len() == 1 << 20));
}
