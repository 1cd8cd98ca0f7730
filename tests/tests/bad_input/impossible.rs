//! States of a machine that cannot be, one by one: each is refused, and the refusal says what is wrong.

use std::time::Instant;

use serde_json::{Value, json};

use crate::bench::root;
use crate::hostile::{MEMORY_LIMIT, PATIENCE};
use crate::namespace::with_network;
use crate::saved::{Snapshot, Story};

/// A change that must be refused: what it is, and what the refusal says.
type Wrong = (&'static str, fn(&mut Snapshot), &'static str);

/// Moves a BAR of the disk.
fn bar(s: &mut Snapshot, base: u64) {
    let disk = s.device("disk");
    let room = &mut disk["function"]["body"]["bars"][0];
    (room["base"], room["room"]) = (base.into(), base.into());
}

fn setup(s: &mut Snapshot) -> &mut Value {
    &mut s.device("disk")["state"]["body"]["setup"]["queues"][0]
}

const WRONG: &[Wrong] = &[
    ("a device less", |s| drop(s.devices().remove("disk")), "The state of device \"disk\" is missing"),
    (
        "a device more",
        |s| {
            let copy = s.device("disk").clone();
            s.devices().insert("ghost".into(), copy);
        },
        "There is a state of device \"ghost\", which the description of the machine does not have",
    ),
    (
        "devices in each other's place",
        |s| {
            let (disk, net) = (s.device("disk").clone(), s.device("net").clone());
            s.devices().insert("disk".into(), net);
            s.devices().insert("net".into(), disk);
        },
        "",
    ),
    (
        "another kind",
        |s| s.device("__serial")["state"]["kind"] = "toaster".into(),
        "expected the state of kind \"serial\", found \"toaster\"",
    ),
    (
        "another version",
        |s| s.device("__serial")["state"]["version"] = 7.into(),
        "state \"serial\" has version 7, and this program knows versions up to 1",
    ),
    (
        "a part left over",
        |s| s.device("__serial")["state"]["parts"] = json!({"x": {"kind": "x", "version": 1, "body": null}}),
        "there is a state of part \"x\"",
    ),
    ("a BAR in memory", |s| bar(s, 0x10_0000), "BAR 0 cannot be at 0x100000+"),
    ("a BAR that is not aligned", |s| bar(s, 0xe800_0100), "BAR 0 cannot be at 0xe8000100+"),
    ("a BAR over the end of everything", |s| bar(s, 0xffff_ffff_fff8_0000), "BAR 0 cannot be at"),
    (
        "a BAR on another's",
        |s| {
            let net = s.device("net")["function"]["body"]["bars"][0].clone();
            s.device("__console")["function"]["body"]["bars"][0] = net;
        },
        "BAR 0 cannot be at",
    ),
    ("slot 0", |s| s.device("disk")["placed"]["pci"]["slot"] = 0.into(), "slot 0 of PCI segment 0 is in use"),
    ("slot 32", |s| s.device("disk")["placed"]["pci"]["slot"] = 32.into(), "PCI segment 0 has no slot 32"),
    ("slot 255", |s| s.device("disk")["placed"]["pci"]["slot"] = 255.into(), "PCI segment 0 has no slot 255"),
    (
        "another's slot",
        |s| s.device("disk")["placed"]["pci"]["slot"] = s.device("net")["placed"]["pci"]["slot"].clone(),
        "slot ",
    ),
    (
        "another segment",
        |s| s.device("disk")["placed"]["pci"]["segment"] = 1.into(),
        "does not fit the device",
    ),
    (
        "a window elsewhere",
        |s| s.device("__serial")["placed"]["windows"][0]["base"] = 0x2f8.into(),
        "it was at ",
    ),
    ("a line elsewhere", |s| s.device("__serial")["placed"]["lines"][0] = 5.into(), "it was at "),
    ("a queue behind memory", |s| setup(s)["desc"] = (64 << 20).into(), "which is not in memory"),
    (
        "a queue over the end",
        |s| setup(s)["device"] = 0xffff_ffff_ffff_fff0_u64.into(),
        "which is not in memory",
    ),
    ("a queue of size 0", |s| setup(s)["size"] = 0.into(), "size of queue 0 is 0"),
    ("a queue of size 3", |s| setup(s)["size"] = 3.into(), "size of queue 0 is 3"),
    ("a queue too large", |s| setup(s)["size"] = 32768.into(), "size of queue 0 is 32768"),
    (
        "a queue ahead of itself",
        |s| {
            let position = &mut s.device("disk")["state"]["body"]["positions"][0];
            position["next_avail"] = ((position["next_avail"].as_u64().unwrap() + 30000) % 65536).into();
        },
        "has taken up to",
    ),
    ("no position", |s| s.device("disk")["state"]["body"]["positions"] = json!([]), "positions has 0 queues"),
    (
        "more vectors",
        |s| many(&mut s.device("disk")["function"]["parts"]["msix"]["body"]["entries"], 5000),
        "entries has 5000 vectors",
    ),
    (
        "a vector that is not",
        |s| s.device("disk")["function"]["parts"]["msix"]["body"]["pending"] = json!([999]),
        "pending has vector 999",
    ),
    (
        "a million bytes",
        |s| s.device("__serial")["state"]["body"]["received"] = vec![0; 1_000_000].into(),
        "received has 1000000 bytes",
    ),
    (
        "a million typed bytes",
        |s| s.console()["input"] = vec![0; 1_000_000].into(),
        "input of \"__console\" has 1000000 bytes",
    ),
    (
        "a long CMOS",
        |s| many(&mut s.device("__cmos")["state"]["body"]["memory"], 129),
        "memory has 129 bytes",
    ),
    ("few pins", |s| many(&mut s.device("__ioapic")["state"]["body"]["pins"], 3), "pins has 3 pins"),
    (
        "a short extended state",
        |s| s.cpu(0)["xsave"] = "00".repeat(512).into(),
        "the extended state has 512 bytes",
    ),
    (
        "a long extended state",
        |s| s.cpu(1)["xsave"] = "00".repeat(100_000).into(),
        "the extended state has 100000 bytes",
    ),
    ("half a byte", |s| s.cpu(0)["xsave"] = "0".into(), "expected pairs of hexadecimal digits"),
    (
        "few APIC registers",
        |s| many(&mut s.cpu(0)["lapic"]["registers"], 63),
        "expected 64 registers, found 63",
    ),
    ("many leaves", |s| many(&mut s.cpu(0)["cpuid"], 300), "CPUID has 300 entries"),
    ("many MSRs", |s| many(&mut s.cpu(1)["msrs"], 100_000), "the MSR list has 100000 entries"),
    ("many vCPUs", |s| many(&mut s.machine()["cpus"], 500), "and the state of 500 was saved"),
    (
        "more values than are read",
        |s| s.device("__serial")["state"]["body"]["received"] = vec![0; 6 << 20].into(),
        "bytes of memory, and at most 536870912 are allowed",
    ),
    (
        "many ranges of memory",
        |s| {
            s.state["memory"]["ranges"] = (0..8192).map(|n| json!({"gpa": n << 12, "length": 4096})).collect()
        },
        "its memory has 8192 ranges, and at most 1024 can be",
    ),
    (
        "memory elsewhere",
        |s| s.state["memory"]["ranges"][0]["gpa"] = 4096.into(),
        "The snapshot has memory at ",
    ),
];

/// As many of the first of a list.
fn many(list: &mut Value, count: usize) {
    let first = list[0].clone();
    *list = vec![first; count].into();
}

impl Snapshot {
    fn devices(&mut self) -> &mut serde_json::Map<String, Value> {
        self.machine()["board"]["devices"].as_object_mut().unwrap()
    }

    fn console(&mut self) -> &mut Value {
        &mut self.device("__console")["state"]["parts"]["device"]["body"]
    }
}

#[test]
fn states_that_cannot_be() {
    if !root("taps of saved machines") {
        return;
    }
    with_network(|| {
        let story = Story::new();
        story.forget_memory();
        for (what, change, message) in WRONG {
            let mut bad = story.bad();
            change(&mut bad);
            assert!(bad.state != story.good.state, "{what}: nothing is different");
            bad.write();
            let begun = Instant::now();
            let body = br#"{"source_url":"file://bad"}"#;
            let (status, text) = story.server.ask("PUT", "vm.restore", body);
            let text = text.replace("\\\"", "\"");
            assert!((400..500).contains(&status) && text.contains(message), "{what}: {status} {text}");
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", begun.elapsed());
            assert!(text.len() < 2000, "{what}: {} bytes of answer", text.len());
        }
        story.nothing_is_left();
        let memory = story.most_memory();
        assert!(memory < MEMORY_LIMIT, "{memory} bytes");
        let log = story.server.log();
        assert!(log.len() < 20_000, "{} bytes of log: {}", log.len(), &log[..2000]);
        story.ends_well();
    });
}
