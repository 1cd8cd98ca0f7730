use serde_json::json;
use spec::{Kind, Spec};

use crate::overrides::Overrides;
use crate::restore::{MemoryRestoreMode, RestoreRequest, RestoreSpec, fd_backed_nets};
use crate::{VmSpec, overrides};
use virtio_devices::block::DiskSpec;
use virtio_devices::net::NetSpec;

fn machine() -> VmSpec {
    let disk = DiskSpec::parse("id=_disk0,path=/old,readonly=on,serial=abc").unwrap();
    let net = NetSpec::parse("id=_net1,tap=tap3,mac=2e:11:22:33:44:55").unwrap();
    VmSpec { disks: Some(vec![disk]), net: Some(vec![net]), ..VmSpec::default() }
}

fn from_json(value: serde_json::Value) -> Overrides {
    serde_json::from_value::<RestoreRequest>(value).unwrap().overrides
}

#[test]
fn a_request_names_the_snapshot_and_what_is_different() {
    let request: RestoreRequest = serde_json::from_value(json!({
        "source_url": "file:///srv/s", "memory_restore_mode": "OnDemand", "resume": true,
        "net_fds": [{"id": "_net1", "num_fds": 1}],
        "disks": [{"id": "_disk0", "path": "/new"}], "from_the_future": 1,
    }))
    .unwrap();
    assert_eq!(request.restore.memory_restore_mode, Some(MemoryRestoreMode::OnDemand));
    assert!(request.restore.resume && request.restore.net_fds.0[0].num_fds == 1);
    let mut vm = machine();
    vm.replace(&request.overrides).unwrap();
    let disk = &vm.disks.as_ref().unwrap()[0];
    assert_eq!(disk.path, Some("/new".into()));
    // What is not named stays as it was saved.
    assert!(disk.readonly && disk.serial.as_deref() == Some("abc"));
    assert_eq!(vm.net, machine().net);
}

#[test]
fn a_flag_says_the_same_as_json() {
    let patch = overrides::patch_of::<DiskSpec>("id=_disk0,path=\"/a,b\",direct=on").unwrap();
    assert_eq!(json!(patch), json!({"id": "_disk0", "path": "/a,b", "direct": true}));
    // A tap that is named no more is made anew.
    let patch = overrides::patch_of::<NetSpec>("id=_net1,tap=").unwrap();
    assert_eq!(json!(patch), json!({"id": "_net1", "tap": null}));
    let console = overrides::patch_of::<platform::SerialSpec>("file=/x").unwrap();
    assert_eq!(json!(console), json!({"mode": "File", "file": "/x", "socket": null}));
    assert_eq!(overrides::patch_of::<DiskSpec>("pfad=/x").unwrap_err().to_string(), "Error parsing --disk");
}

#[test]
fn what_the_guest_relies_on_cannot_be_replaced() {
    for (field, patch, kind) in [
        ("disks", json!([{"id": "_disk0", "readonly": false}]), Kind::Invalid),
        ("disks", json!([{"id": "_disk0", "num_queues": 4}]), Kind::Invalid),
        ("disks", json!([{"id": "_disk9", "path": "/x"}]), Kind::Absent),
        ("disks", json!([{"path": "/x"}]), Kind::Invalid),
        ("disks", json!({"id": "_disk0", "path": "/x"}), Kind::Invalid),
        ("disks", json!([{"id": "_disk0", "path": 7}]), Kind::Invalid),
        ("net", json!([{"id": "_net1", "mtu": 9000}]), Kind::Invalid),
        ("net", json!([{"id": "_net1", "mac": "zz"}]), Kind::Invalid),
        ("serial", json!([{"mode": "Pty"}]), Kind::Invalid),
        ("serial", json!({"mode": "Wall"}), Kind::Invalid),
        ("rng", json!({"pci_segment": 1}), Kind::Invalid),
    ] {
        let overrides = from_json(json!({"source_url": "file:///s", field: patch}));
        let refusal = machine().replace(&overrides).unwrap_err();
        assert_eq!(refusal.kind(), kind, "{field}: {:?}", refusal.chain());
    }
    let overrides = from_json(json!({"disks": [{"id": "_disk0", "readonly": false}]}));
    let chain = machine().replace(&overrides).unwrap_err().chain().join(": ");
    assert!(chain.contains("_disk0") && chain.contains("readonly") && chain.contains("path"), "{chain}");
}

#[test]
fn the_way_back_is_checked() {
    let check = |text: &str| {
        let spec = RestoreSpec::parse(text).map_err(|e| e.chain().join(": "))?;
        spec.check(&spec::Facts::default()).map_err(|e| e.chain().join(": "))
    };
    assert_eq!(
        check("source_url=file:///s,memory_restore_mode=mmap,net_fds=[a@[3,4],b@[5]],resume=on"),
        Ok(())
    );
    for (text, complaint) in [
        ("", "Error parsing --restore: source_url missing"),
        ("source_url=/s", "source_url must be file:// and a directory, not \"/s\""),
        ("source_url=file://", "source_url must be file:// and a directory"),
        (
            "source_url=file:///s,prefault=on,memory_restore_mode=ondemand",
            "'prefault' cannot be combined with 'memory_restore_mode=ondemand'",
        ),
        ("source_url=file:///s,net_fds=[a@[3],a@[4]]", "Identifier a is not unique"),
        ("source_url=file:///s,memory_restore_mode=fast", "expected one of copy|ondemand|mmap"),
        ("source_url=file:///s,zone_updates=[a@1]", "zone_updates is not supported yet"),
    ] {
        let said = check(text).unwrap_err();
        assert!(said.contains(complaint), "{text}: {said}");
    }
}

#[test]
fn a_card_that_had_open_taps_when_it_was_saved_needs_as_many_or_one_by_name() {
    let text = r#"{"net":[{"id":"a","fds":[7,8]},{"id":"b","fds":[]},{"id":"c","tap":"t"},{"fds":[9]}]}"#;
    let saved: VmSpec = serde_json::from_str(text).unwrap();
    let with_fds = fd_backed_nets(&saved);
    assert_eq!(with_fds, [("a".to_owned(), 2)]);
    let given = |request: serde_json::Value| {
        let request: RestoreRequest = serde_json::from_value(request).unwrap();
        let mut spec = saved.clone();
        spec.replace(&request.overrides).unwrap();
        request.give_taps(&mut spec, &with_fds).map_err(|e| e.to_string())
    };
    assert_eq!(given(json!({})), Err("Net id a is associated with FDs and is required".into()));
    assert_eq!(
        given(json!({"net_fds": [{"id": "a", "num_fds": 1}]})),
        Err("Number of Net FDs passed for 'a' during Restore: 1. Expected: 2".into())
    );
    assert_eq!(given(json!({"net_fds": [{"id": "a", "num_fds": 2}]})), Ok(()));
    assert_eq!(given(json!({"net": [{"id": "a", "tap": "t1"}]})), Ok(()));
}
