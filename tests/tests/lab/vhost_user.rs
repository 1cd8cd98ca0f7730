//! Disks that our daemon serves, as stock kernels see them, under QEMU and under our own VMM.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::daemon::Daemon;
use tests::linux::{BzImage, Linux};
use tests::{image, place};

#[test]
fn qemu_loses_nothing_when_the_daemon_is_killed() {
    tests::elsewhere!();
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        println!("SKIPPED: there is no qemu-system-x86_64 on the PATH");
        return;
    }
    loses_nothing(|socket| {
        Linux::new("6.1", BzImage)
            .under_qemu()
            .with(&["-smp", "2", "-m", "256M", "-machine", "q35,memory-backend=memory"])
            .with(&["-object", "memory-backend-memfd,id=memory,size=256M,share=on"])
            .with(&["-chardev", &format!("socket,id=disk,path={},reconnect=1", socket.display())])
            .with(&["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"])
    });
}

#[test]
fn our_machine_loses_nothing_when_the_daemon_is_killed() {
    tests::elsewhere!();
    loses_nothing(|socket| {
        let disk = format!("vhost_user=on,socket={},num_queues=2", socket.display());
        Linux::new("6.1", BzImage).cpus("boot=2").memory("size=256M,shared=on").with(&["--disk", &disk])
    });
}

/// A guest writes to a disk at a socket with both processors while the daemon dies again and again.
fn loses_nothing(guest: impl FnOnce(&Path) -> Linux) {
    let scratch = place::scratch();
    let (disk, socket) = (scratch.join("disk"), scratch.join("socket"));
    let sectors = (32 << 20) / image::SECTOR;
    image::make(&disk, 1, sectors);
    let mut daemon = Daemon::start(&disk, &socket, ",num_queues=2,serial=virga-vu");
    let mut guest = guest(&socket).boot();
    assert_eq!(guest.sh("cat /sys/block/vda/size /sys/block/vda/serial"), format!("{sectors}\nvirga-vu"));
    assert_eq!(guest.sh("ls -1 /sys/block/vda/mq"), "0\n1");

    // Both processors write, each its half, while the daemon dies again and again.
    guest.sh("dd if=/dev/urandom of=/tmp/a bs=64k count=240; dd if=/dev/urandom of=/tmp/b bs=64k count=240");
    let write = "dd if=/tmp/a of=/dev/vda bs=64k oflag=direct conv=fsync & first=$!; \
                 dd if=/tmp/b of=/dev/vda bs=64k seek=256 oflag=direct conv=fsync && wait $first";
    for round in 0..3 {
        guest.begin(write);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(200 * (round + 1)));
            daemon = daemon.die_and_rise();
        }
        let (status, output) = guest.end(write);
        assert_eq!(status, 0, "{output}");
    }
    let same = "echo 3 > /proc/sys/vm/drop_caches; \
                dd if=/dev/vda bs=64k count=240 iflag=direct | cmp - /tmp/a && \
                dd if=/dev/vda bs=64k count=240 skip=256 iflag=direct | cmp - /tmp/b";
    guest.sh(same);
    // And they are in the image, where the rest is as it was.
    let bytes = std::fs::read(&disk).expect("the image can be read");
    let gap = 240 * 128;
    assert_eq!(bytes[240 << 16..256 << 16], image::pattern(1, gap, 16 * 128));
    let sum = guest.sh("dd if=/tmp/a bs=64k 2> /dev/null | sha256sum | cut -d ' ' -f 1");
    std::fs::write(scratch.join("part"), &bytes[..240 << 16]).expect("the scratch directory takes files");
    let output = Command::new("sha256sum").arg(scratch.join("part")).output().expect("sha256sum runs");
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with(&sum),
        "what the guest wrote is in the image"
    );

    // The disk grows under the guest's eyes.
    File::options().write(true).open(&disk).and_then(|file| file.set_len(64 << 20)).expect("the image grows");
    daemon.signal(libc::SIGHUP);
    guest.sh(&format!("until grep -q {} /sys/block/vda/size; do sleep 0.1; done", 2 * sectors));
    guest.power_off();
}
