//! The contract, held against the definitions: nothing that it names is unknown here, and nothing is ignored in silence.
//!
//! The lists in `tests/data` are extracts of the contract.

use std::collections::BTreeMap;

use catalog::{CpusSpec, MemorySpec, PlatformSpec, VmSpec, flags};
use platform::debug_console::DebugConsoleSpec;
use platform::serial::SerialSpec;
use serde_json::{Value, json};
use spec::{Kind, RateLimitGroupSpec, Spec};
use virtio_devices::block::DiskSpec;
use virtio_devices::console::ConsoleSpec;
use virtio_devices::net::NetSpec;
use virtio_devices::pmem::PmemSpec;
use virtio_devices::rng::RngSpec;
use virtio_devices::vsock::VsockSpec;

#[test]
fn every_key_of_the_contract_is_known_to_its_flag() {
    let known: BTreeMap<&str, Vec<&str>> = BTreeMap::from([
        ("cpus", flags::key_names::<CpusSpec>()),
        ("memory", flags::key_names::<MemorySpec>()),
        ("disk", flags::key_names::<DiskSpec>()),
        ("net", flags::key_names::<NetSpec>()),
        ("rng", flags::key_names::<RngSpec>()),
        ("pmem", flags::key_names::<PmemSpec>()),
        ("console", flags::key_names::<ConsoleSpec>()),
        ("vsock", flags::key_names::<VsockSpec>()),
        ("serial", flags::key_names::<SerialSpec>()),
        ("debug-console", flags::key_names::<DebugConsoleSpec>()),
        ("platform", flags::key_names::<PlatformSpec>()),
        ("rate-limit-group", flags::key_names::<RateLimitGroupSpec>()),
    ]);
    let mut seen = 0;
    for line in include_str!("data/keys.txt").lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split(' ');
        let flag = words.next().unwrap();
        for key in words {
            assert!(known[flag].contains(&key), "--{flag} {key}");
            seen += 1;
        }
    }
    assert!(seen > 100, "the list is cut: {seen}");
}

#[test]
fn every_flag_of_the_contract_is_known() {
    let command = VmSpec::add_flags(clap::Command::new("x"), catalog::flags::Purpose::Help);
    let known: Vec<&str> = command.get_arguments().filter_map(|a| a.get_long()).collect();
    // Those of the process itself are the business of the program's own test.
    for flag in "balloon cmdline console cpus debug-console device disk firmware fs fw-cfg-config gdb generic-vhost-user \
                 host-data igvm initramfs ivshmem kernel landlock landlock-rules memory memory-zone net numa pci-segment \
                 platform pmem pvmemcontrol pvpanic rate-limit-group restore rng rtc serial tpm user-device vdpa vsock \
                 watchdog dbus-service-name dbus-object-path dbus-system-bus"
        .split_whitespace()
    {
        assert!(known.contains(&flag), "--{flag}");
    }
}

/// A body that says one thing, of the group named `at`.
fn body(at: &str, property: &str, value: &Value) -> Value {
    let mut group = match at {
        "console" | "serial" | "debug_console" => json!({"mode": "Null"}),
        "payload" => json!({"kernel": "/k"}),
        "disks" => json!({"path": "/d"}),
        _ => json!({}),
    };
    group[property] = value.clone();
    match at {
        "" => group,
        "disks" | "net" => json!({at: [group]}),
        _ => json!({at: group}),
    }
}

#[test]
fn every_property_of_the_contract_is_understood_or_refused_and_none_ignored() {
    let groups: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_str(include_str!("data/properties.json")).unwrap();
    for (at, properties) in &groups {
        for (property, value) in properties {
            let asked = body(at, property, value);
            let name = format!("{at}.{property}");
            if name == "net.fds" {
                // Numbers say nothing about our descriptors; they are dropped with a warning, as the contract has it.
                continue;
            }
            let mut spec: VmSpec = match serde_json::from_value(asked.clone()) {
                Ok(spec) => spec,
                Err(e) => panic!("{asked}: {e}"),
            };
            let told = serde_json::to_value(&spec).unwrap();
            let group = if at.is_empty() { &told } else { &told[at] };
            let group = if group.is_array() { &group[0] } else { group };
            if group[property] == *value {
                continue;
            }
            // Not understood: then it is refused, whatever the rest of the machine is.
            spec.payload.get_or_insert_default().kernel = Some("/k".into());
            let e = spec.check().expect_err(&name);
            assert_eq!(e.kind(), Kind::Unsupported, "{name}: {e:?}");
            let reason = e.chain().pop().unwrap_or_default();
            assert!(reason.ends_with("is not supported yet"), "{name}: {reason}");
        }
    }
}

/// Whether everything in `less` is in `more`.
fn missing(less: &Value, more: &Value, path: &str, found: &mut Vec<String>) {
    match (less, more) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                let path = format!("{path}.{key}");
                match b.get(key) {
                    Some(other) => missing(value, other, &path, found),
                    None => found.push(path),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (a, b) in a.iter().zip(b) {
                missing(a, b, path, found);
            }
        }
        _ if less == more => {}
        _ => found.push(format!("{path}: {less} is {more}")),
    }
}

#[test]
fn what_vm_info_tells_can_be_given_to_vm_create_and_comes_back_whole() {
    let example: Value = serde_json::from_str(include_str!("data/vm-info-config.json")).unwrap();
    let spec: VmSpec = serde_json::from_value(example.clone()).unwrap();
    let told = serde_json::to_value(&spec).unwrap();
    let mut found = Vec::new();
    missing(&example, &told, "", &mut found);
    // What is not supported is not told, unless clients rely on it.
    assert_eq!(found, [".cpus.kvm_hyperv"]);
    let again: VmSpec = serde_json::from_value(told).unwrap();
    assert_eq!(again, spec);
}

fn refusal(text: &str) -> (Kind, Vec<String>) {
    let mut value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    if value.get("payload").is_none() {
        value["payload"] = json!({"kernel": "/k"});
    }
    let spec: VmSpec = serde_json::from_value(value).unwrap_or_else(|e| panic!("{text}: {e}"));
    let e = spec.check().expect_err(text);
    (e.kind(), e.chain())
}

#[test]
fn what_cannot_work_is_refused_in_the_words_of_the_contract() {
    const OFFLOADS: &str = "\"offload_tso\" and \"offload_ufo\" depend on \"offload_csum\"";
    const GROUP: &str = "Invalid rate-limiter group";
    const QUEUE: &str = "Queue size must be a power of 2 no greater than 32768: ";
    for (body, message) in [
        // Rows 6 to 8.
        (r#"{"console":{"mode":"File"}}"#, "Path missing when using file console mode"),
        (r#"{"serial":{"mode":"File"}}"#, "Path missing when using file console mode"),
        (r#"{"cpus":{"boot_vcpus":4,"max_vcpus":2}}"#, "Max CPUs (2) lower than boot CPUs (4)"),
        (
            r#"{"cpus":{"boot_vcpus":1,"max_vcpus":8193}}"#,
            "Too many CPUs: specified 8193 but 8192 is the limit",
        ),
        // Rows 9, 14.
        (r#"{"rate_limit_groups":[{"id":""}]}"#, GROUP),
        (r#"{"rate_limit_groups":[{"id":"g","rate_limiter_config":{}}]}"#, GROUP),
        (r#"{"disks":[{"path":"/d","rate_limit_group":"g"}]}"#, GROUP),
        (
            r#"{"rate_limit_groups":[{"id":"g","rate_limiter_config":{"ops":{"size":1,"refill_time":1}}}],
               "disks":[{"path":"/d","rate_limit_group":"g","rate_limiter_config":{"ops":{"size":1,"refill_time":1}}}]}"#,
            GROUP,
        ),
        // Rows 15 to 17, 19.
        (r#"{"disks":[{"path":"/d","num_queues":2}]}"#, "Queue count (2) must not exceed boot vCPUs (1)"),
        (r#"{"net":[{"num_queues":4}]}"#, "Queue count (2) must not exceed boot vCPUs (1)"),
        (r#"{"disks":[{"path":"/d","queue_size":0}]}"#, &format!("{QUEUE}0")),
        (r#"{"disks":[{"path":"/d","queue_size":100}]}"#, &format!("{QUEUE}100")),
        (r#"{"net":[{"queue_size":65535}]}"#, &format!("{QUEUE}65535")),
        (r#"{"disks":[{"path":"/d","queue_size":2}]}"#, "Block queue size must be greater than 2: 2"),
        (
            r#"{"disks":[{"path":"/d","serial":"123456789012345678901"}]}"#,
            "Block device serial length (21) exceeds maximum allowed length (20)",
        ),
        // Rows 20, 23 to 25.
        (r#"{"net":[{"num_queues":1}]}"#, "Number of queues (1) to virtio_net should be higher than 2"),
        (r#"{"net":[{"num_queues":0}]}"#, "Number of queues (0) to virtio_net should be higher than 2"),
        (
            r#"{"net":[{"mtu":1279}]}"#,
            "Provided MTU 1279 is lower than 1280 (expected by VIRTIO specification)",
        ),
        (r#"{"net":[{"offload_csum":false}]}"#, OFFLOADS),
        (r#"{"net":[{"offload_csum":false,"offload_tso":false}]}"#, OFFLOADS),
        (r#"{"net":[{"mask":"255.0.0.0"}]}"#, "Mask provided without an IP"),
        (r#"{"net":[{"ip":"10.0.0.1"}]}"#, "IP provided without a mask"),
        // Row 26.
        (
            r#"{"cpus":{"boot_vcpus":1,"topology":{"threads_per_core":1,"cores_per_die":0,"dies_per_package":1,"packages":1}}}"#,
            "No part of the CPU topology can be zero",
        ),
        (
            r#"{"cpus":{"boot_vcpus":3,"topology":{"threads_per_core":3,"cores_per_die":1,"dies_per_package":1,"packages":1}}}"#,
            "CPU topology supports at most 2 threads per core",
        ),
        (
            r#"{"cpus":{"boot_vcpus":3,"topology":{"threads_per_core":2,"cores_per_die":1,"dies_per_package":1,"packages":1}}}"#,
            "Product of CPU topology parts does not match maximum vCPU",
        ),
        // Rows 27, 28.
        (r#"{"memory":{"hugepage_size":2097152}}"#, "Huge page size specified but huge pages not enabled"),
        (
            r#"{"memory":{"hugepages":true,"hugepage_size":3000000}}"#,
            "Huge page size is not power of 2: 3000000",
        ),
        (
            r#"{"memory":{"shared":true,"mergeable":true}}"#,
            "Invalid to set both 'mergeable' and 'shared' for memory",
        ),
        // Row 39.
        (r#"{"platform":{"num_pci_segments":0}}"#, "Number of PCI segments (0) not in range of 1 to 96"),
        (r#"{"platform":{"num_pci_segments":97}}"#, "Number of PCI segments (97) not in range of 1 to 96"),
        (
            r#"{"platform":{"iommu_address_width_bits":65}}"#,
            "IOMMU address width in bits (65) should be less than or equal to 64",
        ),
        // Rows 40, 42.
        (r#"{"rng":{"pci_segment":1}}"#, "Invalid PCI segment id: 1"),
        (
            r#"{"rng":{"pci_device_id":32}}"#,
            "Given PCI device ID (32) is out of the supported range of 0..32",
        ),
        (r#"{"net":[{"pci_device_id":0}]}"#, "Given PCI device ID (0) is reserved"),
        (r#"{"disks":[{"path":"/d","id":"__x"}]}"#, "Identifier __x is not valid"),
        (
            r#"{"rate_limit_groups":[{"id":"__g","rate_limiter_config":{"ops":{"size":1,"refill_time":1}}}]}"#,
            "Identifier __g is not valid",
        ),
        // Row 30, and what is required.
        (r#"{"vsock":{"cid":2,"socket":"/s"}}"#, "2 is a special VSOCK CID"),
        (r#"{"vsock":{"cid":4294967295,"socket":"/s"}}"#, "4294967295 is a special VSOCK CID"),
        (r#"{"vsock":{"socket":"/s"}}"#, "Error parsing --vsock: cid missing"),
        (r#"{"vsock":{"cid":3}}"#, "Error parsing --vsock: socket missing"),
    ] {
        // What precedes the message names the device.
        let (kind, chain) = refusal(body);
        assert_eq!((kind, chain.last().map(String::as_str)), (Kind::Invalid, Some(message)), "{body}");
    }
    // Row 41 is the one of these that is a conflict.
    let twice = r#"{"disks":[{"path":"/d","id":"a"}],"net":[{"id":"a"}]}"#;
    assert_eq!(refusal(twice), (Kind::Conflict, vec!["Identifier a is not unique".to_owned()]));
    let twice = r#"{"rate_limit_groups":[{"id":"a","rate_limiter_config":{"ops":{"size":1,"refill_time":1}}}],
        "disks":[{"path":"/d","id":"a","rate_limit_group":"a"}]}"#;
    assert_eq!(refusal(twice), (Kind::Conflict, vec!["Identifier a is not unique".to_owned()]));
    // Row 1.
    let nothing = vec![
        "Payload configuration is not bootable".to_owned(),
        "No bootitem provided: neither firmware nor kernel".to_owned(),
    ];
    assert_eq!(refusal(r#"{"payload":{}}"#), (Kind::Invalid, nothing.clone()));
    assert_eq!(VmSpec::default().check().unwrap_err().chain(), nothing);
    // Row 2 concerns what is not offered yet.
    assert_eq!(refusal(r#"{"payload":{"kernel":"/k","firmware":"/f"}}"#).0, Kind::Unsupported);
}

#[test]
fn descriptors_of_a_tap_must_fit_its_queues() {
    // Rows 21 and 22, of which JSON cannot speak.
    for (text, message) in [
        ("fd=[5,6]", "Number of queues (2) to virtio_net does not match the number of FDs (4)"),
        ("fd=[2]", "Reserved fd number (<= 2): 2"),
    ] {
        let spec = VmSpec {
            payload: Some(catalog::PayloadSpec { kernel: Some("/k".into()), ..Default::default() }),
            net: Some(vec![NetSpec::parse(text).unwrap()]),
            ..VmSpec::default()
        };
        assert_eq!(spec.check().unwrap_err().chain().last().map(String::as_str), Some(message));
    }
}
