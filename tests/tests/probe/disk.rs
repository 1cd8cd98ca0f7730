//! Disks: data by checksum in both directions, and requests at the edges.

use tests::image::{self, SECTOR};
use tests::probe::Guest;

const SECTORS: u64 = 16_384;

/// A guest with an image of the pattern 7, more keys for `--disk` behind its path.
fn with_disk(tests: &str, keys: &str) -> (Guest, std::path::PathBuf) {
    let guest = Guest::new(tests);
    let path = image::make(&guest.file("disk"), 7, SECTORS);
    let argument = format!("path={}{keys}", path.display());
    (guest.with(&["--disk", &argument]), path)
}

fn crc_of(bytes: &[u8]) -> String {
    format!("{:08x}", image::crc32(bytes))
}

#[test]
fn the_guest_reads_what_is_in_the_image() {
    let (guest, path) = with_disk("blk-info,blk-read", "");
    let wanted = crc_of(&std::fs::read(path).expect("the image is there"));
    let report = guest.run();
    report.all_passed();
    assert_eq!(report.fact("blk-info", "sectors"), SECTORS.to_string(), "{report}");
    assert_eq!(report.fact("blk-read", "crc32"), wanted, "{report}");
}

#[test]
fn the_image_holds_what_the_guest_wrote_and_nothing_else_changed() {
    let guest = Guest::new("blk-write").option("probe.seed=99 probe.sector=1000 probe.sectors=3001");
    let path = image::make(&guest.file("disk"), 7, SECTORS);
    let argument = format!("path={}", path.display());
    let mut running = guest.with(&["--disk", &argument]).start();
    running.wait_for("DONE", 1);
    let content = std::fs::read(&path).expect("the image is there");
    running.finish().all_passed();
    let (from, to) = ((1000 * SECTOR) as usize, (4001 * SECTOR) as usize);
    assert_eq!(content.len() as u64, SECTORS * SECTOR, "the image changed its size");
    assert!(content[from..to] == image::pattern(99, 1000, 3001), "the guest's data is not in the image");
    assert!(content[..from] == image::pattern(7, 0, 1000), "sectors before the guest's data changed");
    assert!(
        content[to..] == image::pattern(7, 4001, SECTORS - 4001),
        "sectors behind the guest's data changed"
    );
}

#[test]
fn requests_of_every_shape_are_answered() {
    let (guest, _) = with_disk("blk-flush,blk-segments,blk-full-ring,blk-range,blk-zeroes", "");
    guest.run().all_passed();
}

#[test]
fn a_disk_has_the_identifier_it_was_given() {
    let (guest, _) = with_disk("blk-id", ",serial=a-serial-of-20-bytes");
    guest.option("probe.serial=a-serial-of-20-bytes").run().all_passed();
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let guest = Guest::new("blk-readonly,blk-range,blk-read,blk-flush");
    let path = image::make(&guest.file("disk"), 7, SECTORS);
    let argument = format!("path={},readonly=on", path.display());
    let mut running = guest.with(&["--disk", &argument]).start();
    running.wait_for("DONE", 1);
    let content = std::fs::read(&path).expect("the image is there");
    running.finish().all_passed();
    assert!(content == image::pattern(7, 0, SECTORS), "the image changed");
}

#[test]
fn each_of_several_disks_is_itself() {
    let guest = Guest::new("blk-read").option("probe.blk=1");
    let first = image::make(&guest.file("first"), 1, 64);
    let second = image::make(&guest.file("second"), 2, 128);
    let wanted = crc_of(&image::pattern(2, 0, 128));
    let arguments = [first, second].map(|path| format!("path={}", path.display()));
    let report = guest.with(&["--disk", &arguments[0], &arguments[1]]).run();
    report.all_passed();
    assert_eq!(report.fact("blk-read", "crc32"), wanted, "{report}");
}

#[test]
fn queues_are_as_many_and_as_long_as_asked() {
    let (guest, _) = with_disk("blk-info,blk-read", ",num_queues=2,queue_size=64");
    let report = guest.cpus("boot=2").run();
    report.all_passed();
    assert_eq!(report.fact("blk-info", "queues"), "2", "{report}");
    assert_eq!(report.fact("blk-info", "size"), "64", "{report}");
}

#[test]
fn a_disk_whose_format_was_guessed_takes_no_header_from_the_guest() {
    let (guest, _) = with_disk("blk-first-sector", "");
    guest.option("probe.expect=refused").run().all_passed();
}

#[test]
fn a_disk_that_is_raw_by_order_takes_any_write() {
    let (guest, _) = with_disk("blk-first-sector", ",image_type=raw");
    guest.option("probe.expect=taken").run().all_passed();
}
