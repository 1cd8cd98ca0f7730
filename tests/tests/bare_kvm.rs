//! The probe and its launcher without our VMM: what fails here is not the VMM's fault.

use std::process::{Command, Output};

use tests::programs;

fn run(cmdline: &str) -> Output {
    let launcher = programs::beside("VIRGA_BARE_KVM", "bare-kvm", "bare-kvm");
    // A guest that halts is never heard of again.
    let mut command = Command::new("timeout");
    command.arg("60").arg(launcher).arg(programs::probe()).arg(cmdline).output().expect("the launcher starts")
}

#[test]
fn the_probe_runs_with_nothing_but_kvm() {
    let output = run("probe.run=hello,memory-map,memory-touch,fault,cpuid,apic,x2apic");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with("DONE pass=7 fail=0 skip=0\n"), "{text}");
    assert_eq!(output.status.code(), Some(0), "{text}");
}

#[test]
fn what_a_machine_lacks_is_skipped_not_failed() {
    let output = run("probe.run=all");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" fail=0 "), "{text}");
    assert!(text.contains("SKIP blk-read: there is no disk 0\n"), "{text}");
}

#[test]
fn an_unknown_test_fails_by_name() {
    let output = run("probe.run=no-such-test");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "FAIL no-such-test: there is no such test\nDONE pass=0 fail=1 skip=0\n");
}

#[test]
fn each_way_to_end_is_told_apart() {
    for (how, status) in [("off", 0), ("reset", 2), ("triple", 3)] {
        let output = run(&format!("probe.run=hello probe.end={how}"));
        assert_eq!(output.status.code(), Some(status), "probe.end={how}: {output:?}");
    }
}
