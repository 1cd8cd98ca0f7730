//! Devices that cannot be added to or removed from a running machine: the machine goes on as before, and nothing is left of them.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{image, programs, remote};

use crate::bench::root;
use crate::namespace::{has_interfaces, interfaces, with_network};
use crate::network::{passing, tap};
use crate::server::Server;

const API: &str = "Error from API";
const DISK: &str = "The disk could not be added to the VM";
const REMOVE: &str = "The device could not be removed from the VM";

/// A program with a running machine: a disk `d` in slot 2 and a guest that does nothing.
fn running(console: &str) -> Server {
    let server = Server::start();
    let disk = server.bench.path("disk");
    image::make(&disk, 7, 64);
    server.does(
        "vm.create",
        &json!({
            "payload": {"kernel": programs::probe(), "cmdline": "probe.run=hang"},
            "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
            "memory": {"size": 64 << 20},
            "console": {"mode": console},
            "serial": {"mode": "File", "file": server.bench.path("serial")},
            "disks": [{"path": disk, "id": "d", "image_type": "Raw"}],
        }),
    );
    server.does("vm.boot", &Value::Null);
    server
}

/// What a request must not change: the answer to `vm.info`, and how many descriptors and threads the process has.
type State = (Value, [usize; 2]);

fn state(server: &Server) -> State {
    (server.info(), server.settled())
}

/// Checks that everything is as it was, or will be in a moment.
#[track_caller]
fn unchanged(server: &Server, before: &State) {
    let (begun, (info, held)) = (Instant::now(), before);
    loop {
        let now = state(server);
        assert_eq!(now.0, *info);
        if now.1[0] <= held[0] && now.1[1] <= held[1] {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{held:?} descriptors and threads are {:?}",
            now.1
        );
    }
}

#[test]
fn a_bad_disk_leaves_a_running_machine_unharmed() {
    let server = running("Off");
    let path = |name: &str| server.bench.path(name);
    image::make(&path("good"), 7, 64);
    let before = state(&server);
    let created = "Cannot create device \"_disk0\" (--disk)";
    let added = "cannot add disk \"_disk0\"";
    let absent = format!("cannot open disk image {}", path("none").display());
    let mut number = 0;
    let mut refuses = |body: Value, status, inner: &[&str]| {
        // Names that were drawn for nothing are not drawn again.
        let inner: Vec<_> = inner.iter().map(|m| m.replace("_disk0", &format!("_disk{number}"))).collect();
        number += u32::from(inner.iter().any(|m| m.contains("_disk")));
        let chain: Vec<_> = [API, DISK].into_iter().chain(inner.iter().map(String::as_str)).collect();
        server.refuses("PUT", "vm.add-disk", body.to_string().as_bytes(), status, &chain);
    };
    refuses(
        json!({"path": path("none")}),
        400,
        &[created, added, &absent, "No such file or directory (os error 2)"],
    );
    let locked = format!(
        "disk image {} is locked for writing by this program itself (is it given twice?); stop it, or use readonly=on in both",
        path("disk").display()
    );
    refuses(json!({"path": path("disk")}), 409, &[created, added, &locked]);
    let check = "Failed to validate config";
    refuses(json!({"path": path("good"), "id": "d"}), 409, &[check, "Identifier d is not unique"]);
    let number_2 = "Invalid --disk number 2";
    refuses(json!({}), 400, &[check, number_2, "Disk path missing"]);
    refuses(
        json!({"path": path("good"), "pci_segment": 1}),
        400,
        &[check, number_2, "Invalid PCI segment id: 1"],
    );
    refuses(
        json!({"path": path("good"), "num_queues": 3}),
        400,
        &[check, number_2, "Queue count (3) must not exceed boot vCPUs (2)"],
    );
    refuses(
        json!({"path": path("good"), "pci_device_id": 1}),
        409,
        &["Cannot plug in device \"_disk0\"", "slot 1 of PCI segment 0 is in use"],
    );
    let json = "Failed to deserialize JSON";
    server.refuses(
        "PUT",
        "vm.add-disk",
        b"[]",
        400,
        &[json, "invalid type: sequence, expected a JSON object"],
    );
    server.refuses("PUT", "vm.add-disk", b"", 400, &["Bad Request", "This request needs a body"]);
    unchanged(&server, &before);
    assert!(fs::read(path("good")).unwrap() == image::pattern(7, 0, 64));

    // Nobody holds the image: it can be had at once, in the slot that was free all the time.
    let (status, answer) =
        server.ask("PUT", "vm.add-disk", json!({"path": path("good")}).to_string().as_bytes());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["bdf"]), (200, &json!("0000:00:03.0")));
    assert_eq!(answer["id"], format!("_disk{number}"));
    server.ends_well();
}

#[test]
fn what_ch_remote_cannot_understand_is_not_even_asked() {
    let server = running("Off");
    let socket = server.bench.path("s");
    let before = state(&server);
    for (keys, message) in [
        ("nope=1", "Unknown option: nope"),
        ("path", "Invalid syntax: path"),
        ("path=x,num_queues=many", "Unable to convert many for num_queues"),
    ] {
        let error = remote::ask(&socket, &["add-disk", keys]).unwrap_err();
        assert!(error.contains("Error parsing --disk") && error.contains(message), "{keys}: {error}");
    }
    unchanged(&server, &before);
    server.ends_well();
}

#[test]
fn what_cannot_be_removed() {
    let server = running("Null");
    let remove = |id: &str| json!({ "id": id }).to_string();
    for id in ["nope", "", "_virtio-pci-nope", "_virtio-pci-__serial"] {
        let message = format!("No device with id {id:?} to remove");
        server.refuses("PUT", "vm.remove-device", remove(id).as_bytes(), 404, &[API, REMOVE, &message]);
    }
    for (id, named) in [
        ("__rng", "__rng"),
        ("_virtio-pci-__console", "__console"),
        ("__ged", "__ged"),
        ("__ioapic", "__ioapic"),
    ] {
        let message = format!("Device {named:?} cannot be removed");
        server.refuses("PUT", "vm.remove-device", remove(id).as_bytes(), 400, &[API, REMOVE, &message]);
    }
    let json = "Failed to deserialize JSON";
    let missing = "missing field `id` at line 1 column 2";
    server.refuses("PUT", "vm.remove-device", b"{}", 400, &[json, missing]);
    // The guest answers neither the first nor the second; after a reboot there is nothing to remove.
    server.does("vm.remove-device", &json!({"id": "d"}));
    server.does("vm.remove-device", &json!({"id": "d"}));
    assert!(server.info()["config"].get("disks").is_none());
    server.does("vm.reboot", &Value::Null);
    let message = "No device with id \"d\" to remove";
    server.refuses("PUT", "vm.remove-device", remove("d").as_bytes(), 404, &[API, REMOVE, message]);
    server.ends_well();
}

#[test]
fn nothing_comes_or_goes_while_the_machine_is_paused() {
    let server = running("Off");
    image::make(&server.bench.path("good"), 7, 64);
    server.does("vm.pause", &Value::Null);
    let paused = "VM is paused: devices come and go only while it runs; resume it first";
    let body = json!({"path": server.bench.path("good")}).to_string();
    server.refuses("PUT", "vm.add-disk", body.as_bytes(), 405, &[API, DISK, paused]);
    let net = "The network device could not be added to the VM";
    server.refuses("PUT", "vm.add-net", b"{}", 405, &[API, net, paused]);
    server.refuses("PUT", "vm.remove-device", b"{\"id\":\"d\"}", 405, &[API, REMOVE, paused]);
    // A size may change: the guest sees it when it goes on.
    server.does("vm.resize-disk", &json!({"id": "d", "desired_size": 65536}));
    server.does("vm.resume", &Value::Null);
    assert_eq!(fs::metadata(server.bench.path("disk")).unwrap().len(), 65536);
    assert_eq!(server.ask("PUT", "vm.add-disk", body.as_bytes()).0, 200);
    server.ends_well();
}

#[test]
fn sizes_that_a_disk_cannot_have() {
    let server = running("Off");
    let disk = server.bench.path("disk");
    let text = "The disk could not be resized";
    let refuses = |id: &str, size: u64, status, message: &str| {
        let body = json!({"id": id, "desired_size": size}).to_string();
        server.refuses("PUT", "vm.resize-disk", body.as_bytes(), status, &[API, text, message]);
    };
    refuses("d", 0, 400, "Size 0 is no multiple of 512 bytes");
    refuses("d", 1000, 400, "Size 1000 is no multiple of 512 bytes");
    refuses("x", 1024, 404, "No disk with id \"x\" to resize");
    refuses("__rng", 1024, 404, "No disk with id \"__rng\" to resize");
    let huge = json!({"id": "d", "desired_size": u64::MAX - 511}).to_string();
    let (status, answer) = server.ask("PUT", "vm.resize-disk", huge.as_bytes());
    assert!(status == 500 && answer.contains(&disk.display().to_string()), "{status} {answer}");
    assert!(fs::read(&disk).unwrap() == image::pattern(7, 0, 64));
    server.ends_well();
}

#[test]
fn a_machine_that_is_only_described_is_edited() {
    let server = Server::start();
    let disk = "The disk could not be added to the VM";
    server.refuses("PUT", "vm.add-disk", b"{\"path\":\"x\"}", 404, &[API, disk, "VM is not created"]);
    server.refuses("PUT", "vm.remove-device", b"{\"id\":\"d\"}", 404, &[API, REMOVE, "VM is not created"]);
    server
        .does("vm.create", &json!({"payload": {"kernel": programs::probe()}, "memory": {"size": 64 << 20}}));
    server.does("vm.add-disk", &json!({"path": "/none", "id": "d"}));
    server.does("vm.add-net", &json!({"id": "n"}));
    let check = "Failed to validate config";
    let taken = "Identifier n is not unique";
    server.refuses("PUT", "vm.add-disk", b"{\"path\":\"x\",\"id\":\"n\"}", 409, &[API, disk, check, taken]);
    assert_eq!(server.info()["config"]["disks"][0]["id"], "d");
    server.does("vm.remove-device", &json!({"id": "d"}));
    let gone = "No device with id \"d\" to remove";
    server.refuses("PUT", "vm.remove-device", b"{\"id\":\"d\"}", 404, &[API, REMOVE, gone]);
    let stays = "Device \"__rng\" cannot be removed";
    server.refuses("PUT", "vm.remove-device", b"{\"id\":\"__rng\"}", 400, &[API, REMOVE, stays]);
    assert!(server.info()["config"].get("disks").is_none());
    server.ends_well();
}

#[test]
fn waits_that_cannot_be() {
    let server = running("Off");
    let text = "The device could not be waited for";
    let refuses = |body: Value, status, message: &str| {
        server.refuses("PUT", "vm.wait-device", body.to_string().as_bytes(), status, &[API, text, message]);
    };
    refuses(json!({"id": "x", "until": "ready"}), 404, "No device with id \"x\"");
    refuses(
        json!({"id": "d", "until": "ready", "timeout_ms": 600_001}),
        400,
        "A wait of 600001 ms is longer than 600000 ms",
    );
    refuses(
        json!({"id": "d", "until": "ready", "timeout_ms": 0}),
        504,
        "Device \"d\" is not used by the guest after 0 ms",
    );
    // What is not there need not be waited for; and while somebody waits, others are answered.
    server.does("vm.wait-device", &json!({"id": "x", "until": "removed"}));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            server.ask("PUT", "vm.wait-device", br#"{"id":"d","until":"removed","timeout_ms":60000}"#)
        });
        for _ in 0..20 {
            assert_eq!(server.ask("GET", "vmm.ping", b"").0, 200);
        }
        server.does("vm.shutdown", &Value::Null);
        let (status, answer) = waits.join().unwrap();
        assert!(status == 405 && answer.contains("VM is not running"), "{status} {answer}");
    });
    server.ends_well();
}

#[test]
fn descriptors_that_are_no_taps_of_a_card() {
    if !root("taps sent with a request") {
        return;
    }
    with_network(|| {
        let server = running("Off");
        let (before, links) = (state(&server), interfaces());
        let (null, file) = (File::open("/dev/null").unwrap(), File::open("/proc/self/exe").unwrap());
        let (one, other) = (tap("one", libc::IFF_VNET_HDR), tap("other", libc::IFF_VNET_HDR));
        let many = tap("many", libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE);
        let plain = tap("plain", 0);
        let add = |keys: &str, files: &[&File]| {
            let mut command: Command = remote::program();
            for (to, file) in (20..).zip(files) {
                passing(&mut command, *file, to);
            }
            let output =
                command.arg("--api-socket").arg(server.bench.path("s")).args(["add-net", keys]).output();
            let output = output.unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.success(), text(&output.stdout), text(&output.stderr))
        };
        let refuses = |keys: &str, files: &[&File], message: &str| {
            let (good, _, error) = add(keys, files);
            assert!(!good && error.contains("BadRequest") && error.contains(message), "{keys}: {error}");
        };
        refuses("fd=[20]", &[&null], "is not a tap");
        refuses("fd=[20]", &[&file], "is not a tap");
        refuses("fd=[20]", &[&plain], "was opened without IFF_VNET_HDR");
        refuses(
            "fd=[20,21],num_queues=4",
            &[&one, &other],
            "belongs to tap \"other\", the ones before it to \"one\"",
        );
        refuses("fd=[20,21],num_queues=4", &[&many, &many], "was given twice");
        let count = "Number of queues (2) to virtio_net does not match the number of FDs (4)";
        refuses("fd=[20,21]", &[&one, &other], count);
        refuses(
            "fd=[20],num_queues=4",
            &[&one],
            "Number of queues (4) to virtio_net does not match the number of FDs (2)",
        );
        // One that is not open here cannot be sent.
        let (good, _, error) = add("fd=[77]", &[]);
        assert!(!good && error.contains("Bad file descriptor"), "{error}");
        drop((one, other, many, plain));
        unchanged(&server, &before);
        has_interfaces(&links);

        let good = tap("good", libc::IFF_VNET_HDR);
        let (fine, answer, error) = add("fd=[20],id=card", &[&good]);
        assert!(fine, "{error}");
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["id"], "card");
        drop(good);
        // It is the machine's now, over a reboot too, and goes with the device.
        server.does("vm.reboot", &Value::Null);
        assert!(interfaces().iter().any(|name| name == "good"));
        server.does("vm.remove-device", &json!({"id": "card"}));
        server.does("vm.reboot", &Value::Null);
        let (status, _) = server.ask("PUT", "vm.wait-device", br#"{"id":"card","until":"removed"}"#);
        assert_eq!(status, 204);
        unchanged(&server, &before);
        has_interfaces(&links);
        server.ends_well();
    });
}
