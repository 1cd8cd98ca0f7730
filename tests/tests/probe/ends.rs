//! Ways a guest ends, and what becomes of the VMM.

use tests::probe::Guest;
use tests::terminal::Terminal;

#[test]
fn power_off_ends_the_vmm_well() {
    Guest::new("hello").option("probe.end=off").run().all_passed();
}

#[test]
fn a_reset_starts_the_same_machine_again_in_the_same_process() {
    for how in ["reset", "i8042", "cmos", "triple"] {
        let mut running = Guest::new("hello").option(&format!("probe.end={how}")).start();
        running.wait_for("DONE pass=1 fail=0", 3);
        running.signal(libc::SIGTERM);
        running.finish().ended_well();
    }
}

#[test]
fn a_busy_guest_does_not_keep_the_vmm_from_ending() {
    let mut running = Guest::new("hang").start();
    running.wait_for("# hanging", 1);
    running.signal(libc::SIGTERM);
    running.finish().ended_well();
}

#[test]
fn a_halted_guest_does_not_keep_the_vmm_from_ending() {
    let mut running = Guest::new("hello").option("probe.end=halt").start();
    running.wait_for("DONE", 1);
    running.signal(libc::SIGTERM);
    running.finish().ended_well();
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let terminal = Terminal::new();
        let mut running = Guest::new("hang").console("tty").on(&terminal).start();
        running.wait_for("# hanging", 1);
        assert!(!terminal.is_cooked(), "the terminal is not raw while a guest has it");
        running.signal(signal);
        running.finish().ended_well();
        assert!(terminal.is_cooked(), "the terminal was left raw by signal {signal}");
    }
}
