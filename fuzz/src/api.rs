//! What clients send: JSON bodies of each route, and bytes that may or may not be HTTP.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::OnceLock;
use std::time::Duration;

use api::action::{Body, routes};
use api::server::Server;
use api::{Action, Reply};
use catalog::{RestoreRequest, hot};
use serde_json::json;
use spec::Refusal;

use crate::{Target, options, scratch};

/// A body: the first byte says of which route.
fn run_body(bytes: &[u8]) {
    let Some((number, body)) = bytes.split_first() else { return };
    let route = routes().nth(usize::from(*number) % routes().count()).unwrap();
    let action = match route.body {
        Body::Json(parse, _) => parse(body),
        Body::Device(hot) => (hot.from_json)(body).map(Action::VmAdd),
        Body::Restore => {
            hot::object::<RestoreRequest>(body).map(|request| Action::VmRestore(Box::new(request)))
        }
        Body::None(_) | Body::Ignored(_) => return,
    };
    let report = |refused: Result<(), Refusal>| drop(refused.map_err(|refusal| refusal.report("fuzz")));
    match action {
        Err(error) => drop(spec::bounded(error.to_string())),
        Ok(Action::VmCreate(mut spec)) => {
            spec.complete();
            report(spec.check());
            options::round_trip(&spec);
            let _weights = spec.segment_weights();
            let id = spec.devices().iter().find_map(|d| d.common().and_then(|c| c.id.clone()));
            if let Some(id) = id {
                assert!(spec.remove(&id));
            }
        }
        Ok(Action::VmAdd(device)) => {
            report(device.check(&catalog::VmSpec::default().facts()));
            let _shown = format!("{device:?}");
        }
        Ok(Action::VmRestore(request)) => {
            report(request.restore.directory().map(drop));
            let mut machine = catalog::VmSpec::default();
            report(machine.replace(&request.overrides));
        }
        Ok(Action::VmSnapshot(snapshot)) => report(snapshot.directory().map(drop)),
        Ok(other) => drop(format!("{other:?}")),
    }
}

fn server() {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let listener = UnixListener::bind(scratch::file("api")).unwrap();
        let (caller, inbox) = api::calls::queue().unwrap();
        let answer = move || {
            loop {
                let mut fd = libc::pollfd { fd: inbox.fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one valid entry.
                unsafe { libc::poll(&raw mut fd, 1, -1) };
                for call in inbox.drain() {
                    let reply = match call.action {
                        Action::VmmPing => Ok(Reply::Json("{}".into())),
                        Action::VmInfo => Err(Refusal::invalid("no")),
                        _ => Ok(Reply::Done),
                    };
                    let _gone = call.answer.send(reply);
                }
            }
        };
        std::thread::Builder::new().name("answers".into()).spawn(answer).unwrap();
        Server::start(listener, caller, Default::default()).unwrap()
    });
}

fn run_http(bytes: &[u8]) {
    server();
    let mut stream = UnixStream::connect(scratch::file("api")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    // In two pieces, which need not be whole lines.
    let middle = bytes.len() * usize::from(*bytes.last().unwrap_or(&0)) / 256;
    let (first, second) = bytes.split_at(middle);
    let _gone = stream.write_all(first).and_then(|()| stream.write_all(second));
    let _gone = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match (&mut stream).take(1 << 20).read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("{} is not done with a client that is: {e}", stream.as_raw_fd()),
    }
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answer));
    assert!(answer.len() < 1 << 20, "the answer has no end");
}

/// A document with a bit of everything.
fn machine() -> String {
    json!({
        "cpus": { "boot_vcpus": 2, "max_vcpus": 4, "topology": { "threads_per_core": 1, "cores_per_die": 2, "dies_per_package": 1, "packages": 2 },
                  "affinity": [{ "vcpu": 0, "host_cpus": [1, 2] }] },
        "memory": { "size": 1 << 30, "shared": true },
        "payload": { "kernel": "k", "cmdline": "c", "initramfs": "i" },
        "rate_limit_groups": [{ "id": "g", "rate_limiter_config": { "bandwidth": { "size": 1000, "refill_time": 100, "one_time_burst": 5 } } }],
        "disks": [{ "id": "d", "path": "p", "queue_affinity": [{ "queue_index": 0, "host_cpus": [0] }], "rate_limit_group": "g", "image_type": "Qcow2", "backing_files": true },
                  { "path": "q", "rate_limiter_config": { "ops": { "size": 1, "refill_time": 1 } } }],
        "net": [{ "id": "n", "tap": "t", "ip": "10.0.0.1", "mask": "255.0.0.0", "mac": "2e:00:00:00:00:02", "mtu": 1500, "num_queues": 2, "fds": [5] }],
        "vsock": { "id": "v", "cid": 3, "socket": "s" },
        "rng": { "src": "/dev/urandom" }, "serial": { "mode": "File", "file": "f" }, "console": { "mode": "Socket", "socket": "s" },
        "platform": { "num_pci_segments": 2, "uuid": "u", "oem_strings": ["a"] },
        "pci_segments": [{ "pci_segment": 1, "mmio32_aperture_weight": 1, "mmio64_aperture_weight": 2 }],
    })
    .to_string()
}

pub fn targets() -> Vec<Target> {
    vec![
        Target {
            name: "api_bodies",
            about: "JSON bodies of the API's requests",
            length: 2048,
            options: &[],
            words: || {
                let mut words: Vec<String> = options::words()
                    .iter()
                    .map(|word| format!("\"{}\":", word.trim_end_matches('=')))
                    .filter(|w| !w.contains('\n'))
                    .collect();
                words.extend(
                    [
                        "null",
                        "true",
                        "false",
                        "[]",
                        "{}",
                        "-1",
                        "1e300",
                        "18446744073709551615",
                        "\"\\u0000\"",
                    ]
                    .map(str::to_owned),
                );
                words
            },
            seeds: || {
                let mut seeds = Vec::new();
                for (number, route) in (0u8..).zip(routes()) {
                    let bodies: Vec<String> = match (&*route.path, route.body) {
                        ("vm.create", _) => vec![machine(), r#"{"payload":{"kernel":"k"}}"#.into()],
                        (_, Body::Json(..)) => vec![r#"{"id":"d","desired_size":4096,"until":"ready","timeout_ms":5}"#.into(), r#"{"id":"d"}"#.into(), r#"{"destination_url":"file:///s"}"#.into(), r#"{"id":"d","desired_size":4096}"#.into(), r#"{"id":"d","until":"removed"}"#.into()],
                        (_, Body::Device(_)) => ["disks", "net", "vsock"].into_iter().filter_map(|key| {
                            let machine: serde_json::Value = serde_json::from_str(&machine()).unwrap();
                            let found = machine.get(key)?;
                            Some(found.get(0).unwrap_or(found).to_string())
                        }).collect(),
                        (_, Body::Restore) => vec![r#"{"source_url":"file:///s","net_fds":[{"id":"n","num_fds":2}],"memory_restore_mode":"OnDemand","disks":[{"id":"d","path":"q"}]}"#.into()],
                        _ => vec![],
                    };
                    seeds.extend(bodies.into_iter().map(|body| [&[number][..], body.as_bytes()].concat()));
                }
                seeds
            },
            run: run_body,
        },
        Target {
            name: "http",
            about: "bytes on the API's socket",
            length: 2048,
            options: &[],
            words: || {
                [
                    "GET ",
                    "PUT ",
                    "POST ",
                    "/api/v1/vmm.ping",
                    "/api/v1/vm.info",
                    "/api/v1/vm.create",
                    " HTTP/1.1\r\n",
                    " HTTP/1.0\r\n",
                    "Content-Length: ",
                    "Transfer-Encoding: chunked\r\n",
                    "Connection: close\r\n",
                    "Connection: keep-alive\r\n",
                    "Expect: 100-continue\r\n",
                    "\r\n\r\n",
                    "0\r\n\r\n",
                    "Upgrade: h2c\r\n",
                ]
                .map(str::to_owned)
                .into()
            },
            seeds: || {
                let texts = [
                    "GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\n\r\n",
                    "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\nGET /api/v1/vm.info HTTP/1.0\r\nConnection: close\r\n\r\n",
                    "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 26\r\n\r\n{\"payload\":{\"kernel\":\"k\"}}",
                    "PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
                    "PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
                    "PUT /api/v1/vm.resize HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
                    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                ];
                texts.map(|text| text.as_bytes().to_vec()).into()
            },
            run: run_http,
        },
    ]
}
