//! Ways a guest ends, and what becomes of the VMM.

use tests::probe::Guest;

#[test]
fn power_off_ends_the_vmm_well() {
    Guest::new("hello").option("probe.end=off").run().all_passed();
}

#[test]
fn a_reset_starts_the_same_machine_again_in_the_same_process() {
    for how in ["reset", "i8042", "cmos", "triple"] {
        let mut running = Guest::new("hello").option(&format!("probe.end={how}")).start();
        running.wait_for("DONE pass=1 fail=0", 3);
        running.terminate();
        running.finish().ended_well();
    }
}

#[test]
fn a_busy_guest_does_not_keep_the_vmm_from_ending() {
    let mut running = Guest::new("hang").start();
    running.wait_for("# hanging", 1);
    running.terminate();
    running.finish().ended_well();
}

#[test]
fn a_halted_guest_does_not_keep_the_vmm_from_ending() {
    let mut running = Guest::new("hello").option("probe.end=halt").start();
    running.wait_for("DONE", 1);
    running.terminate();
    running.finish().ended_well();
}
