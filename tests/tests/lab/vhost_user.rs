//! Disks and network cards that our daemons serve, as stock kernels see them, under QEMU and under our own VMM.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::daemon::Daemon;
use tests::linux::{BzImage, Linux};
use tests::{image, place, programs};

use crate::network::{NC, back, there_and_back};

/// A guest of QEMU's with memory that is shared, a character device `back` on the socket, and what else is said.
fn under_qemu(kernel: &str, socket: &Path, device: &[&str]) -> Linux {
    Linux::new(kernel, BzImage)
        .under_qemu()
        .with(&["-smp", "2", "-m", "256M", "-machine", "q35,memory-backend=memory"])
        .with(&["-object", "memory-backend-memfd,id=memory,size=256M,share=on"])
        .with(&["-chardev", &format!("socket,id=back,path={},reconnect-ms=1000", socket.display())])
        .with(device)
}

fn there_is_no_qemu() -> bool {
    let missing = Command::new("qemu-system-x86_64").arg("--version").output().is_err();
    if missing {
        println!("SKIPPED: there is no qemu-system-x86_64 on the PATH");
    }
    missing
}

#[test]
fn qemu_loses_nothing_when_the_daemon_is_killed() {
    tests::elsewhere!();
    if there_is_no_qemu() {
        return;
    }
    loses_nothing(|socket| {
        under_qemu("6.1", socket, &["-device", "vhost-user-blk-pci,chardev=back,num-queues=2"])
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

#[test]
fn qemu_streams_through_a_card_whose_daemon_dies_and_comes_back() {
    tests::elsewhere!();
    if there_is_no_qemu() {
        return;
    }
    const HOST: &str = "192.168.100.1";
    let scratch = place::scratch();
    let socket = scratch.join("socket");
    let keys = "tap=card,num_queues=4,host_mac=2e:00:00:00:00:01";
    let mut daemon = Daemon::of(programs::vhost_user_net(), "--net-backend", &socket, keys);
    let device = [
        "-netdev",
        "vhost-user,id=card,chardev=back,queues=2",
        "-device",
        "virtio-net-pci,netdev=card,mq=on,mac=52:54:00:aa:bb:cc,romfile=",
    ];
    let mut guest = under_qemu("6.12", &socket, &device).boot();
    assert_eq!(guest.sh("cat /sys/class/net/eth0/address"), "52:54:00:aa:bb:cc");
    assert_eq!(guest.sh("ls -d /sys/class/net/eth0/queues/rx-* | wc -l"), "2");
    // Character n is feature n: checksums and large TCP segments, both ways, and several pairs.
    let features: Vec<bool> =
        guest.sh("cat /sys/class/net/eth0/device/features").chars().map(|bit| bit == '1').collect();
    for feature in [0, 1, 7, 8, 11, 12, 22] {
        assert!(features[feature], "feature {feature} of {features:?}");
    }
    guest.sh("ip addr add 192.168.100.2/24 dev eth0; ip link set eth0 up");
    for round in 0..3 {
        guest.sh(&format!("ping -c 3 -i 0.2 -W 10 {HOST}"));
        guest.sh(&format!("ping -c 2 -s 8000 -W 10 {HOST}"));
        there_and_back(&mut guest, HOST, &NC);
        if round < 2 {
            daemon = daemon.die_and_rise();
        }
    }
    // It dies under a stream, which goes on afterwards.
    let mut alive = None;
    back(&mut guest, HOST, &NC, || alive = Some(daemon.die_and_rise()));
    assert!(alive.is_some());
    guest.power_off();
}
