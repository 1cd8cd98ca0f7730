//! Snapshots that earlier versions have written, in `tests/golden/`: their machines go on, now and in every version to come.
//!
//! A change of the form of a state raises its version and brings an upgrade; then these tests show that the upgrade works. They are
//! never mended by writing a snapshot anew. The next version gets one more beside them:
//!
//! ```console
//! $ VIRGA_GOLDEN=tests/golden/snapshot-v2 cargo test -p tests --test probe -- --ignored golden::one_more
//! ```
//!
//! What is large is compressed, and needs `gzip` to be read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tests::image::{SECTOR, crc32};
use tests::living::Living;
use tests::programs;
use tests::scratch::Scratch;
use tests::tap::{self, Partner, Tap};

/// The guest's card.
const MAC: &str = "52:54:00:10:ad:01";
const MAC_BYTES: [u8; 6] = [0x52, 0x54, 0, 0x10, 0xad, 1];
const SECTORS: u64 = 16;
/// Frames that are out at most, so as many are given up with the restore.
const WINDOW: u64 = 4;
/// What is written is small: little memory is touched, and few frames have a place in it.
const CMDLINE: &str =
    "probe.run=load probe.touch=1 probe.sectors=16 probe.depth=2 probe.window=4 probe.beat=100";
/// What is compressed.
const LARGE: [&str; 2] = ["memory-ranges", "disk"];
/// Bytes of the part of the extended state that every processor has, with the header behind it (SDM volume 1, 13.4).
const XSAVE_COMMON: usize = 576;
/// The header's two bitmaps: of what is in the area, and of its form.
const XSAVE_HEADER: usize = 512;

/// A machine of that kind, at work.
fn boot(scratch: &Scratch) -> Living {
    File::create(scratch.file("disk")).and_then(|file| file.set_len(SECTORS * SECTOR)).expect("a disk");
    let file = |name: &str| format!("file={}", scratch.file(name).display());
    let disk = format!("path={},image_type=raw,id=disk0", scratch.file("disk").display());
    let net = format!("tap=golden0,mac={MAC},id=net0,queue_size=16");
    let mut machine = Living::boot(
        scratch.path(),
        "first",
        CMDLINE,
        &[
            ["--memory", "size=16M"],
            // Few enough bits of address for any host.
            ["--cpus", "boot=2,max_phys_bits=36"],
            ["--disk", &disk],
            ["--net", &net],
            ["--console", &file("console")],
            ["--debug-console", &file("debug")],
        ]
        .concat(),
    );
    machine.progress(300, 30);
    machine
}

/// Pauses it, and saves it in a directory.
fn save(machine: &Living, directory: &Path) {
    machine.put("vm.pause", &Value::Null);
    fs::create_dir_all(directory).expect("a directory");
    machine.put("vm.snapshot", &json!({"destination_url": format!("file://{}", directory.display())}));
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the snapshot is whole")).expect("it is JSON")
}

/// Gives a saved vCPU what depends on the host's processor: the features that the guest is told of, the size of what belongs to them, and the rate of
/// its counter. Everything else is as it was. A snapshot is for hosts that have at least the features of the one where it was taken, and
/// the one where this test runs may have others, be of another vendor even. The probe uses none of them, and looks at no clock.
fn adapt(cpu: &mut Value, here: &Value) {
    let bytes = |cpu: &Value| -> Vec<u8> {
        let text = cpu["xsave"].as_str().expect("a text").as_bytes();
        let digits = text.as_chunks::<2>().0.iter().map(|pair| std::str::from_utf8(pair).expect("digits"));
        digits.map(|pair| u8::from_str_radix(pair, 16).expect("digits")).collect()
    };
    let mut area = bytes(cpu);
    area.truncate(XSAVE_COMMON);
    area[XSAVE_HEADER] &= 0b11;
    area[XSAVE_HEADER + 1..].fill(0);
    area.resize(bytes(here).len(), 0);
    cpu["xsave"] = area.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    for key in ["cpuid", "tsc_khz"] {
        cpu[key] = here[key].clone();
    }
}

/// Brings a golden snapshot to a directory, for this host's processor; `here` is a snapshot that was taken on it.
fn bring(golden: &Path, directory: &Path, here: &Value) {
    fs::create_dir(directory).expect("a directory");
    fs::copy(golden.join("config.json"), directory.join("config.json")).expect("it is there");
    for name in LARGE {
        let (packed, plain) = (golden.join(format!("{name}.gz")), directory.join(name));
        let mut unpack = Command::new("gzip");
        unpack.arg("-dc").stdin(File::open(&packed).expect("it is there"));
        let status = unpack.stdout(File::create(&plain).expect("a file")).status().expect("gzip runs");
        assert!(status.success(), "{}", packed.display());
    }
    fs::rename(directory.join("disk"), directory.with_extension("disk")).expect("it is there");
    let mut state = json(golden.join("state.json"));
    let cpus = state["machine"]["body"]["cpus"].as_array_mut().expect("a list");
    assert_eq!(cpus.len(), 2);
    let here = &here["machine"]["body"]["cpus"][0]["body"];
    cpus.iter_mut().for_each(|cpu| adapt(&mut cpu["body"], here));
    state.as_object_mut().expect("an object").remove("checksum");
    let mut text = state.to_string();
    text.pop();
    let text = format!("{text},\"checksum\":\"{:08x}\"}}\n", crc32(text.as_bytes()));
    fs::write(directory.join("state.json"), text).expect("a file");
}

#[test]
fn machines_of_earlier_versions_go_on() {
    tap::enter_private_network().expect("these tests run as root");
    let scratch = Scratch::new();
    let here = {
        let _tap = Tap::new("golden0").expect("a tap can be made");
        let _partner = Partner::new("golden0", MAC_BYTES, 0).expect("a partner can sit down at it");
        let machine = boot(&scratch);
        save(&machine, &scratch.file("here"));
        json(scratch.file("here/state.json"))
    };
    let all = fs::read_dir(programs::checkout().join("tests/golden")).expect("there are some");
    let mut all: Vec<_> = all.flatten().map(|entry| entry.path()).collect();
    all.sort();
    assert!(!all.is_empty());
    for golden in all {
        let name = golden.file_name().expect("a name").to_string_lossy().into_owned();
        for mode in ["copy", "ondemand", "mmap"] {
            println!("{name} by {mode}");
            let _tap = Tap::new("golden1").expect("a tap can be made");
            let _partner = Partner::new("golden1", MAC_BYTES, 1).expect("a partner can sit down at it");
            let directory = scratch.file(&format!("{name}-{mode}"));
            bring(&golden, &directory, &here);
            let value =
                format!("source_url=file://{},memory_restore_mode={mode},resume=on", directory.display());
            let disk = format!("id=disk0,path={}", directory.with_extension("disk").display());
            let file = |name: &str| format!("file={}", scratch.file(name).display());
            let mut machine = Living::restore(
                scratch.path(),
                &format!("{name}-{mode}"),
                &value,
                &[
                    ["--disk", &disk],
                    ["--net", "id=net0,tap=golden1"],
                    ["--console", &file("console")],
                    ["--debug-console", &file("debug")],
                ]
                .concat(),
            );
            machine.progress(500, 50);
            machine.pause_and_resume(std::time::Duration::from_millis(1));
            machine.progress(100, 10);
            let report = machine.end();
            report.all_passed();
            let abandoned: u64 = report.fact("load", "abandoned").parse().expect("a number");
            assert!(abandoned <= WINDOW, "{report}");
        }
    }
}

#[test]
#[ignore = "writes a snapshot of this version to the directory that VIRGA_GOLDEN names, to be kept for ever"]
fn one_more() {
    tap::enter_private_network().expect("these tests run as root");
    let target = std::env::var_os("VIRGA_GOLDEN").expect("VIRGA_GOLDEN names a directory");
    let target = programs::checkout().join(target);
    fs::create_dir_all(&target).expect("a directory");
    let scratch = Scratch::new();
    let _tap = Tap::new("golden0").expect("a tap can be made");
    let _partner = Partner::new("golden0", MAC_BYTES, 0).expect("a partner can sit down at it");
    let machine = boot(&scratch);
    let saved = scratch.file("saved");
    save(&machine, &saved);
    fs::copy(scratch.file("disk"), saved.join("disk")).expect("a copy");
    for name in ["config.json", "state.json"] {
        fs::copy(saved.join(name), target.join(name)).expect("a copy");
    }
    for name in LARGE {
        let mut pack = Command::new("gzip");
        pack.args(["-9nc"]).arg(saved.join(name)).stdin(Stdio::null());
        let packed = File::create(target.join(format!("{name}.gz"))).expect("a file");
        assert!(pack.stdout(packed).status().expect("gzip runs").success());
    }
}
