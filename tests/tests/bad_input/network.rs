//! Network devices that cannot be had. Each test has a network namespace of its own, and leaves no interface in it.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::bench::{Bench, root};
use crate::namespace::{has_interfaces, interfaces, ip, with_network};

/// The chain of errors about the first network device's tap.
fn about<'a>(inner: &[&'a str]) -> Vec<&'a str> {
    let outer =
        ["Error booting VM", "Cannot create device \"_net0\" (--net)", "cannot set up the tap of \"_net0\""];
    [&outer[..], inner].concat()
}

/// Like [`Bench::refused`], and no interface comes or goes.
#[track_caller]
fn refused(bench: &Bench, command: &mut Command, chain: &[&str]) {
    let before = interfaces();
    bench.refused(command, chain);
    has_interfaces(&before);
}

#[track_caller]
fn refuses(bench: &Bench, value: &str, inner: &[&str]) {
    refused(bench, &mut bench.machine(&["--net", value]), &about(inner));
}

/// Passes `file` on as descriptor `to`.
pub(crate) fn passing(command: &mut Command, file: &impl AsRawFd, to: RawFd) {
    let from = file.as_raw_fd();
    // SAFETY: dup2 is a plain system call, safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(from, to) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

/// Opens the tap `name`, with `flags` besides those of a tap.
pub(crate) fn tap(name: &str, flags: i32) -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun").expect("this host has taps");
    let mut request = [0u8; 40]; // struct ifreq
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&((libc::IFF_TAP | libc::IFF_NO_PI | flags) as u16).to_ne_bytes());
    // SAFETY: the request takes a struct ifreq.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, request.as_mut_ptr()) };
    assert_eq!(made, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file
}

#[test]
fn settings_of_a_network_device_that_cannot_work() {
    let bench = Bench::new();
    for (value, message) in [
        ("ip=10.0.0.1", "IP provided without a mask"),
        ("mask=255.0.0.0", "Mask provided without an IP"),
        ("mtu=100", "Provided MTU 100 is lower than 1280 (expected by VIRTIO specification)"),
        ("num_queues=1", "Number of queues (1) to virtio_net should be higher than 2"),
        ("num_queues=4", "Queue count (2) must not exceed boot vCPUs (1)"),
        ("queue_size=100", "Queue size must be a power of 2 no greater than 32768: 100"),
        ("fd=1", "Reserved fd number (<= 2): 1"),
        ("fd=[5,6]", "Number of queues (2) to virtio_net does not match the number of FDs (4)"),
        ("offload_csum=off", "\"offload_tso\" and \"offload_ufo\" depend on \"offload_csum\""),
    ] {
        let chain = ["Error parsing config", "Failed to validate config", "Invalid --net number 1", message];
        bench.refuses(&["--net", value], &chain);
    }
    let twice = "mac=52:54:00:00:00:01";
    let message = "MAC address 52:54:00:00:00:01 is given to two devices";
    bench.refuses(&["--net", twice, twice], &["Error parsing config", "Failed to validate config", message]);
}

#[test]
fn names_and_addresses_that_no_tap_can_have() {
    if !root("taps") {
        return;
    }
    let bench = Bench::new();
    with_network(|| {
        let long = "tap name \"sixteen-letters0\" is too long: 16 bytes, at most 15";
        refuses(&bench, "tap=sixteen-letters0", &[long]);
        refuses(&bench, "tap=a/b", &["\"a/b\" is not a valid interface name"]);
        refuses(&bench, "tap=lo", &["interface \"lo\" exists and is not a tap"]);
        let mac = ["cannot set the MAC address of \"t0\"", "Cannot assign requested address (os error 99)"];
        refuses(&bench, "tap=t0,host_mac=01:00:00:00:00:00", &mac);
        let mask = "255.0.255.0 is not a mask for the address 10.0.0.1 of \"t0\"";
        refuses(&bench, "tap=t0,ip=10.0.0.1,mask=255.0.255.0", &[mask]);
    });
}

#[test]
fn a_tap_in_use_and_one_of_the_wrong_kind() {
    if !root("taps in use") {
        return;
    }
    let bench = Bench::new();
    with_network(|| {
        let held = tap("busy", libc::IFF_VNET_HDR);
        let message = "tap \"busy\" is in use: another process has it open (only one at a time can)";
        refuses(&bench, "tap=busy", &[message]);
        drop(held);
        has_interfaces(&["lo".to_owned()]);
        ip(&["tuntap", "add", "dev", "single", "mode", "tap"]);
        let message = "interface \"single\" exists and is not a tap that takes 2 queue pairs (make it with: \
                       ip tuntap add dev single mode tap multi_queue)";
        let mut command = bench.machine(&["--cpus", "boot=2", "--net", "tap=single,num_queues=4"]);
        refused(&bench, &mut command, &about(&[message]));
        ip(&["tuntap", "add", "dev", "tun", "mode", "tun"]);
        refuses(&bench, "tap=tun", &["interface \"tun\" exists and is not a tap"]);
    });
}

#[test]
fn descriptors_that_are_no_tap() {
    let bench = Bench::new();
    bench.file("text", "text");
    refuses(&bench, "fd=77", &["fd 77 is not open", "Bad file descriptor (os error 9)"]);
    for path in ["text", "/dev/null"] {
        let file = File::open(bench.directory().join(path)).unwrap();
        let mut command = bench.machine(&["--net", "fd=77"]);
        passing(&mut command, &file, 77);
        refused(&bench, &mut command, &about(&["fd 77 is not a tap"]));
    }
    if !root("descriptors of taps") {
        return;
    }
    with_network(|| {
        let bare = tap("bare", 0);
        let mut command = bench.machine(&["--net", "fd=77"]);
        passing(&mut command, &bare, 77);
        refused(&bench, &mut command, &about(&["fd 77 (tap \"bare\") was opened without IFF_VNET_HDR"]));
        let mut command = bench.machine(&["--cpus", "boot=2", "--net", "fd=[77,77],num_queues=4"]);
        let twice = tap("twice", libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE);
        passing(&mut command, &twice, 77);
        refused(&bench, &mut command, &about(&["fd 77 was given twice"]));
    });
}

#[test]
fn a_tap_goes_when_something_else_fails() {
    if !root("taps of machines that fail") {
        return;
    }
    let bench = Bench::new();
    with_network(|| {
        ip(&["tuntap", "add", "dev", "mine", "mode", "tap"]);
        for tap in ["tap=new", "", "tap=mine"] {
            let mut command = bench.machine(&["--net", tap, "--serial", "file=none/serial"]);
            let chain = [
                "Error booting VM",
                "Cannot create device \"__serial\" (--serial)",
                "cannot open the console of the serial port",
                "cannot create none/serial",
                "No such file or directory (os error 2)",
            ];
            refused(&bench, &mut command, &chain);
        }
    });
}
