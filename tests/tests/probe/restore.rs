//! Snapshots under load: the machine goes on in another process, on other disks and another tap, and nothing is lost, answered twice or changed.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::limits;
use tests::living::Living;

use crate::loaded::{Elsewhere, Loaded};

/// Frames that are out at most, so as many may be given up with each restore.
const WINDOW: u64 = 32;

/// Pauses and takes a snapshot into a new directory.
fn snapshot(machine: &Living, directory: &Path) {
    machine.put("vm.pause", &Value::Null);
    std::fs::create_dir(directory).expect("the scratch directory takes another");
    let url = format!("file://{}", directory.display());
    let took = machine.put("vm.snapshot", &json!({ "destination_url": url }));
    println!("snapshot in {took:.2?}");
}

/// Goes on by the command line with what is elsewhere.
fn restore(loaded: &Loaded, name: &str, snapshot: &Path, mode: &str, place: &Elsewhere) -> Living {
    let mode = if mode.is_empty() { String::new() } else { format!(",memory_restore_mode={mode}") };
    let value = format!("source_url=file://{}{mode},resume=on", snapshot.display());
    let flags = place.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let mut machine = Living::restore(loaded.scratch.path(), name, &value, &flags);
    machine.beat();
    println!("restore{mode}: first sign of life after {:.2?}", begun.elapsed());
    machine
}

/// Ends the guest's load, whose report must be good, with frames given up only by restores.
fn end(machine: Living, restores: u64) {
    let report = machine.end();
    report.all_passed();
    let abandoned: u64 = report.fact("load", "abandoned").parse().expect("a number");
    assert!(abandoned <= restores * WINDOW, "{abandoned} frames were given up:\n{report}");
}

fn goes_on(image_type: &'static str, mode: &str, interrupts: &str) {
    let loaded = Loaded::with_disks(image_type);
    let mut machine = loaded.boot(&format!("probe.interrupts={interrupts} probe.window={WINDOW}"));
    machine.progress(4000, 1000);
    let saved = loaded.scratch.file("snapshot");
    snapshot(&machine, &saved);
    let tree = machine.info()["device_tree"].clone();
    let disks = ["disk0", "disk1"].map(|name| loaded.disk(name));
    let place = loaded.elsewhere(1, [&disks[0], &disks[1]]);
    let before = disks.each_ref().map(|disk| std::fs::read(disk).expect("the disk is there"));
    drop(machine);

    let mut machine = restore(&loaded, "restored", &saved, mode, &place);
    machine.progress(4000, 1000);
    assert_eq!(machine.info()["device_tree"], tree, "the restored machine is another");
    for _ in 0..20 {
        machine.pause_and_resume(Duration::from_millis(1));
    }
    machine.progress(1000, 200);
    end(machine, 1);
    place.images_are_whole();
    let after = disks.each_ref().map(|disk| std::fs::read(disk).expect("the disk is there"));
    assert!(after == before, "the disks that were replaced have changed");
}

#[test]
fn a_machine_whose_memory_is_copied_goes_on() {
    goes_on("raw", "copy", "on");
}

#[test]
fn a_machine_whose_memory_comes_on_demand_goes_on() {
    goes_on("raw", "ondemand", "off");
}

#[test]
fn a_machine_whose_memory_is_mapped_goes_on() {
    goes_on("raw", "mmap", "on");
}

#[test]
fn a_machine_with_qcow2_disks_goes_on() {
    goes_on("qcow2", "copy", "on");
}

#[test]
fn a_snapshot_of_a_restored_machine_is_as_good_as_the_first() {
    let loaded = Loaded::new();
    let mut machine = loaded.boot(&format!("probe.interrupts=on probe.window={WINDOW}"));
    machine.progress(2000, 500);
    let mut disks = ["disk0", "disk1"].map(|name| loaded.disk(name));
    let mut places = Vec::new();
    for (generation, mode) in (1..).zip(["ondemand", "mmap", "copy"]) {
        // The second is taken while memory may still be on its way.
        let saved = loaded.scratch.file(&format!("snapshot.{generation}"));
        snapshot(&machine, &saved);
        let place = loaded.elsewhere(generation, [&disks[0], &disks[1]]);
        drop(machine);
        machine = restore(&loaded, &format!("generation.{generation}"), &saved, mode, &place);
        if generation > 1 {
            // Nothing of it is needed any more: neither files nor disks of the machines before.
            std::fs::remove_dir_all(loaded.scratch.file(&format!("snapshot.{}", generation - 1)))
                .expect("the snapshot before is there");
            machine.progress(2000, 500);
        }
        disks.clone_from(&place.disks);
        places.push(place);
    }
    end(machine, 3);
    places.last().expect("there were three").images_are_whole();
}

#[test]
fn the_saved_machine_and_its_copy_go_separate_ways() {
    let loaded = Loaded::new();
    let mut first = loaded.boot(&format!("probe.interrupts=on probe.window={WINDOW}"));
    first.progress(2000, 500);
    let saved = loaded.scratch.file("snapshot");
    snapshot(&first, &saved);
    let disks = ["disk0", "disk1"].map(|name| loaded.disk(name));
    let place = loaded.elsewhere(1, [&disks[0], &disks[1]]);
    first.put("vm.resume", &Value::Null);

    let mut second = Living::wait(loaded.scratch.path(), "second");
    let mut request = place.json();
    request["source_url"] = format!("file://{}", saved.display()).into();
    request["memory_restore_mode"] = "Mmap".into();
    second.put("vm.restore", &request);
    assert_eq!(second.info()["state"], "Paused");
    second.put("vm.resume", &Value::Null);
    for machine in [&mut first, &mut second] {
        machine.progress(2000, 500);
    }
    end(first, 0);
    end(second, 1);
    loaded.images_are_whole();
    place.images_are_whole();
    let same = (0..2).any(|i| std::fs::read(&disks[i]).ok() == std::fs::read(&place.disks[i]).ok());
    assert!(!same, "both machines have written the same to their disks");
}

#[test]
fn a_restored_machine_boots_again_where_it_is_now() {
    let loaded = Loaded::new();
    let mut machine = loaded.boot("probe.end=reset");
    machine.progress(2000, 500);
    let saved = loaded.scratch.file("snapshot");
    snapshot(&machine, &saved);
    let disks = ["disk0", "disk1"].map(|name| loaded.disk(name));
    let place = loaded.elsewhere(1, [&disks[0], &disks[1]]);
    let before = disks.each_ref().map(|disk| std::fs::read(disk).expect("the disk is there"));
    drop(machine);

    let mut machine = restore(&loaded, "restored", &saved, "", &place);
    std::fs::remove_dir_all(&saved).expect("the snapshot is there");
    let first = machine.info();
    for by_guest in [false, true] {
        machine.progress(2000, 500);
        if by_guest {
            machine.end_load();
            machine.wait_for("PASS load ");
        } else {
            machine.put("vm.reboot", &Value::Null);
        }
        let found = machine.wait_for("# loading ");
        assert_eq!(found, "disks=2 cards=1");
        assert_eq!(machine.info(), first, "the machine is another after a reboot");
    }
    machine.progress(2000, 500);
    let report = machine.shut_down();
    report.ended_well();
    assert!(!report.serial.contains("FAIL ") && !report.serial.contains("# wrong"), "{report}");
    place.images_are_whole();
    let after = disks.each_ref().map(|disk| std::fs::read(disk).expect("the disk is there"));
    assert!(after == before, "the disks that were replaced have changed");
}

#[test]
fn a_snapshot_for_which_there_is_no_memory_is_refused_and_the_machine_goes_on() {
    let loaded = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(2000, 500);
    machine.put("vm.pause", &Value::Null);
    let saved = loaded.scratch.file("snapshot");
    std::fs::create_dir(&saved).expect("the scratch directory takes another");
    let url = json!({ "destination_url": format!("file://{}", saved.display()) });
    let mut refused = 0;
    // Enough for an answer, and at last for the snapshot.
    for kib in (512..=8192).step_by(128) {
        limits::leave_memory(machine.id(), kib << 10);
        let (status, text) = machine.ask("PUT", "vm.snapshot", &url);
        limits::set(machine.id(), libc::RLIMIT_AS, None);
        let left = std::fs::read_dir(&saved).expect("the directory is there").count();
        if status == 204 {
            break;
        }
        let why = ["Cannot allocate memory (os error 12)", "temporarily unavailable (os error 11)"];
        assert!(status == 500 && why.iter().any(|why| text.contains(why)), "{kib} KiB: {status} {text}");
        assert_eq!(left, 0, "{kib} KiB: something is left of the snapshot");
        refused += 1;
    }
    assert!(refused > 0, "512 KiB were enough");
    assert!(saved.join("state.json").exists(), "8 MiB were not enough");
    machine.put("vm.resume", &Value::Null);
    machine.progress(2000, 500);
    end(machine, 0);
}
