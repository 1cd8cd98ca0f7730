//! What a process in a jail is asked for later than it was started: each refusal names the rule that would have allowed it.

use serde_json::{Value, json};
use tests::living::Living;
use tests::programs;
use tests::scratch::Scratch;

#[test]
fn a_machine_described_in_a_jail_must_do_with_what_is_there() {
    let scratch = Scratch::new();
    let kernel = programs::probe().canonicalize().expect("the probe is there");
    let rule = format!("path={},access=r", kernel.display());
    let inside = scratch.file("inside");
    std::fs::create_dir(&inside).expect("the scratch directory takes another");
    let room = format!("path={},access=rw", inside.display());
    let arguments = ["--jail", "on", "--landlock-rules", &rule, &room];
    let machine = Living::wait_with(scratch.path(), "api", &arguments);
    let described = |more: &Value| {
        let mut all = json!({
            "payload": { "kernel": kernel, "cmdline": "probe.run=hang" },
            "serial": { "mode": "Null" },
            "console": { "mode": "Off" },
        });
        for (key, value) in more.as_object().expect("it is an object") {
            all[key] = value.clone();
        }
        all
    };
    let file = |path| json!({ "console": { "mode": "File", "file": path } });
    let outside = scratch.path().display();
    for (more, rule) in [
        (json!({ "serial": { "mode": "Pty" } }), "path=/dev/pts,access=rw".to_owned()),
        (file(scratch.file("log")), format!("path={outside},access=w")),
        (json!({ "vsock": { "cid": 3, "socket": "vsock" } }), "path=.,access=w".to_owned()),
        (json!({ "disks": [{ "path": scratch.file("disk") }] }), format!("path={outside}/disk,access=rw")),
    ] {
        let (status, text) = machine.ask("PUT", "vm.create", &described(&more));
        assert!(
            status == 400
                && text.contains(&format!(" is not in the jail: it would need --landlock-rules {rule}\"")),
            "{more}: {status} {text}"
        );
    }
    machine.put("vm.create", &described(&file(inside.join("log"))));
    machine.put("vm.boot", &Value::Null);
    machine.shut_down().ended_well();
    assert!(inside.join("log").exists());
}
