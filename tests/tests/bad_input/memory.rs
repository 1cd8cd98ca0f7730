//! Sizes of memory that no host or guest can have.

use crate::bench::{Bench, skipped};

#[track_caller]
fn refuses(value: &str, chain: &[&str]) {
    Bench::new().refuses(&["--memory", value], chain);
}

#[track_caller]
fn invalid(value: &str, message: &str) {
    refuses(value, &["Error parsing config", "Failed to validate config", message]);
}

#[test]
fn sizes_that_make_no_machine() {
    invalid("size=0", "Memory size must not be zero");
    invalid("size=4097", "Memory size is misaligned: 4097 is no multiple of the page size 4096");
    invalid(
        "size=65M,hugepages=on,hugepage_size=2M",
        "Memory size is misaligned: 68157440 is no multiple of the page size 2097152",
    );
    let outer = ["Error booting VM", "Memory configuration is not valid"];
    let small = "RAM size 0x100000 is not usable: it must be a multiple of 4 KiB and at least 2 MiB";
    refuses("size=1M", &[&outer[..], &[small]].concat());
    let bench = Bench::new();
    let large = "0x61a800000000 bytes of RAM do not fit in a physical address space of 40 bits";
    bench.refuses(
        &["--memory", "size=100000G", "--cpus", "max_phys_bits=40"],
        &[&outer[..], &[large]].concat(),
    );
}

#[test]
fn settings_that_contradict_each_other() {
    invalid("size=64M,hugepage_size=2M", "Huge page size specified but huge pages not enabled");
    invalid("size=64M,hugepages=on,hugepage_size=3M", "Huge page size is not power of 2: 3145728");
    invalid("size=64M,shared=on,mergeable=on", "Invalid to set both 'mergeable' and 'shared' for memory");
    let unsupported = ["Error parsing config", "Error parsing --memory", "hotplug_size is not supported yet"];
    refuses("size=64M,hotplug_size=1G", &unsupported);
}

#[test]
fn huge_pages_that_are_not_there() {
    let free = |kilobytes| {
        let file = format!("/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/free_hugepages");
        std::fs::read_to_string(file).map(|text| text.trim() != "0").unwrap_or_default()
    };
    if free(2048) {
        return skipped("a pool without huge pages", "this host has some free");
    }
    let hint = " for --memory hugepages=on; are there enough free huge pages of that size? \
                (/sys/kernel/mm/hugepages/hugepages-*kB/free_hugepages)";
    let map = format!("cannot map 67108864 bytes of guest memory{hint}");
    let chain =
        ["Error booting VM", "Cannot set up guest memory", &map, "Cannot allocate memory (os error 12)"];
    refuses("size=64M,hugepages=on,hugepage_size=2M", &chain);
    // No processor has pages of this size.
    let make = format!("cannot create shared memory of 67108864 bytes{hint}");
    let chain = ["Error booting VM", "Cannot set up guest memory", &make, "No such device (os error 19)"];
    refuses("size=64M,hugepages=on,hugepage_size=32M", &chain);
}

#[test]
fn more_than_the_host_vouches_for() {
    let policy = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    if policy.trim() == "1" {
        return skipped("reserve=on beyond the host's memory", "this host promises any amount");
    }
    let message = "cannot map 1096290402304 bytes of guest memory; the host does not vouch for that much with \
                   --memory reserve=on (CommitLimit and Committed_AS in /proc/meminfo)";
    let chain =
        ["Error booting VM", "Cannot set up guest memory", message, "Cannot allocate memory (os error 12)"];
    refuses("size=1T,reserve=on", &chain);
}
