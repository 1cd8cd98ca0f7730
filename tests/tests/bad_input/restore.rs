//! Restores that cannot be: each says why, leaves nothing behind, and does not stand in the way of the next.

use std::fs;

use serde_json::{Value, json};
use tests::programs;

use crate::bench::{Bench, root};
use crate::namespace::with_network;
use crate::saved::{GOOD, Snapshot, Story, machine};
use crate::server::Server;

/// What may be different of a disk and of a card.
const DISK_CAN: &str = "path, vhost_socket, direct, rate_limiter_config, rate_limit_group, queue_affinity, lock_granularity, disable_io_uring, disable_aio";
const NET_CAN: &str = "tap, ip, mask, mac, host_mac, rate_limiter_config, vhost_socket, vhost_mode, forward, host_access, deny, only, \
    dns, search, metadata";
/// What comes before the messages of the files.
const FILES: &str = "The snapshot cannot be read";

/// Runs a story in a network of its own, which ends with a good restore in the same program.
pub(crate) fn story(test: impl FnOnce(&Story) + Send) {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let story = Story::new();
        test(&story);
        story.ends_well();
    });
}

#[test]
fn requests_that_name_no_snapshot() {
    story(|story| {
        let parsing = "Error parsing --restore";
        story.refuses(&json!({}), 400, &[parsing, "source_url missing"]);
        for url in ["", "good", "http://host/good", "file://"] {
            let message = format!("source_url must be file:// and a directory, not {url:?}");
            story.refuses(&json!({"source_url": url}), 400, &[&message]);
        }
        fs::create_dir(story.server.bench.path("empty")).unwrap();
        let incomplete = "\"empty\" is not a complete snapshot: it has no state.json";
        story.refuses(
            &json!({"source_url": "file://none"}),
            404,
            &[FILES, "directory \"none\" does not exist"],
        );
        story.refuses(&json!({"source_url": "file://disk"}), 400, &[FILES, "\"disk\" is not a directory"]);
        story.refuses(&json!({"source_url": "file://empty"}), 400, &[FILES, incomplete]);
    });
}

#[test]
fn requests_that_contradict_themselves_or_mean_nothing() {
    story(|story| {
        let with = |more: Value| {
            let mut request = json!({"source_url": GOOD});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            request
        };
        let prefault = "'prefault' cannot be combined with 'memory_restore_mode=ondemand'";
        story.refuses(&with(json!({"prefault": true, "memory_restore_mode": "OnDemand"})), 400, &[prefault]);
        story.refuses(&with(json!({"iommufd_fd": 3})), 400, &["--restore iommufd_fd is not supported yet"]);
        let nets = json!({"net_fds": [{"id": "a", "num_fds": 0}, {"id": "a", "num_fds": 0}]});
        story.refuses(&with(nets), 409, &["Identifier a is not unique"]);
        let ask = |body: &Value, messages: &[&str]| {
            story.server.refuses("PUT", "vm.restore", body.to_string().as_bytes(), 400, messages);
            story.nothing_is_left();
        };
        let malformed = "Failed to deserialize JSON";
        ask(
            &with(json!({"memory_restore_mode": "Bogus"})),
            &[
                malformed,
                "unknown variant `Bogus`, expected one of `Copy`, `OnDemand`, `Mmap` at line 1 column 58",
            ],
        );
        ask(
            &with(json!({"resume": "yes"})),
            &[malformed, "invalid type: string \"yes\", expected a boolean at line 1 column 43"],
        );
    });
}

#[test]
fn overrides_that_would_break_the_guest() {
    story(|story| {
        let refuses = |more: Value, messages: &[&str]| {
            let mut request = json!({"source_url": GOOD});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            story.refuses(&request, 400, messages);
        };
        let disk = "of a restored --disk cannot be replaced, because the guest relies on it; what can: ";
        let net = "of a restored --net cannot be replaced, because the guest relies on it; what can: ";
        for (key, value) in [("readonly", json!(true)), ("num_queues", json!(2)), ("queue_size", json!(64))] {
            let message = format!("{key} {disk}{DISK_CAN}");
            refuses(
                json!({"disks": [{"id": "disk", key: value}]}),
                &["Cannot change device \"disk\"", &message],
            );
        }
        for (key, value) in [("num_queues", json!(4)), ("mtu", json!(1500)), ("offload_csum", json!(false))] {
            let message = format!("{key} {net}{NET_CAN}");
            refuses(json!({"net": [{"id": "net", key: value}]}), &["Cannot change device \"net\"", &message]);
        }
        let none = "The saved machine has no device \"none\" among its disks";
        story.refuses(&json!({"source_url": GOOD, "disks": [{"id": "none", "path": "x"}]}), 404, &[none]);
        refuses(
            json!({"disks": [{"path": "x"}]}),
            &["disks must be a list of JSON objects, each with the id of its device"],
        );
        refuses(
            json!({"disks": {"id": "disk"}}),
            &["disks must be a list of JSON objects, each with the id of its device"],
        );
        refuses(json!({"serial": []}), &["serial must be a JSON object of properties to replace"]);
        refuses(
            json!({"disks": [{"id": "disk", "path": 5}]}),
            &[
                "Cannot change device \"disk\"",
                "Cannot replace properties of --disk",
                "invalid type: integer `5`, expected path string at line 1 column 168",
            ],
        );
        refuses(
            json!({"rng": {"iommu": true}}),
            &["iommu of a restored --rng cannot be replaced, because the guest relies on it; what can: src"],
        );
        refuses(
            json!({"net": [{"id": "net", "mac": "zz"}]}),
            &[
                "Cannot change device \"net\"",
                "Cannot replace properties of --net",
                "\"zz\" is not a MAC address (expected six groups of two hex digits, as in 2e:11:22:33:44:55) at line 1 column 22",
            ],
        );
    });
}

#[test]
fn there_is_a_machine_already() {
    let server = Server::start();
    server.does("vm.create", &json!({"payload": {"kernel": programs::probe()}}));
    let body = json!({"source_url": GOOD}).to_string();
    let messages = ["Error from API", "The VM could not be restored", "VM is already created"];
    server.refuses("PUT", "vm.restore", body.as_bytes(), 405, &messages);
    assert_eq!(server.info()["state"], "Created");
    server.ends_well();
}

#[test]
fn snapshots_of_another_world() {
    story(|story| {
        let state = |change: &dyn Fn(&mut Value), message: &str| {
            story.refuses_with(|s| change(&mut s.state), 400, &[FILES, message]);
        };
        let reads = "\"bad/state.json\" has";
        state(
            &|s| s["format"] = "other".into(),
            &format!("{reads} format \"other\", and this program reads virga-snapshot"),
        );
        state(&|s| s["version"] = 2.into(), &format!("{reads} version 2, and this program reads 1"));
        state(&|s| s["version"] = 0.into(), &format!("{reads} version 0, and this program reads 1"));
        state(
            &|s| s["architecture"] = "aarch64".into(),
            &format!("{reads} architecture \"aarch64\", and this program reads x86_64"),
        );
        let unread = "The saved machine cannot be understood";
        let kind = "expected the state of kind \"machine\", found \"toaster\"";
        story.refuses_with(|s| s.state["machine"]["kind"] = "toaster".into(), 400, &[unread, kind]);
        let newer = "state \"machine\" has version 9, and this program knows versions up to 1";
        story.refuses_with(|s| s.state["machine"]["version"] = 9.into(), 400, &[unread, newer]);
    });
}

#[test]
fn processors_and_memory_that_this_host_or_machine_does_not_have() {
    story(|story| {
        let lacks = "This host's processor lacks what the guest was told it has: ";
        // One that processors of a kind that is not made any more had, and one that has no name.
        let named = format!("{lacks}avx512pf");
        let change = |s: &mut Snapshot| {
            let entries = s.cpu(1)["cpuid"].as_array_mut().unwrap();
            let leaf = entries.iter_mut().find(|e| e["function"] == 7 && e["index"] == 0).unwrap();
            leaf["ebx"] = (leaf["ebx"].as_u64().unwrap() | 1 << 26).into();
        };
        story.refuses_with(change, 400, &["Cannot restore vCPU 1", &named]);
        let unnamed = format!("{lacks}bit 22 of EBX of CPUID leaf 0x80000008, subleaf 0");
        let change = |s: &mut Snapshot| {
            let entries = s.cpu(0)["cpuid"].as_array_mut().unwrap();
            let leaf = entries.iter_mut().find(|e| e["function"] == 0x8000_0008u32).unwrap();
            leaf["ebx"] = (leaf["ebx"].as_u64().unwrap() | 1 << 22).into();
        };
        story.refuses_with(change, 400, &["Cannot restore vCPU 0", &unnamed]);

        let count = "The machine has 2 vCPUs, and the state of 1 was saved";
        story.refuses_with(|s| drop(s.machine()["cpus"].as_array_mut().unwrap().pop()), 400, &[count]);
        let count = "The machine has 3 vCPUs, and the state of 2 was saved";
        story.refuses_with(|s| s.config["cpus"] = json!({"boot_vcpus": 3, "max_vcpus": 3}), 400, &[count]);
        for size in [16 << 20, 64 << 20, 8_u64 << 30] {
            let mut bad = story.bad();
            bad.config["memory"]["size"] = size.into();
            bad.write();
            let (status, text) = story.server.ask("PUT", "vm.restore", br#"{"source_url":"file://bad"}"#);
            let message = "The snapshot has memory at [Span { base: 0, length: 2000000 }], and a machine of this description at [";
            assert!(status == 400 && text.contains(message), "{status} {text}");
            story.nothing_is_left();
        }
        let (status, text) = {
            let mut bad = story.bad();
            bad.machine()["phys_bits"] = 64.into();
            bad.write();
            story.server.ask("PUT", "vm.restore", br#"{"source_url":"file://bad"}"#)
        };
        let message = "The guest was told of 64 bits of physical address, and this host has ";
        assert!(status == 400 && text.contains(message), "{status} {text}");
        let few = "20 physical address bits are not supported: the machine needs between 33 and 52";
        let layout = "Memory configuration is not valid";
        story.refuses_with(|s| s.machine()["phys_bits"] = 20.into(), 400, &[layout, few]);
    });
}

#[test]
fn memory_that_does_not_come_back_that_way() {
    let mut shared = machine();
    shared.as_object_mut().unwrap().remove("net");
    shared["memory"]["shared"] = true.into();
    let story = Story::of(&shared);
    let mmap = "memory_restore_mode=mmap is for private memory, and this machine's is shared or in huge pages: use copy or ondemand";
    story.refuses(&json!({"source_url": GOOD, "memory_restore_mode": "Mmap"}), 400, &[mmap]);
    let huge = "memory_restore_mode=ondemand is for ordinary pages, and this machine's are huge: use copy";
    let mut bad = story.bad();
    bad.config["memory"]["hugepages"] = true.into();
    bad.write();
    story.refuses(&json!({"source_url": "file://bad", "memory_restore_mode": "OnDemand"}), 400, &[huge]);
    story.ends_well();
}

#[test]
fn the_command_line_says_the_same() {
    let bench = Bench::new();
    let refuses = |args: &[&str], chain: &[&str]| bench.refused(&mut bench.command(args), chain);
    refuses(
        &["--restore", "source_url=file://none"],
        &["Error restoring VM", FILES, "directory \"none\" does not exist"],
    );
    refuses(
        &["--restore", "bogus=1"],
        &["Error parsing config", "Error parsing --restore", "Unknown option: bogus"],
    );
    refuses(
        &["--restore", "source_url=file://none,memory_restore_mode=bogus"],
        &[
            "Error parsing config",
            "Error parsing --restore",
            "Unable to convert bogus for memory_restore_mode",
            "expected one of copy|ondemand|mmap",
        ],
    );
    let kernel =
        "--kernel describes a new machine and cannot be given with --restore, which goes on with a saved one";
    refuses(&["--restore", "source_url=file://none", "--kernel", "k"], &["Error parsing config", kernel]);
}
