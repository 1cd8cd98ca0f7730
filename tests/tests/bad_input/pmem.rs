//! Persistent memory that cannot be had. What is in the files stays as it was: the bench compares every byte.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};
use tests::programs;

use crate::bench::{Bench, heeding_permissions, root};
use crate::server::Server;

/// The chain of errors about the memory `id`.
fn about<'a>(id: &str, inner: &[&'a str]) -> Vec<std::borrow::Cow<'a, str>> {
    let device = [
        "Error booting VM".to_owned(),
        format!("Cannot create device {id:?} (--pmem)"),
        format!("cannot add persistent memory {id:?}"),
    ];
    device.map(Into::into).into_iter().chain(inner.iter().map(|line| (*line).into())).collect()
}

#[track_caller]
fn refuses(bench: &Bench, args: &[&str], id: &str, inner: &[&str]) {
    let chain = about(id, inner);
    bench.refuses(args, &chain.iter().map(AsRef::as_ref).collect::<Vec<_>>());
}

/// A file of zeros of this many bytes.
fn file(bench: &Bench, name: &str, bytes: u64) {
    File::create(bench.path(name)).unwrap().set_len(bytes).unwrap();
}

#[test]
fn files_that_cannot_be_memory() {
    let bench = Bench::new();
    fs::create_dir(bench.path("dir")).unwrap();
    bench.fifo("fifo");
    drop(UnixListener::bind(bench.path("socket")).unwrap());
    for (name, bytes) in [("empty", 0), ("odd", (2 << 20) + 4096), ("good", 4 << 20)] {
        file(&bench, name, bytes);
    }
    let used = "the file cannot be used";
    for (keys, inner) in [
        ("file=none", &[used, "cannot open disk image none", "No such file or directory (os error 2)"][..]),
        ("file=fifo", &[used, "disk image fifo is a FIFO; give a file or a block device"]),
        ("file=socket", &[used, "disk image socket is a socket; give a file or a block device"]),
        (
            "file=/dev/null",
            &[used, "disk image /dev/null is a character device; give a file or a block device"],
        ),
        ("file=dir", &["size is needed, because dir is a directory"]),
        ("file=empty", &["empty has 0 bytes, no multiple of 2M; size= says how much of it to use"]),
        ("file=odd", &["odd has 2101248 bytes, no multiple of 2M; size= says how much of it to use"]),
        ("file=good,size=6M", &["good has 4194304 bytes, and 6291456 are to be used"]),
    ] {
        for discard in ["", ",discard_writes=on,id=mine"] {
            let id = if discard.is_empty() { "_pmem0" } else { "mine" };
            refuses(&bench, &["--pmem", &format!("{keys}{discard}")], id, inner);
        }
    }
    let twice = "disk image good is locked for writing by this program itself (is it given twice?); \
                 stop it, or use readonly=on in both";
    refuses(&bench, &["--pmem", "file=good", "file=good"], "_pmem1", &[used, twice]);
    // More than there are addresses for.
    file(&bench, "vast", 1 << 42);
    let args = ["--pmem", "file=vast", "--cpus", "boot=1,max_phys_bits=40"];
    let room = "PCI segment 0 has no room for 0x40000000000 bytes of memory";
    bench.refuses(&args, &["Error booting VM", "Cannot plug in device \"_pmem0\"", room]);
}

#[test]
fn a_file_without_permission() {
    if !root("a file without permission") {
        return;
    }
    let bench = Bench::new();
    file(&bench, "secret", 2 << 20);
    fs::set_permissions(bench.path("secret"), Permissions::from_mode(0o0)).unwrap();
    for keys in ["file=secret", "file=secret,discard_writes=on"] {
        let mut command = bench.machine(&["--pmem", keys]);
        let inner =
            ["the file cannot be used", "cannot open disk image secret", "Permission denied (os error 13)"];
        let chain = about("_pmem0", &inner);
        bench
            .refused(heeding_permissions(&mut command), &chain.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    }
}

#[test]
fn settings_that_cannot_work() {
    let bench = Bench::new();
    file(&bench, "good", 4 << 20);
    let invalid = |keys: &str, inner: &[&str]| {
        let chain = [&["Error parsing config", "Failed to validate config"][..], inner].concat();
        bench.refuses(&["--pmem", keys], &chain);
    };
    let first = "Invalid --pmem number 1";
    invalid("size=2M", &[first, "Error parsing --pmem: file missing"]);
    invalid("file=good,size=0", &[first, "Size of --pmem (0 bytes) is no multiple of 2M"]);
    invalid("file=good,size=3M", &[first, "Size of --pmem (3145728 bytes) is no multiple of 2M"]);
    invalid("file=good,pci_segment=1", &[first, "Invalid PCI segment id: 1"]);
    let unsupported = ["Error parsing config", "Error parsing --pmem", "iommu is not supported yet"];
    bench.refuses(&["--pmem", "file=good,iommu=on"], &unsupported);
}

#[test]
fn bad_memory_leaves_a_running_machine_unharmed() {
    let server = Server::start();
    let path = |name: &str| server.bench.path(name);
    file(&server.bench, "good", 4 << 20);
    file(&server.bench, "odd", 4097);
    server.does(
        "vm.create",
        &json!({
            "payload": {"kernel": programs::probe(), "cmdline": "probe.run=hang"},
            "pmem": [{"file": path("good"), "id": "p"}],
            "serial": {"mode": "File", "file": path("serial")},
        }),
    );
    server.does("vm.boot", &Value::Null);
    let before = server.info();
    for (body, status, last) in [
        (json!({"file": path("none")}), 400, "No such file or directory (os error 2)"),
        (json!({"file": path("odd")}), 400, "no multiple of 2M"),
        (json!({"file": path("good")}), 409, "is locked for writing by this program itself"),
        (json!({"file": path("odd"), "id": "p"}), 409, "Identifier p is not unique"),
        (json!({"size": 2 << 20}), 400, "Error parsing --pmem: file missing"),
        (json!({"file": path("odd"), "size": 5}), 400, "Size of --pmem (5 bytes) is no multiple of 2M"),
    ] {
        let (got, answer) = server.ask("PUT", "vm.add-pmem", body.to_string().as_bytes());
        assert!(got == status && answer.contains(last), "{body}: {got} {answer}");
        assert_eq!(server.info(), before, "{body}");
    }
    server.ends_well();
}
