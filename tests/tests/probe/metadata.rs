//! The metadata service, asked by a guest over its card while its host changes it, and after the machine was restored.

use serde_json::{Value, json};
use tests::living::Living;
use tests::scratch::Scratch;
use tests::tap;

/// A file with a document.
fn document(scratch: &Scratch, hostname: &str) -> String {
    let path = scratch.file("document.json");
    let text = json!({"latest": {"meta-data": {"local-hostname": hostname}}}).to_string();
    std::fs::write(&path, text).expect("the scratch directory takes files");
    path.display().to_string()
}

const NET: &str = "ip=192.168.249.1,mask=255.255.255.0,mac=52:54:00:aa:bb:cc";
const PATH: &str = "/2021-03-23/meta-data/local-hostname";

/// A guest that asks as it is told; the thread is in a network namespace of its own from then on.
fn guest(scratch: &Scratch, metadata: &str, net: &str) -> Living {
    tap::enter_private_network().expect("these tests run as root");
    let cmdline = format!("probe.run=web probe.ip=192.168.249.2 probe.host=192.168.249.1 probe.path={PATH}");
    let arguments = ["--metadata", metadata, "--net", net];
    let mut machine = Living::boot(scratch.path(), "boot", &cmdline, &arguments);
    machine.wait_for("# ready for steps");
    machine
}

/// Has the guest do a step; what it tells of it.
fn step(machine: &mut Living, letter: &str) -> String {
    machine.type_in(letter);
    machine.wait_for("WEB ").trim().to_owned()
}

#[test]
fn a_guest_reads_what_its_host_says_and_then_says_otherwise() {
    let scratch = Scratch::new();
    let mut machine = guest(&scratch, &document(&scratch, "first"), NET);
    assert_eq!(step(&mut machine, "o"), "status=200 first");
    assert_eq!(step(&mut machine, "t"), "status=200 token=64");
    assert_eq!(step(&mut machine, "g"), "status=200 first");
    let (status, text) = machine.ask("GET", "vm.metadata", &Value::Null);
    assert_eq!((status, &*text), (200, r#"{"latest":{"meta-data":{"local-hostname":"first"}}}"#));
    let patch = json!({"latest": {"meta-data": {"local-hostname": "second"}}});
    assert_eq!(machine.ask("PATCH", "vm.metadata", &patch).0, 204);
    assert_eq!(step(&mut machine, "g"), "status=200 second");
    // A request that began before a change is answered with what is there when it is complete.
    assert_eq!(step(&mut machine, "b"), "begun");
    machine.put("vm.metadata", &json!({"meta-data": {"local-hostname": "third"}}));
    assert_eq!(step(&mut machine, "c"), "status=200 third");
    let large = json!({ "a": "x".repeat(51_200) });
    for verb in ["PUT", "PATCH"] {
        let (status, text) = machine.ask(verb, "vm.metadata", &large);
        assert!(status == 400 && text.contains("51200 are possible"), "{status} {text}");
    }
    assert_eq!(step(&mut machine, "g"), "status=200 third");
    // By IPv6 it is the same service: it knows the token, and what changed while a request was coming.
    assert_eq!(step(&mut machine, "6"), "station=06:00:a9:fe:a9:fe");
    assert_eq!(step(&mut machine, "o"), "status=200 third");
    assert_eq!(step(&mut machine, "g"), "status=200 third");
    assert_eq!(step(&mut machine, "b"), "begun");
    machine.put("vm.metadata", &json!({"meta-data": {"local-hostname": "fourth"}}));
    assert_eq!(step(&mut machine, "c"), "status=200 fourth");
    // Nothing of it is told elsewhere.
    assert_eq!(machine.info()["config"]["metadata"]["tokens"], "Optional");
    assert!(!machine.info().to_string().contains("fourth"));
    machine.end().all_passed();
}

#[test]
fn a_restored_guest_gets_a_new_token_and_what_the_file_says_now() {
    let scratch = Scratch::new();
    let file = document(&scratch, "before");
    let mut machine = guest(&scratch, &format!("{file},tokens=required"), NET);
    assert_eq!(step(&mut machine, "o"), "status=401 401 Unauthorized");
    assert_eq!(step(&mut machine, "t"), "status=200 token=64");
    assert_eq!(step(&mut machine, "g"), "status=200 before");
    machine.put("vm.metadata", &json!({"meta-data": {"local-hostname": "secret"}}));
    assert_eq!(step(&mut machine, "g"), "status=200 secret");
    // One that is left by IPv6 is as unknown afterwards as any.
    assert_eq!(step(&mut machine, "6"), "station=06:00:a9:fe:a9:fe");
    assert_eq!(step(&mut machine, "b"), "begun");
    machine.put("vm.pause", &Value::Null);
    let saved = scratch.file("snapshot");
    std::fs::create_dir(&saved).expect("the scratch directory takes another");
    let url = format!("file://{}", saved.display());
    machine.put("vm.snapshot", &json!({ "destination_url": url }));
    drop(machine);
    let config = std::fs::read_to_string(saved.join("config.json")).expect("the snapshot has a description");
    assert!(config.contains("document.json") && !config.contains("secret"), "{config}");

    document(&scratch, "after");
    let restore = format!("source_url={url},resume=on");
    let mut machine = Living::restore(scratch.path(), "restored", &restore, &[]);
    assert_eq!(step(&mut machine, "c"), "status=reset");
    assert_eq!(step(&mut machine, "g"), "status=401 401 Unauthorized");
    assert_eq!(step(&mut machine, "t"), "status=200 token=64");
    assert_eq!(step(&mut machine, "g"), "status=200 after");
    assert_eq!(step(&mut machine, "4"), "station=06:00:a9:fe:a9:fe");
    assert_eq!(step(&mut machine, "o"), "status=401 401 Unauthorized");
    assert_eq!(step(&mut machine, "g"), "status=200 after");
    drop(machine);

    // And with what the command line says instead.
    std::fs::write(scratch.file("other.json"), r#"{"meta-data":{"local-hostname":"other"}}"#)
        .expect("the scratch directory takes files");
    let other = format!("{},tokens=optional", scratch.file("other.json").display());
    let mut machine = Living::restore(scratch.path(), "again", &restore, &["--metadata", &other]);
    assert_eq!(step(&mut machine, "o"), "status=200 other");
    machine.end().all_passed();
}

#[test]
fn a_machine_described_without_has_none_to_change() {
    let scratch = Scratch::new();
    let machine = Living::wait(scratch.path(), "empty");
    for verb in ["GET", "PUT", "PATCH"] {
        let body = if verb == "GET" { Value::Null } else { json!({}) };
        assert_eq!(machine.ask(verb, "vm.metadata", &body).0, 404, "{verb}");
    }
    let kernel = tests::programs::probe().display().to_string();
    machine.put("vm.create", &json!({ "payload": { "kernel": kernel } }));
    let (status, text) = machine.ask("GET", "vm.metadata", &Value::Null);
    assert!(status == 405 && text.contains("--metadata"), "{status} {text}");
    machine.put("vm.delete", &Value::Null);
    // It is there before the machine runs.
    machine.put("vm.create", &json!({ "payload": { "kernel": kernel }, "metadata": {} }));
    machine.put("vm.metadata", &json!({"a": 1}));
    assert_eq!(machine.ask("GET", "vm.metadata", &Value::Null), (200, r#"{"a":1}"#.into()));
    let (status, text) = machine.ask(
        "PUT",
        "vm.create",
        &json!({ "payload": { "kernel": kernel }, "metadata": {"file": "/no/such"} }),
    );
    assert!(status >= 400, "{text}");
    machine.put("vm.delete", &Value::Null);
    let missing = json!({ "payload": { "kernel": kernel }, "metadata": {"file": "/no/such"} });
    let (status, text) = machine.ask("PUT", "vm.create", &missing);
    assert!(status == 500 && text.contains("Cannot read the metadata document /no/such"), "{status} {text}");
    machine.shut_down().ended_well();
}
