//! Pauses under load: nothing is lost, answered twice or changed, however often and whenever the machine stands still.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;
use tests::image::SECTOR;
use tests::limits;
use tests::living::{Living, Times};

use crate::loaded::Loaded;

/// Pauses and resumes `rounds` times, with more or less time in between, and sees that everything goes on.
fn rounds(machine: &mut Living, rounds: u32, (disk, net): (u64, u64)) {
    let held = machine.settled();
    let (mut pauses, mut resumes) = (Times::default(), Times::default());
    for round in 0..rounds {
        let (pause, resume) = machine.pause_and_resume(Duration::from_millis(u64::from(round % 3)));
        pauses.note(pause);
        resumes.note(resume);
        // Not always at the same point of the guest's work.
        std::thread::sleep(Duration::from_micros(u64::from(round * 7919 % 9000)));
        if round % 50 == 49 {
            machine.progress(disk, net);
        }
    }
    machine.holds_no_more_than(held);
    println!("pause {pauses}; resume {resumes}; {:?}", machine.beat());
}

/// The other stories mean nothing unless the guest sees what goes wrong.
#[test]
fn the_load_finds_a_changed_sector_and_a_lost_frame() {
    let loaded = Loaded::new();
    let mut machine = loaded.boot("");
    machine.progress(20_000, 100);
    loaded.partner.lose(1);
    machine.wait_for("# wrong: card 0: 1 frames from ");
    // Paused, so that no write puts it right at once.
    machine.put("vm.pause", &Value::Null);
    let image = File::options().write(true).open(loaded.disk("disk1")).expect("the image is there");
    for sector in 0..8192 {
        image.write_all_at(b"?", sector * SECTOR + 100).expect("the image takes bytes");
    }
    machine.put("vm.resume", &Value::Null);
    machine.wait_for("# wrong: disk 1: sector ");
    let report = machine.end();
    assert!(report.serial.contains("FAIL load: ") && !report.serial.contains("# wrong: disk 0"), "{report}");
}

#[test]
fn a_polling_guest_loses_nothing_by_pauses() {
    let loaded = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=off");
    machine.progress(100, 100);
    rounds(&mut machine, 200, (500, 500));
    machine.end().all_passed();
    loaded.images_are_whole();
}

#[test]
fn a_guest_that_sleeps_until_interrupts_come_loses_none_by_pauses() {
    let loaded = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(100, 100);
    rounds(&mut machine, 200, (500, 500));
    machine.end().all_passed();
    loaded.images_are_whole();
}

/// Of two disks and a card, none runs; later all do, with nothing lost.
#[test]
fn a_resume_for_which_there_are_no_descriptors_is_refused_and_can_be_tried_again() {
    let loaded = Loaded::new();
    let mut machine = loaded.boot("probe.interrupts=on");
    machine.progress(2000, 500);
    machine.settled();
    machine.put("vm.pause", &Value::Null);
    machine.settled();
    // Two are for the connection; some more, and one device can be started after the other, until all can.
    let mut refused = 0;
    for left in 2..64 {
        limits::leave_descriptors(machine.id(), left);
        let (status, text) = machine.ask("PUT", "vm.resume", &Value::Null);
        limits::set(machine.id(), libc::RLIMIT_NOFILE, None);
        if status == 204 {
            break;
        }
        assert!(status == 500 && text.contains("Too many open files"), "{status} {text}");
        assert_eq!(machine.info()["state"], "Paused");
        machine.settled();
        refused += 1;
    }
    assert!(refused > 2, "{refused}");
    machine.progress(4000, 1000);
    machine.end().all_passed();
}
