//! Disks in every format: what the guest wrote is what QEMU reads, also after the VMM was killed.

use tests::image::{self, SECTOR, qemu_img, text};
use tests::probe::Guest;
use tests::scratch::Scratch;

const SECTORS: u64 = 16_384;

#[test]
fn the_guest_writes_disks_of_every_format() {
    for (format, features, image_type) in [
        ("qcow2", "compression_type=zstd", "qcow2"),
        ("qcow2", "compat=0.10,cluster_size=4096", "qcow2"),
        ("vpc", "subformat=fixed,force_size=on", "vhd"),
        ("vhdx", "block_size=1M", "vhdx"),
        ("vmdk", "subformat=monolithicFlat", "vmdk"),
    ] {
        let files = Scratch::new();
        let guest = Guest::new("blk-write").option("probe.seed=99 probe.sector=1000 probe.sectors=3001");
        let raw = image::make(&files.file("raw"), 7, SECTORS);
        let path = files.file("disk.vmdk");
        let mut convert = vec!["convert", "-f", "raw", "-O", format, "-o", features];
        convert.extend(["-c"].iter().filter(|_| features.starts_with("compression")));
        convert.extend([text(&raw), text(&path)]);
        qemu_img(&convert);
        let argument = format!("path={},image_type={image_type}", path.display());
        guest.with(&["--disk", &argument]).run().all_passed();
        if format == "qcow2" {
            qemu_img(&["check", "-q", text(&path)]);
        }
        qemu_img(&["convert", "-f", format, "-O", "raw", text(&path), text(&raw)]);
        let content = std::fs::read(&raw).expect("the copy is there");
        let (from, to) = ((1000 * SECTOR) as usize, (4001 * SECTOR) as usize);
        assert!(content[from..to] == image::pattern(99, 1000, 3001), "{format}: not what the guest wrote");
        assert!(content[..from] == image::pattern(7, 0, 1000), "{format}: sectors before have changed");
        assert!(
            content[to..] == image::pattern(7, 4001, SECTORS - 4001),
            "{format}: sectors behind have changed"
        );
    }
}

#[test]
fn a_qcow2_disk_builds_upon_another_when_that_is_allowed() {
    let guest = Guest::new("blk-read,blk-flush,blk-range");
    let base = image::make(&guest.file("base"), 7, SECTORS);
    let path = guest.file("disk");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", text(&base), text(&path)]);
    let argument = format!("path={},image_type=qcow2,backing_files=on", path.display());
    let report = guest.with(&["--disk", &argument]).run();
    report.all_passed();
    let wanted = format!("{:08x}", image::crc32(&image::pattern(7, 0, SECTORS)));
    assert_eq!(report.fact("blk-read", "crc32"), wanted, "{report}");
}
