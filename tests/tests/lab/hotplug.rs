//! Disks and cards that a stock kernel sees come and go, through its own ACPI hotplug driver, on two PCI segments.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::image;
use tests::linux::{BzImage, Format, Linux, Pvh, Running};
use tests::place;

const HOST: &str = "192.168.249.1";
const GUEST: &str = "192.168.249.2";

/// Seconds that a guest may take to its part.
const WAIT: &str = "200";

const SECTORS: u64 = (4 << 20) / image::SECTOR;

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_string()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Adds a device, waits until the guest uses it, and tells its name and its address.
fn add(guest: &mut Running, command: &str, keys: &str) -> (String, String) {
    let info = json(&guest.ask(&[command, keys, "--wait", WAIT]));
    let text = |key: &str| info[key].as_str().expect("a text").to_owned();
    (text("id"), text("bdf"))
}

/// Waits until the guest's disk or card is there, or is not.
fn wait_in_guest(guest: &mut Running, path: &str, there: bool) {
    let test = if there { "-e" } else { "! -e" };
    guest.sh(&format!(
        "for i in $(seq 1 600); do [ {test} {path} ] && break; usleep 100000; done; [ {test} {path} ]"
    ));
}

/// A disk comes, is read and written, and goes, asked for or not.
fn a_disk(guest: &mut Running, segment: u16, asked: bool) {
    let path = place::scratch().join(format!("hot{segment}"));
    image::make(&path, 3, SECTORS);
    let keys = format!("path={},image_type=raw,pci_segment={segment}", path.display());
    let (id, bdf) = add(guest, "add-disk", &keys);
    wait_in_guest(guest, "/dev/vda", true);
    let device = guest.sh("basename $(dirname $(readlink -f /sys/block/vda/device))");
    assert_eq!(device, bdf);
    let sum = guest.sh("sha256sum < /dev/vda | cut -d ' ' -f 1");
    assert_eq!(sum, sha256(&path));
    guest.sh(
        "dd if=/dev/urandom of=/dev/vda bs=64k count=16 seek=8 conv=fsync; echo 3 > /proc/sys/vm/drop_caches",
    );
    assert_eq!(guest.sh("sha256sum < /dev/vda | cut -d ' ' -f 1"), sha256(&path));

    guest.ask(&["resize-disk", "--disk", &id, "--size", "6M"]);
    guest
        .sh("for i in $(seq 1 600); do [ $(cat /sys/block/vda/size) = 12288 ] && break; usleep 100000; done");
    assert_eq!(guest.sh("cat /sys/block/vda/size"), "12288");
    guest.sh(
        "dd if=/dev/urandom of=/dev/vda bs=64k count=8 seek=88 conv=fsync; echo 3 > /proc/sys/vm/drop_caches",
    );
    assert_eq!(guest.sh("sha256sum < /dev/vda | cut -d ' ' -f 1"), sha256(&path));

    if asked {
        guest.ask(&["remove-device", &id, "--wait", WAIT]);
    } else {
        // By its address: names of slots need not be their numbers where there are several segments.
        let place = bdf.trim_end_matches(".0");
        guest.sh(&format!(
            "s=$(grep -lx {place} /sys/bus/pci/slots/*/address) && echo 0 > $(dirname $s)/power"
        ));
        guest.ask(&["wait-device", &id, "--until", "removed", "--timeout", WAIT]);
    }
    wait_in_guest(guest, "/dev/vda", false);
    let info = guest.info();
    assert!(info["device_tree"].get(&id).is_none() && info["config"].get("disks").is_none(), "{info}");
    // Nobody holds it any more.
    let held = std::fs::read_dir(format!("/proc/{}/fd", guest.id())).expect("the VMM runs");
    let targets = held.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    assert!(!targets.into_iter().any(|target| target == path), "{} is still open", path.display());
}

/// A card comes, reaches the host, and goes.
fn a_card(guest: &mut Running, segment: u16) {
    let keys = format!("ip={HOST},mask=255.255.255.0,mac=52:54:00:aa:bb:cc,pci_segment={segment}");
    let (id, bdf) = add(guest, "add-net", &keys);
    wait_in_guest(guest, "/sys/class/net/eth0", true);
    assert_eq!(guest.sh("basename $(dirname $(readlink -f /sys/class/net/eth0/device))"), bdf);
    guest.sh(&format!("ip addr add {GUEST}/24 dev eth0; ip link set eth0 up"));
    guest.sh(&format!("ping -c 3 -i 0.2 -W 10 {HOST}"));
    let tap = guest.info()["config"]["net"][0]["tap"].as_str().expect("a tap").to_owned();
    assert!(place_has(&tap), "{tap} is not there");
    guest.ask(&["remove-device", &format!("_virtio-pci-{id}"), "--wait", WAIT]);
    wait_in_guest(guest, "/sys/class/net/eth0", false);
    assert!(!place_has(&tap), "{tap} is left");
}

/// Whether there is such an interface in the story's own network.
fn place_has(tap: &str) -> bool {
    Command::new("ip").args(["link", "show", tap]).output().expect("ip runs").status.success()
}

fn tell(kernel: &str, format: Format) {
    let mut guest =
        Linux::new(kernel, format).cpus("boot=2").with(&["--platform", "num_pci_segments=2"]).boot();
    let slots = guest.sh("ls /sys/bus/pci/slots | wc -l");
    assert_eq!(slots, "64");
    a_disk(&mut guest, 0, true);
    a_disk(&mut guest, 1, true);
    a_card(&mut guest, 0);
    a_card(&mut guest, 1);
    a_disk(&mut guest, 0, false);
    a_disk(&mut guest, 1, false);
    guest.power_off();
}

#[test]
fn an_old_kernel_takes_up_and_lets_go_of_what_comes() {
    tests::elsewhere!();
    tell("6.1", BzImage);
}

#[test]
fn a_current_kernel_takes_up_and_lets_go_of_what_comes() {
    tests::elsewhere!();
    tell("6.12", Pvh);
}
