//! Hosts that lack KVM, taps or threads, or do not permit them.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use tests::{ask, limits};

use crate::bench::{Bench, root};
use crate::namespace::with_mounts;
use crate::server::Server;

const KVM: &str = "Failed to open hypervisor interface (is hypervisor interface available?)";

/// A machine on a host whose `/dev` was changed by `script`, and the program's last words.
#[track_caller]
fn refuses(script: &str, args: &[&str], chain: &[&str]) {
    let bench = Bench::new();
    bench.file("forbidden", "");
    std::fs::set_permissions(bench.path("forbidden"), std::fs::Permissions::from_mode(0o000)).unwrap();
    bench.refused(&mut with_mounts(script, &bench.machine(args)), chain);
}

/// A `/dev` with nothing but these in it.
fn only(devices: &[&str]) -> String {
    let keep = |name: &&str| format!("touch d/{name}; mount --bind /dev/{name} d/{name};");
    let kept: String = devices.iter().map(keep).collect();
    // Under a tmpfs, so that nothing of this is seen in the directory.
    format!(
        "mount -t tmpfs none /mnt; mkdir /mnt/d; cd /mnt; {kept} cd - >/dev/null; mount --rbind /mnt/d /dev"
    )
}

#[test]
fn a_host_without_kvm() {
    if !root("a host without /dev/kvm") {
        return;
    }
    let vendor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let module = if vendor.contains("AuthenticAMD") || vendor.contains("HygonGenuine") {
        "kvm_amd"
    } else if vendor.contains("GenuineIntel") {
        "kvm_intel"
    } else {
        "kvm_amd or kvm_intel"
    };
    let missing = format!("/dev/kvm does not exist: load KVM (modprobe {module})");
    refuses(&only(&["null", "urandom"]), &[], &[KVM, &missing]);
}

#[test]
fn a_kvm_that_may_not_be_used() {
    if !root("a /dev/kvm without permission") {
        return;
    }
    let denied = "no permission to open /dev/kvm: add the user to the group that owns it \
                  (usermod -aG kvm USER, then log in again)";
    refuses("mount --bind forbidden /dev/kvm", &[], &[KVM, denied]);
}

#[test]
fn a_kvm_that_is_something_else() {
    if !root("a /dev/kvm that is something else") {
        return;
    }
    let other = "/dev/kvm speaks version -1 of the KVM interface, 12 is needed: is it really KVM?";
    refuses("mount --bind /dev/null /dev/kvm", &[], &[KVM, other]);
}

#[test]
fn a_host_without_taps() {
    if !root("a host without /dev/net/tun") {
        return;
    }
    let outer =
        ["Error booting VM", "Cannot create device \"_net0\" (--net)", "cannot set up the tap of \"_net0\""];
    let missing = [
        "cannot open /dev/net/tun: this kernel has no tap driver (try: modprobe tun)",
        "No such file or directory (os error 2)",
    ];
    refuses("mount -t tmpfs none /dev/net", &["--net", "tap=t0"], &[&outer[..], &missing].concat());
    let denied = ["cannot open /dev/net/tun", "Permission denied (os error 13)"];
    refuses("mount --bind forbidden /dev/net/tun", &["--net", "tap=t0"], &[&outer[..], &denied].concat());
}

#[test]
fn a_user_who_may_not_make_taps() {
    if !root("a user without CAP_NET_ADMIN") {
        return;
    }
    let bench = Bench::new();
    let command = bench.machine(&["--net", "tap=virga-test0"]);
    let mut unprivileged = Command::new("setpriv");
    unprivileged.args(["--bounding-set", "-net_admin"]).arg(command.get_program()).args(command.get_args());
    unprivileged.current_dir(bench.directory());
    let chain = [
        "Error booting VM",
        "Cannot create device \"_net0\" (--net)",
        "cannot set up the tap of \"_net0\"",
        "no permission for tap \"virga-test0\": cannot create or open it without CAP_NET_ADMIN \
         (or give an existing tap of your own, or an open one by fd)",
    ];
    bench.refused(&mut unprivileged, &chain);
}

#[test]
fn a_host_without_a_thread_for_another_connection() {
    let server = Server::start();
    // It takes connections before it has the thread that answers.
    assert_eq!(server.ask("GET", "vmm.ping", b"").0, 200);
    let ping = ask::request("GET", "vmm.ping", b"");
    // Less than a thread's stack, and more than an answer takes.
    limits::leave_memory(server.id(), 300 << 10);
    // Stacks of connections that have ended serve some more.
    let mut held = Vec::new();
    let refused = (0..10).find_map(|_| {
        let mut stream = UnixStream::connect(server.bench.path("s")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let answer = ask::exchange_on(&mut stream, &ping).expect("it is answered");
        held.push(stream);
        (answer.0 != 200).then_some(answer)
    });
    assert_eq!(refused, Some((503, "[\"The host has no thread for another connection\"]".to_owned())));
    limits::set(server.id(), libc::RLIMIT_AS, None);
    assert_eq!(server.ask("GET", "vmm.ping", b"").0, 200);
    drop(held);
    server.ends_well();
}
