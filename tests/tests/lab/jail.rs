//! The limits of a jail where control groups are of version 2, as on most hosts.

use std::fs;

use tests::jailed::{Jailed, no_group_is_left};
use tests::linux::{Linux, Pvh, Running};
use tests::permissions::{own_mounts, own_root};
use tests::programs;

const LIMITS: &str = "memory=1G,cpus=1.5,pids=100";

/// A machine in a jail with limits, which are its group's, as is what it uses.
fn limited() -> (Running, Jailed) {
    let mut guest = Linux::new("6.12", Pvh).with(&["--jail", LIMITS]).start();
    assert_ne!(guest.info()["state"], "Created");
    let jail = Jailed::find(guest.id());
    let (old, group) = jail.group("memory");
    assert!(!old, "{} is of version 1", group.display());
    let read = |name: &str| {
        let text = fs::read_to_string(group.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        text.trim().to_owned()
    };
    assert_eq!(read("memory.max"), (1u64 << 30).to_string());
    assert_eq!(read("cpu.max"), "150000 100000");
    assert_eq!(read("pids.max"), "100");
    assert_eq!(read("cgroup.procs"), jail.inner.to_string());
    let number = |name: &str| read(name).parse::<u64>().expect("a number");
    assert!(number("memory.current") > 1 << 20 && number("pids.current") > 2);
    (guest, jail)
}

/// Kills a process of the jail, with which the others end.
fn kill(mut guest: Running, jail: Jailed, process: u32) {
    // SAFETY: to a process of our own child's, which has not been waited for.
    assert_eq!(unsafe { libc::kill(process.cast_signed(), libc::SIGKILL) }, 0);
    jail.all_end();
    assert!(!guest.wait_for_end().success());
}

#[test]
fn limits_of_a_jail_hold_in_control_groups_of_version_2_and_go_with_it() {
    tests::elsewhere!();
    // Found before the root changes: in that of the lab's commands nobody is given a user namespace.
    assert!(programs::cloud_hypervisor().exists());
    own_mounts();
    own_root();
    let lists = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !["memory", "cpu", "pids"].iter().all(|name| lists.split_whitespace().any(|listed| listed == *name)) {
        assert!(std::env::var_os("VIRGA_IN_LAB").is_none(), "the lab has {lists:?}");
        println!("SKIPPED: this host has no control groups of version 2 with controllers");
        return;
    }
    let (guest, jail) = limited();
    kill(guest, jail, jail.inner);
    no_group_is_left(jail.outer);

    // Who is to remove the group cannot. It limits nobody any more, and goes when the next jail is made.
    let (guest, killed) = limited();
    kill(guest, killed, killed.outer);
    let (mut guest, jail) = limited();
    no_group_is_left(killed.outer);
    guest.terminate();
    guest.ends_well();
    jail.all_end();
    no_group_is_left(jail.outer);
}
