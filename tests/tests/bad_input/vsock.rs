//! Sockets that cannot be: refused by name, and nothing of them is left.

use std::fs;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};
use tests::programs;

use crate::server::Server;

const ADDED: &str = "The vsock device could not be added to the VM";

#[test]
fn a_bad_vsock_leaves_a_running_machine_unharmed() {
    let server = Server::start();
    server.does(
        "vm.create",
        &json!({
            "payload": {"kernel": programs::probe(), "cmdline": "probe.run=hang"},
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
            "memory": {"size": 64 << 20},
            "console": {"mode": "Off"},
        }),
    );
    server.does("vm.boot", &Value::Null);
    let before = server.info();
    let path = |name: &str| server.bench.path(name);
    let refuses = |body: Value, status, inner: &[&str]| {
        let chain: Vec<_> = ["Error from API", ADDED].into_iter().chain(inner.iter().copied()).collect();
        server.refuses("PUT", "vm.add-vsock", body.to_string().as_bytes(), status, &chain);
    };
    let (check, number) = ("Failed to validate config", "Invalid --vsock number 1");
    for (body, message) in [
        (json!({"socket": path("v")}), "Error parsing --vsock: cid missing"),
        (json!({"cid": 3}), "Error parsing --vsock: socket missing"),
        (json!({"cid": 2, "socket": path("v")}), "2 is a special VSOCK CID"),
        (json!({"cid": u32::MAX, "socket": path("v")}), "4294967295 is a special VSOCK CID"),
    ] {
        refuses(body, 400, &[check, number, message]);
    }
    let _busy = UnixListener::bind(path("busy")).unwrap();
    fs::write(path("file"), "a file").unwrap();
    let (created, socket) = ("Cannot create device \"v\" (--vsock)", "cannot set up the socket of \"v\"");
    let at = |name: &str| json!({"cid": 3, "socket": path(name), "id": "v"});
    let in_use = format!("socket path {} is in use", path("busy").display());
    refuses(at("busy"), 409, &[created, socket, &in_use]);
    let no_socket = format!("cannot listen on {}", path("file").display());
    refuses(at("file"), 500, &[created, socket, &no_socket, "the path exists and is no socket"]);
    let absent = format!("cannot listen on {}", path("none/v").display());
    refuses(at("none/v"), 500, &[created, socket, &absent, "No such file or directory (os error 2)"]);
    assert_eq!(server.info(), before);
    assert_eq!(fs::read(path("file")).unwrap(), b"a file");

    // There is one at most, also while the guest has not let go of it.
    let (status, answer) = server.ask("PUT", "vm.add-vsock", at("v").to_string().as_bytes());
    assert_eq!(status, 200, "{answer}");
    assert!(path("v").exists());
    let second = json!({"cid": 4, "socket": path("w")});
    let too_many = "Too many virtio-vsock devices";
    refuses(second.clone(), 409, &[too_many]);
    server.does("vm.remove-device", &json!({"id": "v"}));
    refuses(second, 409, &[too_many]);
    assert!(!path("w").exists());
    server.ends_well();
}
