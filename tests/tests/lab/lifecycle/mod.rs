//! The life of a Debian machine under load: devices come and go, it is paused often, saved, and brought back by other processes on
//! other disks and taps, each way that memory can come back, and rebooted. In the end every checksum is right.

mod partner;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use partner::Partner;
use serde_json::Value;
use tests::linux::{BzImage, Format, Linux, PATIENCE, Pvh, Running};
use tests::stock::Stock;
use tests::wire::Wire;
use tests::{ask, image, place};

/// Seconds that a guest may take to its part.
const WAIT: &str = "200";
/// Pauses under load.
const PAUSES: u32 = 50;
/// How long the machine lies saved: longer than the guest's watchdogs suffer a processor to be silent.
const ASLEEP: Duration = Duration::from_secs(25);
/// The network that all machines have.
const COMMON: usize = 9;
/// The disk that fio works on; small, so that it is written over often.
const WORK: u64 = 16 << 20;
/// The disk with a file system.
const FILES: u64 = 32 << 20;
/// fio writes the whole disk in random order, reads it back, each block with its checksum and its place, and begins anew.
const FIO: &str = "fio --name=work --filename=/dev/disk/by-id/virtio-work --direct=1 --ioengine=libaio --iodepth=8 --bs=16k \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0";
/// In the guest's log when something is wrong.
const TROUBLE: &str = "hung task|blocked for more|soft lockup|hard LOCKUP|rcu.*(stall|starved)|I/O error|WARNING:|BUG:|Oops\
    |TX timeout|timed out|EXT4-fs error";

/// The files under the disks of one machine, and the arguments that put them there.
struct Disks {
    work: PathBuf,
    files: PathBuf,
}

impl Disks {
    fn new(name: &str) -> Disks {
        let path = |what: &str| place::scratch().join(format!("{what}.{name}"));
        Disks { work: path("work"), files: path("files") }
    }

    /// A copy, as they are now.
    fn copy(&self, name: &str) -> Disks {
        let copy = Disks::new(name);
        for (from, to) in [(&self.work, &copy.work), (&self.files, &copy.files)] {
            std::fs::copy(from, to).expect("the scratch directory has room for a copy");
        }
        copy
    }

    fn remove(self) {
        for path in [self.work, self.files] {
            std::fs::remove_file(path).expect("a file of our own can be removed");
        }
    }

    /// The file system is whole.
    fn check(&self) {
        let output =
            Command::new("e2fsck").args(["-f", "-n"]).arg(&self.files).output().expect("e2fsck runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The value of `--disk`.
fn disk(id: &str, path: &Path, more: &str) -> String {
    format!("id={id},serial={id},image_type=raw,path={}{more}", path.display())
}

fn boot(kernel: &str, format: Format, cpus: &str, disks: &Disks) -> Running {
    let root = Stock::get().debian();
    for (path, length) in [(&disks.work, WORK), (&disks.files, FILES)] {
        let file = std::fs::File::create(path).expect("the scratch directory takes files");
        file.set_len(length).expect("it has room for a hole");
    }
    let made = Command::new("mkfs.ext4").arg("-q").arg(&disks.files).status().expect("mkfs.ext4 runs");
    assert!(made.success());
    Linux::new(kernel, format)
        .root_on_disk()
        .console_pty()
        .serial("pty")
        .cpus(cpus)
        .with(&["--disk", &disk("system", &root, ",readonly=on"), &disk("work", &disks.work, "")])
        .with(&["--net", "id=card,tap=tap0,mac=52:54:00:aa:bb:cc"])
        .boot()
}

/// Starts what is to go on through all that happens: a file system with files, fio, streams.
fn set_to_work(machine: &mut Running, disks: &Disks, streams: usize) -> Vec<Partner> {
    // It comes while the machine runs, and stays.
    machine.ask(&["add-disk", &disk("files", &disks.files, ""), "--wait", WAIT]);
    machine.until("[ -e /dev/disk/by-id/virtio-files ]");
    machine.sh("mount /dev/disk/by-id/virtio-files /mnt && head -c 8000000 /dev/urandom > /mnt/data");
    machine.sh("sha256sum /mnt/data > /mnt/sum && sync");
    machine.sh(&format!("{FIO} --rw=write --do_verify=0 --bs=256k > /run/fill"));
    machine.sh(&format!(
        "({FIO} --rw=randwrite --loops=1000000 > /run/fio 2>&1; echo status $? >> /run/fio) & echo $! > /run/fio.pid"
    ));
    machine.sh(&format!("cat > /run/stream.py << 'end of file'\n{}\nend of file", include_str!("stream.py")));
    let card = machine.sh("ls /sys/class/net | grep -v lo");
    for number in (0..streams).chain([COMMON]) {
        machine.sh(&format!("ip addr add {}/24 dev {card}", partner::guest(number)));
    }
    machine.sh(&format!("ip link set {card} up"));
    // Only the first machine restored finds its partner just as it was: the others' would meanwhile have tried again and again.
    (0..streams).map(|number| Partner::meet(machine, number, number == 0)).collect()
}

/// How many sectors fio has written.
fn written(machine: &mut Running) -> u64 {
    let text = machine
        .sh("awk '{ print $7 }' /sys/class/block/$(basename $(readlink /dev/disk/by-id/virtio-work))/stat");
    text.parse().unwrap_or_else(|_| machine.fail(&format!("no number: {text}")))
}

/// fio is at work, and has found nothing wrong.
#[track_caller]
fn fio_goes_on(machine: &mut Running) {
    let (before, begun) = (written(machine), Instant::now());
    while written(machine) < before + 1024 {
        if begun.elapsed() > PATIENCE {
            let said = machine
                .sh("cat /run/fio; cat /proc/$(pgrep -o fio)/stack /sys/block/*/stat /sys/block/*/inflight");
            machine.fail(&format!("fio stands still: {said}"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let said = machine.sh("cat /run/fio");
    assert!(!said.contains("verify") && !said.contains("status"), "{said}");
}

/// The files are what they were, read from the disk.
#[track_caller]
fn files_are_right(machine: &mut Running) {
    machine.sh("echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /mnt/sum");
}

/// Adds a disk and a card, uses them, and removes them.
fn come_and_go(machine: &mut Running) {
    let path = place::scratch().join("hot");
    image::make(&path, 5, (2 << 20) / image::SECTOR);
    machine.ask(&["add-disk", &disk("hot", &path, ""), "--wait", WAIT]);
    machine.until("[ -e /dev/disk/by-id/virtio-hot ]");
    machine.sh(
        "dd if=/dev/urandom of=/dev/disk/by-id/virtio-hot bs=64k count=8 seek=4 oflag=direct status=none",
    );
    let inside = machine.sh("dd if=/dev/disk/by-id/virtio-hot bs=64k iflag=direct status=none | sha256sum");
    let outside = Command::new("sh").args(["-c", "sha256sum < \"$0\""]).arg(&path).output();
    assert_eq!(inside, String::from_utf8_lossy(&outside.expect("sha256sum runs").stdout).trim());

    let tap = partner::tap("tap8", &[8]);
    machine.ask(&["add-net", "id=extra,tap=tap8,mac=52:54:00:aa:bb:dd", "--wait", WAIT]);
    let find = "grep -l 52:54:00:aa:bb:dd /sys/class/net/*/address | cut -d / -f 5";
    // Under the name that it keeps.
    machine.until(&format!("c=$({find}); [ -n \"$c\" -a \"$c\" != eth0 ]"));
    machine.sh(&format!("c=$({find}); ip addr add {}/24 dev $c && ip link set $c up", partner::guest(8)));
    machine.sh(&format!("ping -q -c 3 -i 0.2 -W 10 {}", partner::host(8)));
    for id in ["hot", "extra"] {
        machine.ask(&["remove-device", id, "--wait", WAIT]);
    }
    drop(tap);
    machine.until(&format!("[ ! -e /dev/disk/by-id/virtio-hot -a -z \"$({find})\" ]"));
}

/// The serial port, which the guest's shell has open, works in both directions.
#[track_caller]
fn serial_port_works(machine: &mut Running) {
    let path = machine.info()["config"]["serial"]["file"].as_str().map(PathBuf::from);
    let mut serial = Wire::terminal(&path.expect("vm.info tells the serial port's pty"));
    machine.sh("echo from the guest >&3");
    assert!(serial.wait_for("from the guest\n", PATIENCE).is_some(), "{}", serial.tail());
    serial.send(b"from the host\n");
    let (status, came) = machine.try_sh("timeout 30 head -n 1 <&3");
    if status != 0 || came != "from the host" {
        let more =
            "grep -E 'ttyS|CPU' /proc/interrupts; cat /proc/tty/driver/serial; timeout 5 cat <&3 | od -c";
        let more = machine.sh(more);
        machine.fail(&format!("through the serial port came {came:?}\n{more}"));
    }
}

fn pauses(machine: &mut Running) {
    let begun = Instant::now();
    for _ in 0..PAUSES {
        for what in ["vm.pause", "vm.resume"] {
            let answer = ask::ask(machine.socket(), "PUT", what, b"");
            assert_eq!(answer.as_ref().map(|(status, _)| *status), Some(204), "{what}: {answer:?}");
        }
    }
    println!("{PAUSES} pauses in {:.1} s", begun.elapsed().as_secs_f32());
}

/// The guest's log since that line.
fn log_since(machine: &mut Running, line: &str) -> String {
    machine.sh(&format!("dmesg | sed -n '/{line}/,$p'"))
}

/// The guest has nothing to complain of.
#[track_caller]
fn content(machine: &mut Running) {
    let (_, found) = machine.try_sh(&format!("dmesg | grep -E '{TROUBLE}'"));
    if !found.is_empty() {
        let log = machine.sh("dmesg | tail -n 60");
        machine.fail(&format!("the kernel complains: {found}\n---\n{log}"));
    }
}

fn seconds_up(machine: &mut Running) -> f64 {
    machine.sh("cut -d ' ' -f 1 /proc/uptime").parse().expect("a number of seconds")
}

/// The guest's clock is right, though nobody set it.
#[track_caller]
fn clock_is_right(machine: &mut Running) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs();
    let before = now();
    let date: u64 = machine.sh("date +%s").parse().expect("a number of seconds");
    // The question may take a while where much else runs.
    let right = before - 8..=now() + 8;
    assert!(right.contains(&date), "the guest has {date}, and it is in {right:?}");
}

/// What must be the same after a restore: devices, their names and places.
fn devices(machine: &mut Running) -> (String, Value) {
    let info = machine.info();
    (machine.sh("lspci -n | cut -d ' ' -f 1-3"), info["device_tree"].clone())
}

/// What of it must be the same after a reboot. The BARs of what came while the machine ran may then be elsewhere.
fn names(devices: &(String, Value)) -> (&str, Vec<(&str, &Value)>) {
    let tree = devices.1.as_object().expect("the devices are an object");
    (&devices.0, tree.iter().map(|(id, node)| (id.as_str(), &node["pci_bdf"])).collect())
}

/// Ends all work; every checksum is right.
fn end_work(machine: &mut Running, streams: Vec<Partner>) {
    machine.sh("touch /run/stop");
    for stream in streams {
        stream.end(machine);
    }
    machine.sh("pkill -INT fio; for i in $(seq 600); do grep -q status /run/fio && break; sleep 0.5; done");
    let said = machine.sh("cat /run/fio");
    assert!(said.contains("err= 0") && !said.contains("verify:"), "{said}");
    // Once more the whole disk, by another process.
    machine.sh(&format!("{FIO} --rw=read"));
    files_are_right(machine);
    machine.sh("umount /mnt");
}

/// The story, with these ways back, each with a network of its own. The last machine is rebooted.
fn tell(kernel: &str, format: Format, cpus: &str, modes: &[&str]) {
    let disks = Disks::new("first");
    let first_tap = partner::tap("tap0", &[0, 1, 2, COMMON]);
    let mut machine = boot(kernel, format, cpus, &disks);
    let mut streams = set_to_work(&mut machine, &disks, modes.len());
    come_and_go(&mut machine);
    pauses(&mut machine);
    fio_goes_on(&mut machine);
    for stream in &mut streams {
        stream.goes_on(&mut machine);
    }
    machine.sh("exec 3<> /dev/ttyS0; stty raw -echo <&3");
    serial_port_works(&mut machine);
    content(&mut machine);
    machine.sh("echo lifecycle: to be saved > /dev/kmsg");
    let before = devices(&mut machine);
    let up = seconds_up(&mut machine);
    let saved = machine.save();
    let pristine = disks.copy("saved");
    disks.remove();
    drop(first_tap);
    std::thread::sleep(ASLEEP);

    for ((number, mode), stream) in modes.iter().enumerate().zip(streams) {
        let disks = pristine.copy(mode);
        let name = format!("tap{}", number + 1);
        let _tap = partner::tap(&name, &[number, COMMON]);
        let begun = Instant::now();
        let mut machine = saved.restore(
            mode,
            &[
                "--disk",
                &format!("id=work,path={}", disks.work.display()),
                &format!("id=files,path={}", disks.files.display()),
                "--net",
                &format!("id=card,tap={name}"),
            ],
        );
        machine.sh("true");
        println!("{mode}: the guest answers after {:.1} s", begun.elapsed().as_secs_f32());
        clock_is_right(&mut machine);
        let now = seconds_up(&mut machine);
        assert!(now >= up + ASLEEP.as_secs_f64(), "up for {now} s, and for {up} s when saved");
        let mut stream = stream;
        stream.goes_on(&mut machine);
        fio_goes_on(&mut machine);
        machine.sh(&format!("ping -q -c 3 -i 0.2 -W 10 {}", partner::host(COMMON)));
        assert_eq!(machine.sh("head -c 64 /dev/hwrng | wc -c"), "64");
        serial_port_works(&mut machine);
        files_are_right(&mut machine);
        match number {
            0 => pauses(&mut machine),
            1 => come_and_go(&mut machine),
            _ => {}
        }
        content(&mut machine);
        let log = log_since(&mut machine, "lifecycle: to be saved");
        // The old kernel has no driver for the generation's identity.
        assert!(kernel == "6.1" || log.contains("reseeded due to virtual machine fork"), "{log}");
        assert_eq!(devices(&mut machine), before);
        let new = Partner::meet(&mut machine, COMMON, true);
        end_work(&mut machine, vec![stream, new]);
        if number + 1 < modes.len() {
            machine.power_off();
        } else {
            a_reboot(machine, &before);
        }
        disks.check();
        disks.remove();
    }
}

/// The machine that was restored boots anew, and is the same.
fn a_reboot(mut machine: Running, before: &(String, Value)) {
    let console = machine.console_path();
    machine.begin("reboot -f");
    machine.meet();
    assert_eq!(machine.console_path(), console);
    assert_eq!(names(&devices(&mut machine)), names(before));
    machine.sh("mount /dev/disk/by-id/virtio-files /mnt; sha256sum -c /mnt/sum");
    machine.sh("echo kept > /mnt/more; umount /mnt");
    machine.sh(&format!("{FIO} --rw=read"));
    content(&mut machine);
    machine.power_off();
}

#[test]
fn debian_with_the_current_kernel_lives_on() {
    tests::elsewhere!();
    tell("6.12", Pvh, "boot=2", &["copy", "ondemand"]);
}

#[test]
fn debian_with_the_old_kernel_on_one_processor_lives_on() {
    tests::elsewhere!();
    tell("6.1", BzImage, "boot=1", &["mmap"]);
}
