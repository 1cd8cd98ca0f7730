//! Guests that lie: the VMM refuses, keeps its own and other memory intact, and the devices work after a reset. Meanwhile it takes no more
//! memory, descriptors, threads and log than it may, and another machine beside it is untouched.

use std::path::PathBuf;

use tests::bounds::Watch;
use tests::image;
use tests::innocent::Innocent;
use tests::probe::{Guest, Report};

/// A guest with a device of every kind that needs nobody else.
fn with_everything(tests: &str) -> Guest {
    let guest = Guest::new(tests);
    let disk = image::make(&guest.file("disk"), 3, 2048);
    let memory = image::make(&guest.file("memory"), 7, 4096);
    let path = |key: &str, path: PathBuf| format!("{key}={}", path.display());
    let console = path("file", guest.file("console"));
    let debug = path("file", guest.file("debug"));
    let (disk, memory) = (path("path", disk), path("file", memory));
    let vsock = path("cid=3,socket", guest.file("vsock"));
    let guest = guest.console(&console).with(&["--disk", &disk, "--rng", "src=/dev/urandom"]);
    let guest = guest.with(&["--pmem", &memory, "--vsock", &vsock, "--debug-console", &debug]);
    guest.with(&["--net", "ip=192.168.249.1,mask=255.255.255.0"]).in_private_network()
}

/// Runs the guest to its end, and looks at what the VMM takes meanwhile, and at another machine.
#[track_caller]
fn harms_nothing(guest: Guest) -> Report {
    let innocent = Innocent::begin();
    // What is shared with others does not count as the VMM's own, so that the guest's memory is left out.
    let running = guest.memory("size=256M,shared=on").start();
    let watch = Watch::begin(running.id());
    let report = running.finish();
    watch.end().is_bounded(&report.messages);
    report.all_passed();
    innocent.is_untouched();
    report
}

/// So many rounds of this kind from the probe's `attack`.
#[track_caller]
fn attacks(kind: &str, rounds: u32) {
    let words = format!("probe.only={kind} probe.rounds={rounds} probe.millis=60000");
    let report = harms_nothing(with_everything("attack").option(&words));
    assert_eq!(report.fact("attack", "rounds"), rounds.to_string(), "{report}");
}

#[test]
fn chains_that_lie_do_no_harm() {
    harms_nothing(with_everything("blk-hostile,blk-read,net-hostile,rng-hostile,pmem-hostile"));
}

/// With RAM below and above a hole, so that there are buffers which leave one piece and reach the other.
#[test]
fn chains_do_not_reach_from_one_piece_of_memory_to_another() {
    let guest = Guest::new("blk-hostile,blk-read").memory("size=3200M");
    let disk = image::make(&guest.file("disk"), 3, 2048);
    let report = guest.with(&["--disk", &format!("path={}", disk.display())]).run();
    report.all_passed();
    assert_eq!(report.fact("blk-hostile", "hole"), "0xc0000000+0x40000000", "{report}");
}

#[test]
fn rings_of_any_device_may_lie() {
    attacks("rings", 60);
}

#[test]
fn what_changes_while_it_is_read_does_no_harm() {
    attacks("races", 40);
}

#[test]
fn a_reset_cuts_off_requests_in_flight() {
    harms_nothing(with_everything("blk-reset,blk-read"));
}

#[test]
fn transport_registers_take_any_access_in_any_state() {
    harms_nothing(with_everything("virtio-registers,virtio-bar,blk-read,rng"));
}

#[test]
fn rings_where_none_can_be_are_refused() {
    harms_nothing(with_everything("virtio-queue-setup,blk-read,rng"));
}

#[test]
fn doorbells_of_queues_that_are_not_there_are_ignored() {
    harms_nothing(with_everything("virtio-doorbells,blk-read,rng"));
}

#[test]
fn registers_take_anything_in_any_order() {
    attacks("registers", 40);
}

#[test]
fn the_window_in_configuration_space_reaches_no_further_than_the_bar() {
    attacks("window", 25);
}

#[test]
fn configuration_space_and_bars_may_change_during_io() {
    attacks("config", 25);
}

#[test]
fn vectors_and_their_table_take_any_access() {
    harms_nothing(with_everything("msix-registers,msix-interrupt"));
    attacks("msix", 30);
}

#[test]
fn ports_and_registers_of_the_platform_take_any_access() {
    attacks("ports", 150);
    attacks("memory", 150);
}

#[test]
fn floods_on_serial_port_and_console_are_bounded() {
    attacks("flood", 20);
}

/// Terminals that nobody has opened, of serial port and console.
#[test]
fn floods_that_nobody_reads_are_bounded() {
    let innocent = Innocent::begin();
    let guest = Guest::new("attack").option("probe.only=flood probe.rounds=20 probe.millis=60000");
    let debug = format!("file={}", guest.file("debug").display());
    let guest = guest.console("pty").serial("pty").with(&["--debug-console", &debug]);
    let running = guest.memory("size=256M,shared=on").start();
    let watch = Watch::begin(running.id());
    let report = running.finish();
    watch.end().is_bounded(&report.messages);
    report.ended_well();
    innocent.is_untouched();
}

#[test]
fn the_image_survives_what_the_guest_tries() {
    let guest = Guest::new("blk-hostile,virtio-registers,virtio-queue-setup,blk-readonly");
    let disk = image::make(&guest.file("disk"), 5, 4096);
    let argument = format!("path={},readonly=on", disk.display());
    let mut running = guest.with(&["--disk", &argument]).start();
    running.wait_for("DONE", 1);
    let content = std::fs::read(&disk).expect("the image is there");
    running.finish().all_passed();
    assert!(content == image::pattern(5, 0, 4096), "the image changed");
}
