//! Bad requests over the API, and what they leave of the machine.

use std::io::Write;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tests::{image, programs};

use crate::server::Server;

#[test]
fn bodies_that_describe_no_machine() {
    let server = Server::start();
    let json = "Failed to deserialize JSON";
    for (body, message) in [
        ("{", "EOF while parsing an object at line 1 column 1"),
        ("nonsense", "expected ident at line 1 column 2"),
        ("{\"cpus\":{}} x", "trailing characters at line 1 column 13"),
        ("[]", "invalid type: sequence, expected a JSON object"),
        ("null", "invalid type: null, expected struct VmSpec at line 1 column 4"),
        (r#"{"cpus":"x"}"#, "invalid type: string \"x\", expected struct CpusSpec at line 1 column 11"),
        (r#"{"cpus":{"boot_vcpus":"1"}}"#, "invalid type: string \"1\", expected u32 at line 1 column 25"),
        (r#"{"memory":{"size":-1}}"#, "invalid value: integer `-1`, expected u64 at line 1 column 20"),
        (
            r#"{"payload":{"kernel":5}}"#,
            "invalid type: integer `5`, expected path string at line 1 column 22",
        ),
        (r#"{"disks":{}}"#, "invalid type: map, expected a sequence at line 1 column 9"),
        (
            r#"{"serial":{"mode":"Bogus"}}"#,
            "unknown variant `Bogus`, expected one of `Off`, `Pty`, `Tty`, `File`, `Socket`, `Null` at line 1 column 26",
        ),
        (
            r#"{"net":[{"mac":"zz"}]}"#,
            "\"zz\" is not a MAC address (expected six groups of two hex digits, as in 2e:11:22:33:44:55) \
             at line 1 column 20",
        ),
    ] {
        server.refuses("PUT", "vm.create", body.as_bytes(), 400, &[json, message]);
    }
    let utf8 = b"{\"payload\":{\"kernel\":\"\xff\xfe\"}}";
    server.refuses("PUT", "vm.create", utf8, 400, &[json, "invalid unicode code point at line 1 column 23"]);
    // Deep nesting costs no stack: it is refused where it would mean something, and skipped where it means nothing.
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = format!(r#"{{"disks":[{{"x":{deep}}}]}}"#);
    let (status, text) = server.ask("PUT", "vm.create", body.as_bytes());
    assert!(status == 400 && text.contains("recursion limit exceeded at line 1 column "), "{status} {text}");
    let skipped = server.ask("PUT", "vm.create", format!(r#"{{"x":{deep}}}"#).as_bytes());
    assert_eq!(skipped.0, 204);
    server.does("vm.delete", &Value::Null);
    // None of them is kept.
    let none = ["Error from API", "The VM info is not available", "VM is not created"];
    server.refuses("GET", "vm.info", b"", 404, &none);
    server.ends_well();
}

#[test]
fn bodies_that_are_missing_superfluous_or_too_large() {
    let server = Server::start();
    server.refuses("PUT", "vm.create", b"", 400, &["Bad Request", "This request needs a body"]);
    server.refuses("PUT", "vm.boot", b"{}", 400, &["Bad Request", "This request takes no body"]);
    let large = vec![b' '; (4 << 20) + 1];
    let message = "The body is larger than 4194304 bytes";
    server.refuses("PUT", "vm.create", &large, 400, &["Bad Request", message]);
    // One that only says so is not waited for.
    let head = b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 4194305\r\n\r\n";
    let wanted = json!(["Bad Request", message]).to_string();
    assert_eq!(server.send(head), Some((400, wanted)));
    server.ends_well();
}

#[test]
fn what_is_no_http() {
    let server = Server::start();
    for request in [
        &b"BOGUS\r\n\r\n"[..],
        b"\x16\x03\x01\x00\xff\xff\xfe\r\n\r\n",
        b"GET /api/v1/vmm.ping HTTP/9.9\r\n\r\n",
        b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
        b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
    ] {
        let (status, body) = server.send(request).expect("an answer");
        let name = String::from_utf8_lossy(request);
        assert_eq!(status, 400, "{name}");
        assert!(body.contains("Malformed request"), "{name}: {body}");
    }
    let long = [b"GET /api/v1/", &vec![b'a'; 1 << 20][..], b" HTTP/1.1\r\n\r\n"].concat();
    let many = [b"GET /api/v1/vmm.ping HTTP/1.1\r\n", &b"X: a\r\n".repeat(500)[..], b"\r\n"].concat();
    for request in [long, many] {
        // The answer may be lost to the rest of the request; more than an error it cannot be.
        assert!(server.send(&request).is_none_or(|(status, _)| (400..500).contains(&status)));
    }
    // A connection that says nothing, and one that stops in the middle, hold nobody up.
    let _silent = UnixStream::connect(server.bench.path("s")).unwrap();
    let mut half = UnixStream::connect(server.bench.path("s")).unwrap();
    half.write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Le").unwrap();
    server.ends_well();
}

#[test]
fn routes_that_do_not_exist_or_are_not_offered() {
    let server = Server::start();
    server.refuses("GET", "vm.nope", b"", 404, &["Not Found"]);
    for (verb, name) in [("GET", "vm.boot"), ("PUT", "vm.info"), ("POST", "vm.boot"), ("DELETE", "vm.delete")]
    {
        let (status, text) = server.ask(verb, name, b"");
        assert!(status == 400 && text.starts_with("[\"Bad Request\""), "{verb} {name}: {status} {text}");
    }
    for name in ["vm.resize", "vm.coredump", "vm.add-vdpa", "vm.send-migration"] {
        let message = format!("{name} is not supported yet");
        server.refuses("PUT", name, b"{}", 501, &["Error from API", &message]);
    }
    server.ends_well();
}

#[test]
fn requests_that_the_state_does_not_allow() {
    let server = Server::start();
    let requests = [
        ("PUT", "vm.pause", "The VM could not be paused"),
        ("PUT", "vm.resume", "The VM could not resume"),
        ("PUT", "vm.shutdown", "The VM could not shutdown"),
        ("PUT", "vm.reboot", "The VM could not reboot"),
        ("PUT", "vm.power-button", "Error triggering power button"),
        ("PUT", "vm.nmi", "Error triggering NMI"),
        ("GET", "vm.counters", "The VM counters are not available"),
    ];
    for (verb, name, text) in requests {
        server.refuses(verb, name, b"", 404, &["Error from API", text, "VM is not created"]);
    }
    let boot = "The VM could not boot";
    server.refuses("PUT", "vm.boot", b"", 404, &["Error from API", boot, "VM is not created"]);
    let machine = json!({
        "payload": {"kernel": programs::probe(), "cmdline": "probe.run=hang"},
        "memory": {"size": 64 << 20}, "console": {"mode": "Off"},
    });
    server.does("vm.create", &machine);
    for (verb, name, text) in requests {
        server.refuses(verb, name, b"", 405, &["Error from API", text, "VM is not running"]);
    }
    let create = ["Error from API", "The VM could not be created", "VM is already created"];
    server.refuses("PUT", "vm.create", b"{}", 405, &create);
    server.does("vm.boot", &Value::Null);
    server.refuses("PUT", "vm.boot", b"", 405, &["Error from API", boot, "VM is already created"]);
    server.refuses("PUT", "vm.create", b"{}", 405, &create);
    let resume = ["Error from API", "The VM could not resume", "VM is already running"];
    server.refuses("PUT", "vm.resume", b"", 405, &resume);
    server.does("vm.pause", &Value::Null);
    let pause = ["Error from API", "The VM could not be paused", "VM is already paused"];
    server.refuses("PUT", "vm.pause", b"", 405, &pause);
    assert_eq!(server.info()["state"], "Paused");
    server.does("vm.delete", &Value::Null);
    server.ends_well();
}

#[test]
fn a_machine_that_cannot_boot_stays_described_and_boots_when_it_can() {
    let server = Server::start();
    let disk = server.bench.path("disk");
    let named = disk.display().to_string();
    let machine = json!({
        "payload": {"kernel": programs::probe(), "cmdline": "probe.run=hang"},
        "memory": {"size": 64 << 20}, "console": {"mode": "Off"},
        "serial": {"mode": "Socket", "socket": server.bench.path("serial")},
        "debug_console": {"mode": "File", "file": server.bench.path("none/debug")},
        "disks": [{"path": disk, "image_type": "Raw"}],
    });
    server.does("vm.create", &machine);
    let refuses = |status, inner: &[&str]| {
        server.refuses(
            "PUT",
            "vm.boot",
            b"",
            status,
            &[&["Error from API", "The VM could not boot"], inner].concat(),
        );
        let info = server.info();
        assert_eq!(info["state"], "Created");
        assert!(info.get("device_tree").is_none());
        assert_eq!(info["config"]["disks"][0]["path"], named.as_str());
        assert!(!server.bench.path("serial").exists(), "the serial port's socket is left");
    };
    let device = ["Cannot create device \"_disk0\" (--disk)", "cannot add disk \"_disk0\""];
    let absent = format!("cannot open disk image {named}");
    refuses(400, &[device[0], device[1], &absent, "No such file or directory (os error 2)"]);
    image::make(&disk, 7, 64);
    let before = std::fs::read(&disk).unwrap();
    // A later device fails: what was opened before is given back.
    let debug = format!("cannot create {}", server.bench.path("none/debug").display());
    let chain = [
        "Cannot create device \"__debug_console\" (--debug-console)",
        "cannot open the console of the debug console",
        &debug,
        "No such file or directory (os error 2)",
    ];
    refuses(500, &chain);
    refuses(500, &chain);
    std::fs::create_dir(server.bench.path("none")).unwrap();
    server.does("vm.boot", &Value::Null);
    assert_eq!(server.info()["state"], "Running");
    server.does("vm.delete", &Value::Null);
    // Another description takes the place of the first.
    server.does("vm.create", &json!({"payload": {"kernel": "/none"}}));
    let kernel =
        ["Error from API", "The VM could not boot", "Cannot load the kernel", "cannot open kernel /none"];
    let chain = [&kernel[..], &["No such file or directory (os error 2)"]].concat();
    server.refuses("PUT", "vm.boot", b"", 400, &chain);
    server.does("vm.delete", &Value::Null);
    assert!(std::fs::read(&disk).unwrap() == before, "the disk changed");
    server.ends_well();
}

#[test]
fn configurations_that_cannot_work_are_refused_at_boot() {
    for (machine, status, inner) in [
        (
            json!({}),
            400,
            &["Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel"][..],
        ),
        (json!({"payload": {"kernel": "k"}, "tpm": {"socket": "s"}}), 400, &["tpm is not supported yet"]),
        (
            json!({"payload": {"kernel": "k"}, "disks": [{"path": "a", "id": "d"}, {"path": "b", "id": "d"}]}),
            409,
            &["Identifier d is not unique"],
        ),
        (
            json!({"payload": {"kernel": "k"}, "serial": {"mode": "File"}}),
            400,
            &["Invalid --serial", "Path missing when using file console mode"],
        ),
    ] {
        let server = Server::start();
        server.does("vm.create", &machine);
        let outer = ["Error from API", "The VM could not boot", "Failed to validate config"];
        server.refuses("PUT", "vm.boot", b"", status, &[&outer, inner].concat());
        server.ends_well();
    }
}
