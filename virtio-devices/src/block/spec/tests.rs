//! What the flag and the JSON body take and refuse, and what is said of images that cannot be used.

use device::Kept;
use vmm_sys_util::tempdir::TempDir;

use super::*;

fn parse(text: &str) -> Result<DiskSpec, Refusal> {
    let spec = DiskSpec::parse(text)?;
    spec.check(&Facts { boot_vcpus: 4, ..Facts::default() })?;
    Ok(spec)
}

fn refusal(text: &str) -> String {
    parse(text).expect_err("this must be refused").chain().join(": ")
}

#[test]
fn defaults_and_every_key() {
    assert_eq!(parse("path=/a").unwrap(), DiskSpec { path: Some("/a".into()), ..DiskSpec::default() });
    let all = parse(
        "path=/a,readonly=on,direct=true,num_queues=2,queue_size=256,queue_affinity=[0@[1,2-3],1@4],serial=x,\
         sparse=off,image_type=RAW,lock_granularity=full,id=d,vhost_user=off,backing_files=off,_disable_io_uring=on",
    )
    .unwrap();
    assert!(all.readonly && all.direct && !all.sparse && all.disable_io_uring);
    assert_eq!((all.num_queues, all.queue_size), (2, 256));
    assert_eq!(all.queue_affinity.by_queue(3), [vec![1, 2, 3], vec![4], vec![]]);
    assert_eq!(all.image_type, DiskType::stated(ImageType::Raw));
    assert_eq!(all.lock_granularity, LockGranularity::Full);
    assert_eq!(all.pci.id.as_deref(), Some("d"));
}

#[test]
fn wrong_combinations_are_refused_in_the_words_of_the_contract() {
    for (text, want) in [
        ("readonly=on", "Disk path missing"),
        ("path=/a,num_queues=5", "Queue count (5) must not exceed boot vCPUs (4)"),
        ("path=/a,num_queues=0", "Number of queues (0) of a disk must be at least 1"),
        ("path=/a,queue_size=100", "Queue size must be a power of 2 no greater than 32768: 100"),
        ("path=/a,queue_size=0", "Queue size must be a power of 2 no greater than 32768: 0"),
        ("path=/a,queue_size=2", "Block queue size must be greater than 2: 2"),
        (
            "path=/a,serial=123456789012345678901",
            "Block device serial length (21) exceeds maximum allowed length (20)",
        ),
        ("path=/a,queue_affinity=[1@2]", "queue_affinity names queue 1, which does not exist"),
        ("path=/a,socket=/s", "Disk path and vhost socket both provided"),
        ("path=/a,vhost_user=on,socket=/s", "Disk path and vhost socket both provided"),
        ("socket=/s", "Disk path missing"),
        (
            "vhost_user=on,socket=/s",
            "Using vhost-user requires using shared memory or huge pages (--memory shared=on or hugepages=on)",
        ),
        ("path=/a,rate_limit_group=none", "Invalid rate-limiter group"),
        ("path=/a,id=__x", "Identifier __x is not valid"),
    ] {
        assert_eq!(refusal(text), want, "{text}");
    }
    for text in ["path=/a,nonsense=1", "path=/a,direct=maybe", "path=/a,image_type=iso"] {
        assert!(refusal(text).starts_with("Error parsing --disk: "), "{text}");
    }
}

#[test]
fn a_disk_that_another_process_serves_needs_a_socket_and_has_no_limits_here() {
    let facts = Facts { shared_memory: true, ..Facts::default() };
    let check = |text: &str| DiskSpec::parse(text).unwrap().check(&facts).map_err(|e| e.chain().join(": "));
    assert_eq!(check("vhost_user=on,socket=/s,queue_size=256"), Ok(()));
    for (text, want) in [
        ("vhost_user=on", "No socket provided when using vhost-user"),
        (
            "vhost_user=on,socket=/s,bw_size=1,bw_refill_time=1",
            "Rate limiting is not supported with vhost-user",
        ),
        ("vhost_user=on,socket=/s,rate_limit_group=g", "Rate limiting is not supported with vhost-user"),
        ("vhost_user=on,socket=/s,num_queues=2", "Queue count (2) must not exceed boot vCPUs (1)"),
        ("vhost_user=on,socket=/s,queue_size=2", "Block queue size must be greater than 2: 2"),
    ] {
        assert_eq!(check(text), Err(want.to_owned()), "{text}");
    }
}

#[test]
fn json_has_the_names_of_the_contract() {
    let body = r#"{"path":"/a","readonly":true,"queue_affinity":[{"queue_index":0,"host_cpus":[1]}],
        "image_type":"Raw","lock_granularity":"Full","disable_io_uring":true,"rate_limiter_config":null,"vhost_socket":null}"#;
    let spec: DiskSpec = serde_json::from_str(body).unwrap();
    assert!(spec.readonly && spec.disable_io_uring);
    assert_eq!(spec.queue_affinity.by_queue(1), [[1]]);
    assert_eq!(spec.image_type, DiskType::stated(ImageType::Raw));
    let unknown: DiskSpec = serde_json::from_str(r#"{"path":"/a","image_type":"Unknown"}"#).unwrap();
    assert_eq!(unknown.image_type, DiskType::default());

    let limited = r#"{"path":"/a","rate_limiter_config":{"ops":{"size":1,"refill_time":2}}}"#;
    let limited: DiskSpec = serde_json::from_str(limited).unwrap();
    assert_eq!(limited, DiskSpec::parse("path=/a,ops_size=1,ops_refill_time=2").unwrap());

    let shown = serde_json::to_value(DiskSpec { path: Some("/a".into()), ..DiskSpec::default() }).unwrap();
    for key in ["image_type", "serial", "queue_affinity", "vhost_socket", "rate_limiter_config", "id"] {
        assert!(shown.get(key).is_none(), "{key}");
    }
    assert_eq!(shown["lock_granularity"], "ByteRange");
    assert_eq!(shown["backing_files"], false);
}

#[test]
fn images_that_cannot_be_used_are_named_with_whose_fault_it_is() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.as_path().join(name);
    std::fs::write(at("small"), [0; 100]).unwrap();
    std::fs::write(at("qcow2"), [&b"QFI\xfb"[..], &[0; 1020]].concat()).unwrap();
    std::fs::write(at("used"), [0; 1024]).unwrap();
    let make = |name: &str| {
        let mut spec = DiskSpec { path: Some(at(name)), ..DiskSpec::default() };
        spec.make(&Host { id: "data0", facts: &Facts::default(), kept: &Kept::default() })
    };
    let _user = make("used").unwrap();
    for (name, kind, text) in [
        ("missing", Kind::Invalid, "No such file or directory"),
        ("", Kind::Invalid, "is a directory"),
        ("small", Kind::Invalid, "has 100 bytes"),
        ("qcow2", Kind::Invalid, "is not a usable qcow2 image: its version"),
        ("used", Kind::Conflict, "is locked for writing by this program itself"),
    ] {
        let refusal = make(name).map(|_| ()).unwrap_err();
        let chain = refusal.chain().join(": ");
        assert_eq!(refusal.kind(), kind, "{chain}");
        assert!(chain.starts_with("cannot add disk \"data0\": "), "{chain}");
        assert!(chain.contains(text) && chain.contains(at(name).to_str().unwrap()), "{chain}");
    }
}
