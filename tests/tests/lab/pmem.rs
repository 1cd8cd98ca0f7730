//! A file as memory of a stock kernel's: a file system on it, mapped without a page cache between, and what was promised of it when the
//! VMM is killed.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use tests::linux::{Linux, Pvh, Running};
use tests::{image, place};

/// Waits for the memory's block device.
const APPEARS: &str =
    "i=0; until [ -b /dev/pmem0 ] || [ $i = 200 ]; do i=$((i + 1)); sleep 0.1; done; ls -l /dev/pmem0";

/// A file with an empty ext4.
fn file_system(path: &Path) {
    File::create(path).and_then(|file| file.set_len(64 << 20)).expect("the scratch directory has room");
    let mut command = Command::new("/sbin/mke2fs");
    let output =
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096"]).arg(path).output().expect("mke2fs runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A guest with it mounted on `/mnt`, and whether the kernel maps it directly.
fn mounted(file: &Path, keys: &str) -> Running {
    let argument = format!("file={}{keys}", file.display());
    let mut guest = Linux::new("6.12", Pvh).with(&["--pmem", &argument]).boot();
    guest.sh("modprobe virtio_pmem; modprobe nd_pmem; modprobe ext4; mkdir -p /mnt");
    guest.sh(
        "i=0; until [ -b /dev/pmem0 ] || [ $i = 200 ]; do i=$((i + 1)); sleep 0.1; done; ls -l /dev/pmem0",
    );
    guest.sh("mount -t ext4 -o dax=always /dev/pmem0 /mnt; grep /mnt /proc/mounts | grep -q dax=always");
    guest
}

#[test]
fn memory_comes_and_goes_and_is_another_each_time() {
    tests::elsewhere!();
    let files = [1, 2].map(|n| {
        let path = place::scratch().join(format!("memory{n}"));
        image::make(&path, n, (4 << 20) / image::SECTOR)
    });
    let mut guest = Linux::new("6.1", Pvh).boot();
    guest.sh("modprobe virtio_pmem; modprobe nd_pmem");
    for (n, file) in (1..).zip(&files) {
        guest.ask(&["add-pmem", &format!("file={},id=p", file.display()), "--wait", "120"]);
        guest.sh(APPEARS);
        guest.sh(&format!("printf {n} | dd of=/dev/pmem0 bs=1 seek=4096 conv=fsync"));
        guest.sh("dd if=/dev/pmem0 of=/tmp/read bs=64k");
        let sum = guest.sh("sha256sum < /tmp/read | cut -d ' ' -f 1");
        guest.ask(&["remove-device", "p", "--wait", "120"]);
        assert_eq!(guest.sh("ls /dev | grep -c pmem; true"), "0");
        let output = Command::new("sha256sum").arg(file).output().expect("sha256sum runs");
        assert!(
            String::from_utf8_lossy(&output.stdout).starts_with(&sum),
            "file {n} is not what the guest read"
        );
        assert_eq!(std::fs::read(file).expect("the file is there")[4096], b'0' + n);
    }
    guest.power_off();
}

#[test]
fn what_was_fsynced_is_there_after_the_vmm_was_killed() {
    tests::elsewhere!();
    let file = place::scratch().join("memory");
    file_system(&file);
    let mut guest = mounted(&file, "");
    assert_eq!(guest.sh("cat /sys/block/pmem0/queue/dax /sys/block/pmem0/size"), "1\n131072");
    guest.sh("dd if=/dev/urandom of=/mnt/kept bs=64k count=160 conv=fsync; sync");
    let sum = guest.sh("sha256sum < /mnt/kept");
    // Not promised yet when the end comes; it must do the rest no harm.
    guest.sh("dd if=/dev/urandom of=/mnt/lost bs=64k count=64");
    // SAFETY: a signal to the VMM, which has not been waited for.
    assert_eq!(unsafe { libc::kill(guest.id() as libc::pid_t, libc::SIGKILL) }, 0);
    while guest.status().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(guest);

    let mut guest = mounted(&file, "");
    assert_eq!(guest.sh("sha256sum < /mnt/kept"), sum);
    guest.sh("umount /mnt");
    guest.power_off();
    let output = Command::new("/sbin/e2fsck").args(["-fn"]).arg(&file).output().expect("e2fsck runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let before = std::fs::read(&file).expect("the file is there");

    // On a copy of its own the guest may do as it likes.
    let mut guest = mounted(&file, ",discard_writes=on");
    assert_eq!(guest.sh("sha256sum < /mnt/kept"), sum);
    guest.sh("dd if=/dev/urandom of=/mnt/kept bs=64k count=160 conv=fsync; sync; umount /mnt");
    guest.power_off();
    assert!(std::fs::read(&file).expect("the file is there") == before, "the file has changed");
}
