//! A Debian machine on every kind of disk at once, each written, verified and written over again by fio while disks are resized, limited, added and
//! removed, a daemon is killed, and the machine is saved and brought back.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tests::daemon::Daemon;
use tests::linux::{Linux, PATIENCE, Pvh, Running};
use tests::place;
use tests::stock::Stock;
use tests::storage_daemon::StorageDaemon;

/// Of each disk that fio works on; small, so that it is written over often.
const SIZE: u64 = 16 << 20;
/// Seconds that a guest may take to its part.
const WAIT: &str = "200";
/// Disks that fio works on: a name, and the device in the guest.
const WORK: [(&str, &str); 4] = [
    ("raw", "/dev/disk/by-id/virtio-raw"),
    ("ours", "/dev/disk/by-id/virtio-ours"),
    // The serial number that QEMU gives all of its.
    ("theirs", "/dev/disk/by-id/virtio-vhost_user_blk"),
    ("pmem", "/dev/pmem0"),
];

fn empty(name: &str) -> PathBuf {
    let path = place::scratch().join(name);
    File::create(&path)
        .and_then(|file| file.set_len(SIZE))
        .expect("the scratch directory has room for a hole");
    path
}

#[track_caller]
fn qemu_img(arguments: &[&str]) {
    let output =
        Command::new("qemu-img").args(arguments).output().expect("qemu-img is on the PATH of the lab");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&said));
}

/// The command that writes the whole of a disk in random order, reads it back, each block with its checksum and its place.
fn fio(name: &str, device: &str, more: &str) -> String {
    format!(
        "fio --name={name} --filename={device} --size={SIZE} --direct=1 --ioengine=libaio --iodepth=4 --bs=16k \
         --verify=crc32c --verify_fatal=1 --verify_state_save=0 {more}"
    )
}

/// Sets fio to work on a disk, for ever.
fn set_to_work(machine: &mut Running, name: &str, device: &str) {
    machine.sh(&format!("{} > /run/fill.{name}", fio(name, device, "--rw=write --do_verify=0 --bs=256k")));
    let job = fio(name, device, "--rw=randwrite --loops=1000000");
    machine.sh(&format!("({job} > /run/fio.{name} 2>&1; echo status $? >> /run/fio.{name}) &"));
}

/// Sectors written to a disk so far.
#[track_caller]
fn written(machine: &mut Running, device: &str) -> u64 {
    let text = machine
        .sh(&format!("awk '{{ print $7 }}' /sys/class/block/$(basename $(readlink -f {device}))/stat"));
    text.parse().unwrap_or_else(|_| machine.fail(&format!("no number: {text}")))
}

/// Every fio is at work, and has found nothing wrong.
#[track_caller]
fn all_goes_on(machine: &mut Running) {
    for (name, device) in WORK {
        let (before, begun) = (written(machine, device), Instant::now());
        while written(machine, device) < before + 1024 {
            if begun.elapsed() > PATIENCE {
                let said = machine.sh(&format!("cat /run/fio.{name}; dmesg | tail -n 20"));
                machine.fail(&format!("fio on {name} stands still: {said}"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let said = machine.sh(&format!("cat /run/fio.{name}"));
        assert!(!said.contains("verify") && !said.contains("status"), "{name}: {said}");
    }
}

/// Waits until the guest sees a disk's size, in sectors.
#[track_caller]
fn has_grown(machine: &mut Running, device: &str, bytes: u64) {
    machine.until(&format!("[ $(blockdev --getsz {device}) = {} ]", bytes / 512));
}

#[test]
fn debian_trusts_disks_of_every_kind() {
    tests::elsewhere!();
    let root = place::scratch().join("root.qcow2");
    let base = Stock::get().debian();
    let backing = base.display().to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &backing, &root.display().to_string()]);
    let [raw, ours, theirs, pmem] = ["raw", "ours", "theirs", "pmem"].map(empty);
    let [our_socket, their_socket] = ["ours.socket", "theirs.socket"].map(|name| place::scratch().join(name));
    let mut daemon = Daemon::start(&ours, &our_socket, ",num_queues=2,serial=ours");
    let storage = StorageDaemon::start(&theirs, &their_socket, 1);
    let mut machine = Linux::new("6.12", Pvh)
        .root_on_disk()
        .option("rw")
        .console_pty()
        .cpus("boot=2")
        .memory("size=512M,shared=on")
        .with(&["--disk", &format!("id=root,path={},image_type=qcow2,backing_files=on", root.display())])
        .with(&[&format!("id=raw,serial=raw,path={},image_type=raw", raw.display())])
        .with(&[&format!("id=ours,vhost_user=on,socket={},num_queues=2", our_socket.display())])
        .with(&[&format!("id=theirs,vhost_user=on,socket={}", their_socket.display())])
        .with(&["--pmem", &format!("id=pmem,file={}", pmem.display())])
        .boot();
    machine.sh("modprobe virtio_pmem; modprobe nd_pmem");
    // Such a device does not count what is written unless asked to.
    machine.until("[ -e /sys/block/pmem0/queue/iostats ]");
    machine.sh("echo 1 > /sys/block/pmem0/queue/iostats");
    for (_, device) in WORK {
        machine.until(&format!("[ -b $(readlink -f {device}) ]"));
    }
    for (name, device) in WORK {
        set_to_work(&mut machine, name, device);
    }
    machine.sh("head -c 20000000 /dev/urandom > /root/data; sha256sum /root/data > /root/sum; sync");
    all_goes_on(&mut machine);

    // They grow, ours by the daemon's hand.
    machine.ask(&["resize-disk", "--disk", "raw", "--size", &(2 * SIZE).to_string()]);
    has_grown(&mut machine, WORK[0].1, 2 * SIZE);
    File::options().write(true).open(&ours).and_then(|file| file.set_len(2 * SIZE)).expect("the image grows");
    daemon.signal(libc::SIGHUP);
    has_grown(&mut machine, WORK[1].1, 2 * SIZE);

    // One comes, with a limit, and goes.
    let limited = empty("limited");
    let limits = "bw_size=1048576,bw_refill_time=1000,ops_size=100,ops_refill_time=1000";
    let disk = format!("id=limited,serial=limited,path={},image_type=raw,{limits}", limited.display());
    machine.ask(&["add-disk", &disk, "--wait", WAIT]);
    machine.until("[ -e /dev/disk/by-id/virtio-limited ]");
    let device = "/dev/disk/by-id/virtio-limited";
    let begun = Instant::now();
    let said = machine.sh(&fio("limited", device, "--rw=write --size=3M"));
    assert!(said.contains("err= 0"), "{said}");
    let took = begun.elapsed();
    // 3 MiB out and 3 MiB back at 1 MiB a second, of which the first is in the bucket.
    assert!(took >= Duration::from_secs(4), "a limited disk took {took:?}");
    machine.ask(&["remove-device", "limited", "--wait", WAIT]);
    all_goes_on(&mut machine);

    for round in 1..=3 {
        std::thread::sleep(Duration::from_millis(300 * round));
        daemon = daemon.die_and_rise();
        all_goes_on(&mut machine);
    }

    let saved = machine.save();
    let mut machine = saved.restore("copy", &[]);
    all_goes_on(&mut machine);
    machine.sh("echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /root/sum");
    daemon = daemon.die_and_rise();
    all_goes_on(&mut machine);

    machine.sh("pkill -INT fio; for i in $(seq 600); do pgrep -x fio > /dev/null || break; sleep 0.5; done");
    for (name, device) in WORK {
        let said = machine.sh(&format!("cat /run/fio.{name}"));
        assert!(said.contains("err= 0") && !said.contains("verify:"), "{name}: {said}");
        // Once more the whole disk, by another process.
        machine.sh(&fio(name, device, "--rw=read"));
    }
    let (_, trouble) =
        machine.try_sh("dmesg | grep -E 'I/O error|WARNING:|BUG:|Oops|EXT4-fs error|hung task'");
    assert_eq!(trouble, "");
    machine.power_off();
    drop((daemon, storage));
    qemu_img(&["check", "-q", &root.display().to_string()]);
}
