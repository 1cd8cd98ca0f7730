//! Files as memory: what the guest writes is in the file or is not, as was agreed, and comes through flushes, removals and snapshots.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::image::{self, SECTOR};
use tests::living::Living;
use tests::probe::Guest;
use tests::scratch::Scratch;

const SECTORS: u64 = (6 << 20) / SECTOR;

/// A guest with a file of the pattern 7 as memory, more keys for `--pmem` behind its path.
fn with_pmem(tests: &str, keys: &str) -> (Guest, PathBuf) {
    let guest = Guest::new(tests);
    let path = image::make(&guest.file("memory"), 7, SECTORS);
    let argument = format!("file={}{keys}", path.display());
    (guest.with(&["--pmem", &argument]), path)
}

/// Runs it to its end, and returns what is in the file then, with the messages.
#[track_caller]
fn run(guest: Guest, path: &Path) -> (Vec<u8>, String) {
    let mut running = guest.start();
    running.wait_for("DONE", 1);
    let content = fs::read(path).expect("the file is there");
    let report = running.finish();
    report.all_passed();
    (content, report.messages)
}

#[test]
fn the_guest_reads_what_is_in_the_file() {
    let (guest, path) = with_pmem("pmem-read", "");
    let wanted = format!("{:08x}", image::crc32(&fs::read(path).expect("the file is there")));
    let report = guest.run();
    report.all_passed();
    assert_eq!(report.fact("pmem-read", "crc32"), wanted, "{report}");
    assert_eq!(report.fact("pmem-read", "len"), "0x600000", "{report}");
}

#[test]
fn what_was_written_and_flushed_is_in_the_file() {
    let (guest, path) = with_pmem("pmem-write", ",size=4M");
    let (content, _) = run(guest.option("probe.seed=3"), &path);
    let used = (4 << 20) / SECTOR;
    assert!(content[..4 << 20] == image::pattern(3, 0, used), "the guest's data is not in the file");
    assert!(content[4 << 20..] == image::pattern(7, used, SECTORS - used), "the rest of the file changed");
}

#[test]
fn discarded_writes_leave_the_file_alone() {
    let (guest, path) = with_pmem("pmem-write", ",discard_writes=on");
    let (content, _) = run(guest, &path);
    assert!(content == image::pattern(7, 0, SECTORS), "the file has changed");
}

#[test]
fn a_file_that_may_not_be_written_is_not() {
    let (guest, path) = with_pmem("pmem-readonly,pmem-read", "");
    fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("the file is ours");
    let (content, messages) = run(guest.heeding_permissions(), &path);
    assert!(content == image::pattern(7, 0, SECTORS), "the file has changed");
    let warning = format!("{} cannot be opened for writing", path.display());
    assert!(messages.contains(&warning), "{messages}");
}

#[test]
fn no_request_does_harm() {
    let (guest, path) = with_pmem("pmem-hostile,virtio-registers,pmem-hostile,pmem-read", "");
    let (content, _) = run(guest, &path);
    assert!(content == image::pattern(7, 0, SECTORS), "the file has changed");
}

#[test]
fn memory_comes_and_goes_while_the_guest_runs() {
    let guest = Guest::new("hotplug").option("probe.seed=5").with_api();
    let present = image::make(&guest.file("present"), 1, SECTORS);
    let load = image::make(&guest.file("load"), 1, 4096);
    let guest = guest
        .with(&["--disk", &format!("path={},image_type=raw", load.display())])
        .with(&["--pmem", &format!("file={}", present.display())]);
    let mut running = guest.start();
    running.wait_for("# waiting", 1);
    let before = running.info();
    let first = &before["device_tree"]["_pmem1"]["resources"][0]["MmioAddressRange"];
    assert_eq!(first["size"], 6 << 20, "{before}");
    let (path, mut places) = (running.file("memory"), Vec::new());
    for round in 1..=20 {
        image::make(&path, 7, SECTORS);
        let answer = running.ask(&["add-pmem", &format!("file={},id=p", path.display()), "--wait", "60"]);
        let answer: Value = serde_json::from_str(&answer).expect("the answer is JSON");
        assert_eq!(answer["id"], "p");
        running.wait_for("# taken", round);
        let info = running.info();
        assert_eq!(info["config"]["pmem"][1]["file"], path.display().to_string());
        let place = &info["device_tree"]["p"]["resources"][0]["MmioAddressRange"];
        assert!(place["base"].as_u64() < first["base"].as_u64(), "{place} is not below {first}");
        places.push(place.clone());
        running.ask(&["remove-device", "p", "--wait", "60"]);
        let content = fs::read(&path).expect("the file is there");
        let (kept, written) = content.split_at(3 << 20);
        assert!(kept == image::pattern(7, 0, SECTORS / 2), "the first half changed");
        assert!(written == image::pattern(5, SECTORS / 2, SECTORS / 2), "the guest's data is not there");
    }
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    assert_eq!(running.info(), before);
    // Two at a time, on one file: the second is refused, and nothing of it is left.
    let keys = format!("file={}", present.display());
    let refusal = running.remote(&["add-pmem", &keys]).expect_err("the file is locked");
    assert!(refusal.contains("is locked for writing by"), "{refusal}");
    assert_eq!(running.info(), before);
    running.ask(&["power-button"]);
    running.finish().all_passed();
}

/// Waits for signs of life: some may have been there before.
#[track_caller]
fn rounds(machine: &mut Living) {
    (0..4).for_each(|_| drop(machine.wait_for("# round ")));
}

/// Pauses and takes a snapshot; the answer.
fn snapshot(machine: &Living, directory: &Path) -> (u16, String) {
    machine.put("vm.pause", &Value::Null);
    fs::create_dir_all(directory).expect("the scratch directory takes another");
    machine.ask("PUT", "vm.snapshot", &json!({"destination_url": format!("file://{}", directory.display())}))
}

/// Lets the guest see in its memory that it is to end.
fn end(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).expect("the file is there");
    file.write_all_at(&[1], SECTORS * SECTOR - 8).expect("the file can be written");
}

#[test]
fn a_restored_guest_goes_on_with_the_file_or_a_copy_of_it() {
    let scratch = Scratch::new();
    let path = image::make(&scratch.file("memory"), 7, SECTORS);
    let keys = format!("file={},id=p", path.display());
    let mut machine = Living::boot(scratch.path(), "first", "probe.run=pmem-live", &["--pmem", &keys]);
    rounds(&mut machine);
    let saved = scratch.file("snapshot");
    let (status, text) = snapshot(&machine, &saved);
    assert_eq!(status, 204, "{text}");
    let tree = machine.info()["device_tree"].clone();
    drop(machine);
    let copy = scratch.file("copy");
    fs::copy(&path, &copy).expect("there is room for a copy");

    let restore = format!("source_url=file://{},resume=on", saved.display());
    let mut machine = Living::restore(scratch.path(), "again", &restore, &[]);
    rounds(&mut machine);
    assert_eq!(machine.info()["device_tree"], tree, "the restored machine is another");
    end(&path);
    machine.end().all_passed();

    let elsewhere = format!("id=p,file={}", copy.display());
    let mut machine = Living::restore(scratch.path(), "elsewhere", &restore, &["--pmem", &elsewhere]);
    rounds(&mut machine);
    end(&copy);
    machine.end().all_passed();

    // A file that is another one is refused.
    OpenOptions::new()
        .write(true)
        .open(&copy)
        .expect("the copy is there")
        .set_len(8 << 20)
        .expect("it can grow");
    let machine = Living::wait(scratch.path(), "longer");
    let request =
        json!({"source_url": format!("file://{}", saved.display()), "pmem": [{"id": "p", "file": copy}]});
    let (status, text) = machine.ask("PUT", "vm.restore", &request);
    assert!(
        status == 400
            && text.contains(
                "the guest knows the device in slot 2 with 6291456 bytes of memory, and it has 8388608 now"
            ),
        "{status} {text}"
    );
    machine.shut_down().ended_well();
}

#[test]
fn a_snapshot_without_the_copies_that_the_guest_wrote_to_is_refused() {
    let scratch = Scratch::new();
    let path = image::make(&scratch.file("memory"), 7, SECTORS);
    let keys = format!("file={},id=p,discard_writes=on", path.display());
    let mut machine = Living::boot(scratch.path(), "first", "probe.run=pmem-live", &["--pmem", &keys]);
    rounds(&mut machine);
    let (status, text) = snapshot(&machine, &scratch.file("snapshot"));
    assert!(status == 500 && text.contains("the guest has written to its copy of"), "{status} {text}");
    machine.put("vm.resume", &Value::Null);
    rounds(&mut machine);
    machine.shut_down().ended_well();

    // One that only reads is none the worse for it.
    let mut machine = Living::boot(scratch.path(), "reads", "probe.run=pmem-read,hang", &["--pmem", &keys]);
    machine.wait_for("PASS pmem-read");
    let (status, text) = snapshot(&machine, &scratch.file("snapshot"));
    assert_eq!(status, 204, "{text}");
    machine.shut_down().ended_well();
}
