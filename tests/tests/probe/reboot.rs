//! Reboots under load, by whoever asks for them: the machine that comes is the one that went.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tests::wire::Wire;

use crate::loaded::Loaded;

const ROUNDS: usize = 10;

/// What the guest found on its bus, once for each time it came up.
fn buses(serial: &str) -> Vec<Vec<&str>> {
    let boots = serial.split("# loading ");
    // The first of them may follow a line that a reboot cut off.
    let listed =
        boots.map(|boot| boot.lines().filter_map(|line| Some(&line[line.find("# pci ")?..])).collect());
    let mut buses: Vec<Vec<&str>> = listed.collect();
    buses.pop(); // behind the last
    buses
}

#[test]
fn a_machine_that_is_rebooted_again_and_again_stays_the_same() {
    let loaded = Loaded::new();
    let cmdline = "probe.run=pci-list,console-out,load probe.end=reset";
    let mut machine = loaded.boot_with(cmdline, &["--console", "pty"]);
    let first = machine.info();
    let path = first["config"]["console"]["file"].as_str().expect("a pty has a path");
    let mut console = Wire::terminal(&PathBuf::from(path));
    let mut held = [0; 2];
    for round in 0..ROUNDS {
        machine.progress(3000, 500);
        if round == 1 {
            held = machine.settled();
        }
        if round % 2 == 0 {
            machine.put("vm.reboot", &Value::Null);
        } else {
            machine.end_load();
            machine.wait_for("PASS load ");
        }
        machine.wait_for("# loading ");
        let now = machine.info();
        assert_eq!(now, first, "after {} reboots the machine is another", round + 1);
        let line = console.wait_for("probe: virtio console\n", Duration::from_secs(30));
        assert!(line.is_some(), "nothing comes from the pty after {} reboots", round + 1);
    }
    machine.progress(3000, 500);
    machine.holds_no_more_than(held);
    let report = machine.shut_down();
    report.ended_well();
    assert!(!report.serial.contains("FAIL ") && !report.serial.contains("# wrong"), "{report}");
    let buses = buses(&report.serial);
    assert_eq!(buses.len(), ROUNDS + 1);
    assert!(buses[0].len() >= 5, "the guest sees {:?}", buses[0]);
    assert!(buses.iter().all(|bus| *bus == buses[0]), "the guest sees another bus after a reboot: {buses:?}");
    loaded.images_are_whole();
}
