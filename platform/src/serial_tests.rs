//! A driver at one end, a user at the other.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use device::Kept;
use device::fake::FakeIrq;
use device::fake::state::{golden, tamper};

use super::*;
use crate::bench::{Sink, grant, inb, line, outb, sweep};

struct Bench {
    serial: Box<dyn Device>,
    irq: Arc<FakeIrq>,
    spec: SerialSpec,
}

fn bench(flag: &str) -> Bench {
    let bench = stopped(SerialSpec::parse(flag).unwrap());
    bench.serial.start().unwrap();
    bench.serial.start().unwrap();
    bench
}

impl Bench {
    fn type_out(&self, text: &[u8]) {
        for byte in text {
            assert_eq!(outb(&*self.serial, 0, 0, *byte), Effect::None);
        }
    }

    /// Reads this many bytes as a driver that polls.
    fn type_in(&self, count: usize) -> Vec<u8> {
        let end = Instant::now() + Duration::from_secs(10);
        let mut bytes = Vec::new();
        while bytes.len() < count {
            if inb(&*self.serial, 0, 5) & 1 != 0 {
                bytes.push(inb(&*self.serial, 0, 0));
            } else {
                assert!(Instant::now() < end, "{} of {count} bytes after ten seconds", bytes.len());
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        bytes
    }
}

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("virga-serial-{name}-{}", std::process::id()))
}

#[test]
fn the_flag_defaults_to_null_and_refuses_in_the_words_of_the_contract() {
    assert_eq!(SerialSpec::default().console.mode, Mode::Null);
    let refusal = SerialSpec::parse("").unwrap_err().chain().join(": ");
    assert_eq!(refusal, "Error parsing --serial: invalid console mode given");
    let spec: SerialSpec = serde_json::from_str(r#"{"mode":"File"}"#).unwrap();
    let refusal = spec.check(&Facts::default()).unwrap_err();
    assert_eq!(refusal.to_string(), "Path missing when using file console mode");
    assert_eq!(serde_json::to_string(&SerialSpec::default()).unwrap(), r#"{"mode":"Null"}"#);
    let (facts, kept) = (Facts::default(), Kept::default());
    let host = Host { id: "__serial", facts: &facts, kept: &kept };
    assert!(matches!(SerialSpec::parse("off").unwrap().build(&host), Ok(Built::Nothing)));
    let host = Host { id: "other", facts: &facts, kept: &kept };
    let Err(refusal) = SerialSpec::parse("file=/nowhere/x").unwrap().build(&host) else { panic!("refused") };
    assert_eq!(refusal.kind(), spec::Kind::Host);
    assert!(refusal.chain()[1].contains("/nowhere/x"), "{:?}", refusal.chain());
}

#[test]
fn output_reaches_a_file_before_the_guest_goes_on() {
    let path = path("file");
    let bench = bench(&format!("file={}", path.display()));
    bench.type_out(b"Linux version 6.12\r\n");
    assert_eq!(std::fs::read(&path).unwrap(), b"Linux version 6.12\r\n");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn input_interrupts_and_enter_is_a_carriage_return() {
    let path = path("socket");
    let bench = bench(&format!("socket={}", path.display()));
    let _effect = outb(&*bench.serial, 0, 1, 0x01);
    let mut user = UnixStream::connect(&path).unwrap();
    user.write_all(b"\n").unwrap();
    assert_eq!(bench.type_in(1), b"\r");
    assert_eq!((bench.irq.count(), bench.irq.level()), (1, false));
    user.write_all(b"a\n").unwrap();
    assert_eq!(bench.type_in(2), b"a\n");
    bench.type_out(b"echo");
    let mut heard = [0; 4];
    user.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"echo");
}

#[test]
fn a_guest_that_does_not_read_holds_a_bounded_queue_and_loses_nothing() {
    let path = path("flood");
    let bench = bench(&format!("socket={}", path.display()));
    let mut user = UnixStream::connect(&path).unwrap();
    let flood: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let sent = flood.clone();
    let writer = std::thread::Builder::new().spawn(move || user.write_all(&sent).map(|()| user)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let heard = bench.type_in(flood.len());
    let wrong = heard.iter().zip(&flood).enumerate().find(|(_, (heard, sent))| heard != sent);
    assert_eq!(wrong, None, "position, heard and sent");
    let user = writer.join().unwrap().unwrap();
    assert_eq!(inb(&*bench.serial, 0, 5), 0x60, "nothing was lost");
    // Nothing is heard while stopped; what was typed meanwhile comes when started again.
    bench.serial.stop().unwrap();
    (&user).write_all(b"late").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(inb(&*bench.serial, 0, 5), 0x60);
    bench.serial.start().unwrap();
    assert_eq!(bench.type_in(4), b"late");
    drop(bench);
    assert!(!path.exists());
}

#[test]
fn a_pty_is_published_and_replays_what_was_written_before_it_was_opened() {
    let bench = bench("pty");
    let path = bench.spec.console.file.clone().expect("a path");
    assert!(path.starts_with("/dev/pts"));
    bench.type_out(b"boot log");
    let mut user =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
    let mut heard = [0; 8];
    user.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"boot log");
    user.write_all(b"ls -l\r").unwrap();
    assert_eq!(bench.type_in(6), b"ls -l\r");
}

#[test]
fn every_access_is_survived_and_com1_is_described() {
    let bench = bench("null");
    sweep(&*bench.serial, 8);
    let mut sink = Sink::default();
    bench.serial.describe(&Placed { lines: vec![4], ..Placed::default() }, &mut sink);
    assert!(sink.has(b"COM1\x08_HID\x0c\x41\xd0\x05\x01"));
    assert!(sink.has(b"\x47\x01\xf8\x03\xf8\x03\x01\x08"));
    assert!(sink.has(b"\x89\x06\x00\x03\x01\x04\x00\x00\x00"));
}

/// A port whose driver has half of what was typed still to read, and an interrupt raised.
fn busy(name: &str) -> (Bench, UnixStream) {
    let path = path(name);
    let bench = bench(&format!("socket={}", path.display()));
    for (register, value) in
        [(3, 0x80), (0, 1), (1, 0), (3, 0x03), (2, 0xc1), (4, 0x0b), (7, 0x5a), (1, 0x01)]
    {
        let _effect = outb(&*bench.serial, 0, register, value);
    }
    let mut user = UnixStream::connect(&path).unwrap();
    user.write_all(&[b'.'; 100]).unwrap();
    bench.type_in(50);
    let end = Instant::now() + Duration::from_secs(10);
    let save = || bench.serial.save().unwrap().unwrap().body()["received"].as_array().unwrap().len();
    while save() < 50 {
        assert!(Instant::now() < end, "not all arrived");
    }
    bench.serial.stop().unwrap();
    assert!(bench.irq.level());
    (bench, user)
}

#[test]
fn a_driver_goes_on_with_half_of_its_input() {
    let (old, _user) = busy("move");
    let node = old.serial.save().unwrap().unwrap();
    let text = serde_json::to_string(&node).unwrap();
    let new = stopped(SerialSpec::default());
    new.serial.load(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(new.serial.save().unwrap().unwrap(), node);
    new.serial.start().unwrap();
    assert!(new.irq.level() && new.irq.count() == 1, "an edge may have been lost");
    new.serial.stop().unwrap();
    new.serial.start().unwrap();
    assert_eq!(new.irq.count(), 1, "only the first start");
    let read = |register| inb(&*new.serial, 0, register);
    assert_eq!((read(1), read(3), read(4), read(7)), (0x01, 0x03, 0x0b, 0x5a));
    assert_eq!(read(2), 0xc4, "above the trigger level of 14");
    assert_eq!(new.type_in(50), [b'.'; 50]);
    assert!(!new.irq.level());
    let _effect = outb(&*new.serial, 0, 3, 0x80);
    assert_eq!((read(0), read(1)), (1, 0), "115200 baud");
}

/// A port that was not started.
fn stopped(mut spec: SerialSpec) -> Bench {
    let (facts, kept) = (Facts::default(), Kept::default());
    let host = Host { id: "__serial", facts: &facts, kept: &kept };
    let Built::Device(mut serial) = spec.build(&host).unwrap() else { panic!("a device") };
    let (irq, lines) = line();
    serial.wire(grant(lines).0).unwrap();
    Bench { serial, irq, spec }
}

#[test]
fn a_state_of_no_chip_is_refused_and_none_does_harm() {
    let (old, _user) = busy("tamper");
    let node = old.serial.save().unwrap().unwrap();
    let refused = |field: &str, value: u8| {
        let mut node = node.clone();
        node.change(|body| body[field] = value.into());
        stopped(SerialSpec::default()).serial.load(Some(node)).unwrap_err().to_string()
    };
    assert_eq!(refused("ier", 0x10), "state \"serial\": ier is 0x10, of which 0xf can be");
    assert_eq!(refused("fcr", 0xc0), "state \"serial\": fcr is 0xc0, of which 0x0 can be");
    assert_eq!(refused("mcr", 0x20), "state \"serial\": mcr is 0x20, of which 0x1f can be");
    assert_eq!(refused("msr", 0xf0), "state \"serial\": msr is 0xf0, of which 0xbf can be");
    for tampered in tamper(&node) {
        let Some(node) = tampered.node() else { continue };
        let bench = stopped(SerialSpec::default());
        match bench.serial.load(Some(node)) {
            Ok(()) => {
                assert!(!tampered.impossible, "{} was taken", tampered.what);
                bench.serial.start().unwrap();
                sweep(&*bench.serial, 8);
                bench.serial.save().unwrap();
            }
            Err(e) if tampered.what.ends_with("received made longer") => {
                assert!(e.to_string().ends_with("received has 70050 bytes, and at most 256 can be"), "{e}");
            }
            Err(_) => {}
        }
    }
}

#[test]
fn states_of_all_versions_load() {
    let (old, _user) = busy("golden");
    for node in golden(env!("CARGO_MANIFEST_DIR"), "serial", &old.serial.save().unwrap().unwrap()) {
        let bench = stopped(SerialSpec::default());
        bench.serial.load(Some(node)).unwrap();
        assert_eq!(bench.type_in(50), [b'.'; 50]);
    }
}
