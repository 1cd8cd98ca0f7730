//! Disks of a stock kernel: what was written on one side is read on the other.

use std::path::Path;
use std::process::Command;

use tests::image;
use tests::linux::{BzImage, Linux};
use tests::place;

/// A file's SHA-256, as coreutils and busybox print it.
fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_string()
}

#[test]
fn an_old_kernel_by_bzimage_reads_and_writes_three_disks() {
    tests::elsewhere!();
    let scratch = place::scratch();
    let sectors = (24 << 20) / image::SECTOR;
    let [first, sealed, direct] = ["first", "sealed", "direct"].map(|name| scratch.join(name));
    image::make(&first, 1, sectors);
    image::make(&sealed, 2, sectors);
    image::make(&direct, 3, sectors);
    let before = [&first, &sealed, &direct].map(|path| sha256(path));

    let mut guest = Linux::new("6.1", BzImage)
        .cpus("boot=2")
        .with(&["--disk"])
        .with(&[&format!("path={},serial=virga-0001,image_type=raw", first.display())])
        .with(&[&format!("path={},readonly=on,image_type=raw", sealed.display())])
        .with(&[&format!(
            "path={},direct=on,num_queues=2,queue_size=64,image_type=raw,id=quick",
            direct.display()
        )])
        .boot();

    assert_eq!(guest.sh("cat /sys/block/vda/serial"), "virga-0001");
    assert_eq!(guest.sh("cat /sys/block/vd?/size"), format!("{sectors}\n{sectors}\n{sectors}"));
    assert_eq!(guest.sh("cat /sys/block/vd?/ro"), "0\n1\n0");
    assert_eq!(guest.sh("ls -1 /sys/block/vdc/mq"), "0\n1");
    assert_eq!(guest.sh("cat /sys/block/vda/queue/write_cache"), "write back");
    let classes =
        guest.sh("cd /sys/bus/pci/devices; cat 0000:00:02.0/class 0000:00:03.0/class 0000:00:04.0/class");
    assert_eq!(classes, "0x018000\n0x018000\n0x018000");

    for (disk, sum) in ["vda", "vdb", "vdc"].iter().zip(&before) {
        assert_eq!(guest.sh(&format!("sha256sum < /dev/{disk} | cut -d ' ' -f 1")), *sum, "{disk}");
    }

    let (status, output) = guest.try_sh("dd if=/dev/zero of=/dev/vdb bs=4096 count=1 conv=fsync");
    assert_ne!(status, 0, "a disk that is read-only was written to: {output}");

    // Both processors write at once; then what is there is the host's to see.
    guest.sh("for disk in vda vdc; do dd if=/dev/urandom of=/dev/$disk bs=64k count=160 seek=32 conv=fsync & done; wait");
    guest.sh("dd if=/dev/zero of=/dev/vda bs=512 count=3 conv=fsync; echo 3 > /proc/sys/vm/drop_caches");
    let inside: Vec<String> = ["vda", "vdb", "vdc"]
        .iter()
        .map(|disk| guest.sh(&format!("sha256sum < /dev/{disk} | cut -d ' ' -f 1")))
        .collect();
    assert_eq!(inside, [&first, &sealed, &direct].map(|path| sha256(path)));
    assert!(inside[0] != before[0] && inside[1] == before[1] && inside[2] != before[2]);
    let bytes = std::fs::read(&first).expect("the image can be read");
    assert_eq!(bytes[..3 * 512], [0; 3 * 512]);
    assert_eq!(bytes[3 * 512..2 << 20], image::pattern(1, 3, (4 << 10) - 3));

    let counters = guest.ask(&["counters"]);
    let counters: serde_json::Value = serde_json::from_str(&counters).expect("vm.counters is JSON");
    let count = |disk: &str, what: &str| counters[disk][what].as_u64().unwrap_or_default();
    assert!(count("_disk0", "write_bytes") >= 10 << 20, "{counters}");
    assert!(count("quick", "read_bytes") >= 24 << 20, "{counters}");
    guest.power_off();
}
