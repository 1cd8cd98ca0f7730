//! Snapshots that cannot be written, or not now; and what is left of one that was not completed. The machine is none the worse.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::{Value, json};
use tests::image;

use crate::bench::{Bench, contents, root, until};
use crate::held::{Catcher, Held};
use crate::namespace::{with_mounts, with_network};
use crate::saved::{GOOD, Story, machine};
use crate::server::Server;

/// What comes before the messages of a snapshot that is refused.
const NOT_SAVED: [&str; 2] = ["Error from API", "The VM could not be snapshotted"];
/// And before those of the files.
const FILES: &str = "The snapshot cannot be written";

#[track_caller]
fn refuses(server: &Server, url: &str, status: u16, messages: &[&str]) {
    let body = json!({"destination_url": url}).to_string();
    server.refuses("PUT", "vm.snapshot", body.as_bytes(), status, &[&NOT_SAVED, messages].concat());
}

/// A machine that needs no privileges.
fn plain() -> Value {
    let mut machine = machine();
    machine.as_object_mut().unwrap().remove("net");
    machine
}

#[test]
fn machines_that_cannot_be_saved_now() {
    let server = Server::start();
    fs::create_dir(server.bench.path("empty")).unwrap();
    refuses(&server, "file://empty", 404, &["VM is not created"]);
    let json = ["Failed to deserialize JSON", "missing field `destination_url` at line 1 column 2"];
    server.refuses("PUT", "vm.snapshot", b"{}", 400, &json);
    server.does("vm.create", &plain());
    refuses(&server, "file://empty", 405, &["VM is not running"]);
    drop(server);

    let server = Server::with(&plain());
    fs::create_dir(server.bench.path("empty")).unwrap();
    refuses(&server, "file://empty", 405, &["VM is running: pause it first, so that it can be saved"]);
    server.goes_on();
    assert!(contents(&server.bench.path("empty")).is_empty());
    server.ends_well();
}

#[test]
fn places_where_no_snapshot_can_be() {
    let server = Server::with(&plain());
    let path = |name: &str| server.bench.path(name);
    fs::create_dir(path("taken")).unwrap();
    File::create(path("taken/thing")).unwrap();
    File::create(path("file")).unwrap();
    std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
    server.does("vm.pause", &Value::Null);
    let before = contents(&server.bench.directory()).len();
    for url in ["", "empty", "/tmp", "http://host/dir", "FILE:///tmp", "file://"] {
        let message = format!("destination_url must be file:// and a directory, not {url:?}");
        refuses(&server, url, 400, &[&message]);
    }
    refuses(&server, "file://none", 404, &[FILES, "directory \"none\" does not exist"]);
    refuses(&server, "file://link", 404, &[FILES, "directory \"link\" does not exist"]);
    refuses(&server, "file://file", 400, &[FILES, "\"file\" is not a directory"]);
    refuses(&server, "file://file/below", 400, &[FILES, "\"file/below\" is not a directory"]);
    refuses(
        &server,
        "file://taken",
        409,
        &[FILES, "directory \"taken\" is not empty: it contains \"thing\""],
    );
    assert_eq!(contents(&server.bench.directory()).len(), before, "something is left");
    server.does("vm.resume", &Value::Null);
    server.goes_on();
    // A directory that is good, by a path from where the program is.
    server.snapshot("good");
    server.does("vm.resume", &Value::Null);
    server.goes_on();
    server.ends_well();
}

#[test]
fn file_systems_that_are_full_read_only_or_forbidden() {
    if !root("full and read-only file systems") {
        return;
    }
    let bench = Bench::new();
    for name in ["full", "read-only", "forbidden", "good"] {
        fs::create_dir(bench.path(name)).unwrap();
    }
    fs::set_permissions(bench.path("forbidden"), fs::Permissions::from_mode(0o555)).unwrap();
    crate::saved::image_at(&bench.path("disk"));
    let script = "mount -t tmpfs -o size=512k none full; mount -t tmpfs -o ro none read-only";
    let server = Server::start_as(bench, |command| with_mounts(script, &command));
    server.does("vm.create", &plain());
    server.does("vm.boot", &Value::Null);
    server.goes_on();
    server.does("vm.pause", &Value::Null);
    let message = "\"read-only\" is on a file system that is mounted read-only";
    refuses(&server, "file://read-only", 500, &[FILES, message]);
    let denied = ["no permission to write to \"forbidden\"", "Permission denied (os error 13)"];
    refuses(&server, "file://forbidden", 500, &[FILES, denied[0], denied[1]]);

    let body = json!({"destination_url": "file://full"}).to_string();
    let (status, text) = server.ask("PUT", "vm.snapshot", body.as_bytes());
    assert!(
        status == 500 && text.contains("no space for \\\"full/memory-ranges\\\" after "),
        "{status} {text}"
    );
    assert!(text.contains("No space left on device (os error 28)"), "{text}");
    let inside = format!("/proc/{}/root{}", server.id(), server.bench.path("full").display());
    assert!(contents(inside.as_ref()).is_empty(), "something is left in the full directory");

    server.does("vm.resume", &Value::Null);
    server.goes_on();
    server.does("vm.pause", &Value::Null);
    server.does("vm.snapshot", &json!({"destination_url": "file://good"}));
    server.ends_well();
}

/// Has a snapshot of a paused machine begun and held as soon as something is so in its directory, `part`; then `meanwhile` happens. The
/// answer to the snapshot, if it got one.
fn while_writing(
    server: &Server,
    so: impl Fn(&std::path::Path) -> bool,
    meanwhile: impl FnOnce(Held),
) -> Option<(u16, String)> {
    let directory = server.bench.path("part");
    fs::create_dir(&directory).unwrap();
    let catcher = Catcher::new(server);
    std::thread::scope(|scope| {
        let socket = server.bench.path("s");
        let asked = scope.spawn(move || {
            let body = json!({"destination_url": "file://part"}).to_string();
            tests::ask::ask(&socket, "PUT", "vm.snapshot", body.as_bytes())
        });
        let mut held = catcher.catch();
        held.until(|| so(&directory));
        meanwhile(held);
        asked.join().unwrap()
    })
}

/// Whether some of memory was written.
fn some_memory(directory: &std::path::Path) -> bool {
    fs::metadata(directory.join("memory-ranges")).is_ok_and(|meta| meta.blocks() > 0)
}

#[test]
fn what_would_change_the_machine_waits_until_the_snapshot_is_written() {
    let server = Server::with(&plain());
    server.does("vm.pause", &Value::Null);
    fs::create_dir(server.bench.path("second")).unwrap();
    image::make(&server.bench.path("other"), 7, 64);
    let answer = while_writing(&server, some_memory, |_held| {
        let busy = "A snapshot of the VM is being written";
        for _ in 0..3 {
            refuses(&server, "file://second", 429, &[busy]);
        }
        let json = |value: Value| value.to_string();
        for (name, body) in [
            ("vm.pause", String::new()),
            ("vm.resume", String::new()),
            ("vm.reboot", String::new()),
            ("vm.boot", String::new()),
            ("vm.power-button", String::new()),
            ("vm.nmi", String::new()),
            ("vm.create", json(machine())),
            ("vm.restore", json(json!({"source_url": GOOD}))),
            ("vm.add-disk", json(json!({"path": "other"}))),
            ("vm.add-net", json(json!({}))),
            ("vm.remove-device", json(json!({"id": "disk"}))),
            ("vm.resize-disk", json(json!({"id": "disk", "desired_size": 1 << 20}))),
        ] {
            server.refuses("PUT", name, body.as_bytes(), 429, &["Error from API", busy]);
        }
        let info = server.info();
        assert_eq!((&info["state"], &info["progress"]["operation"]), (&"Paused".into(), &"snapshot".into()));
        assert!(info["progress"]["total"].as_u64().unwrap() > 1 << 20, "{info}");
        assert_eq!(server.ask("GET", "vm.counters", b"").0, 200);
    });
    assert_eq!(answer, Some((204, String::new())));
    assert!(contents(&server.bench.path("second")).is_empty());
    server.does("vm.delete", &Value::Null);
    server.does("vm.restore", &json!({"source_url": "file://part", "memory_restore_mode": "Copy"}));
    server.does("vm.resume", &Value::Null);
    server.goes_on();
    server.ends_well();
}

#[test]
fn whoever_ends_the_machine_ends_the_snapshot() {
    let server = Server::with(&plain());
    server.snapshot("good");
    server.does("vm.delete", &Value::Null);
    let ended = json!([NOT_SAVED[0], NOT_SAVED[1], "The VM was ended before the snapshot was complete"]);
    for way in ["vm.shutdown", "vm.delete"] {
        server.does("vm.restore", &json!({"source_url": GOOD}));
        let answer = while_writing(&server, some_memory, |held| {
            std::thread::scope(|scope| {
                let done = scope.spawn(|| server.put(way));
                until("the end of the snapshot", || held.is_waited_for());
                drop(held);
                assert_eq!(done.join().unwrap(), (204, String::new()));
            });
        });
        assert_eq!(answer, Some((409, ended.to_string())), "{way}");
        assert!(contents(&server.bench.path("part")).is_empty(), "{way} leaves something");
        fs::remove_dir(server.bench.path("part")).unwrap();
        server.does("vm.delete", &Value::Null);
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut server = Server::start_in_copy(&server.bench);
        server.does("vm.restore", &json!({"source_url": GOOD}));
        let answer = while_writing(&server, some_memory, |held| {
            server.signal(signal);
            until("the end of the snapshot", || held.is_waited_for());
        });
        assert!(answer.is_none_or(|(status, text)| (status, text) == (409, ended.to_string())));
        assert_eq!(server.end().code(), Some(0));
        assert!(contents(&server.bench.path("part")).is_empty(), "signal {signal} leaves something");
    }
    server.ends_well();
}

/// One that was complete when the machine was ended is complete, and said to be.
#[test]
fn a_snapshot_that_was_complete_stays() {
    let server = Server::with(&plain());
    server.does("vm.pause", &Value::Null);
    let complete = |directory: &std::path::Path| directory.join("state.json").exists();
    let answer = while_writing(&server, complete, |held| {
        std::thread::scope(|scope| {
            let done = scope.spawn(|| server.put("vm.delete"));
            until("the end of the snapshot", || held.is_waited_for());
            drop(held);
            assert_eq!(done.join().unwrap(), (204, String::new()));
        });
    });
    assert_eq!(answer, Some((204, String::new())));
    server.does("vm.restore", &json!({"source_url": "file://part", "memory_restore_mode": "Copy"}));
    server.does("vm.resume", &Value::Null);
    server.goes_on();
    server.ends_well();
}

#[test]
fn what_a_kill_leaves_is_no_snapshot() {
    if !root("taps") {
        return;
    }
    with_network(|| {
        let mut story = Story::new();
        let exists = |name: &'static str| move |directory: &std::path::Path| directory.join(name).exists();
        type Moment = Box<dyn Fn(&std::path::Path) -> bool>;
        let moments: [(&str, Moment); 5] = [
            ("at the start", Box::new(|_| true)),
            ("without memory", Box::new(exists("memory-ranges"))),
            ("with some memory", Box::new(some_memory)),
            ("without a state", Box::new(exists("config.json"))),
            ("with part of a state", Box::new(exists("state.json.part"))),
        ];
        for (when, moment) in moments {
            story.server.does("vm.restore", &json!({"source_url": GOOD}));
            let server = &story.server;
            let answer = while_writing(server, moment, |_held| server.signal(libc::SIGKILL));
            assert_eq!(answer, None, "{when}");
            assert_eq!(story.server.end().code(), None);
            story.server.start_again();
            let incomplete = "\"part\" is not a complete snapshot: it has no state.json";
            story.refuses(
                &json!({"source_url": "file://part"}),
                400,
                &["The snapshot cannot be read", incomplete],
            );
            fs::remove_dir_all(story.server.bench.path("part")).unwrap();
        }
        story.ends_well();
    });
}
