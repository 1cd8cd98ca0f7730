//! PCI as such, and the devices that are streams of bytes.

use tests::image;
use tests::probe::Guest;
use tests::terminal::Terminal;

/// A guest with a disk, an rng and a console.
pub(crate) fn with_devices(tests: &str) -> Guest {
    let guest = Guest::new(tests);
    let disk = image::make(&guest.file("disk"), 3, 2048);
    let console = format!("file={}", guest.file("console").display());
    let disk = format!("path={}", disk.display());
    guest.console(&console).with(&["--disk", &disk, "--rng", "src=/dev/urandom"])
}

#[test]
fn functions_are_found_sized_and_apart() {
    let report = with_devices("pci-list,pci-bars,pci-ports,pci-decode").run();
    report.all_passed();
    for (what, id) in
        [("bridge", "8086:0d57"), ("console", "1af4:1043"), ("disk", "1af4:1042"), ("rng", "1af4:1044")]
    {
        assert!(report.serial.contains(id), "there is no {what}:\n{report}");
    }
}

#[test]
fn registers_follow_a_bar_that_moves() {
    with_devices("pci-move,pci-move-doorbell").run().all_passed();
}

#[test]
fn interrupts_are_delivered_masked_and_pending() {
    with_devices("msix-registers,msix-interrupt,event-idx,blk-queues").run().all_passed();
}

#[test]
fn entropy_is_entropy() {
    with_devices("rng,rng-hostile").run().all_passed();
}

#[test]
fn the_console_writes_to_its_file() {
    let report = with_devices("console-out").run();
    report.all_passed();
    let wanted = format!("probe: virtio console\n{}\n", "x".repeat(3999));
    assert!(report.console == wanted, "the file has {} bytes", report.console.len());
}

#[test]
fn the_console_takes_lines_from_the_terminal_and_leaves_it_as_it_was() {
    let mut terminal = Terminal::new();
    let mut running = Guest::new("console-echo").console("tty").on(&terminal).start();
    running.wait_for("# console ready", 1);
    assert!(!terminal.is_cooked(), "the terminal is not raw while a guest has it");
    terminal.type_in("a line for the guest\n");
    assert!(terminal.shows("A LINE FOR THE GUEST"), "{}", running.serial());
    running.finish().all_passed();
    assert!(terminal.is_cooked(), "the terminal was left raw");
}
