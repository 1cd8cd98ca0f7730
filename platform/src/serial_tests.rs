//! A driver at one end, a user at the other.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use device::Kept;
use device::fake::FakeIrq;

use super::*;
use crate::bench::{Sink, grant, inb, line, outb, sweep};

struct Bench {
    serial: Box<dyn Device>,
    irq: Arc<FakeIrq>,
    spec: SerialSpec,
}

fn bench(flag: &str) -> Bench {
    let mut spec = SerialSpec::parse(flag).unwrap();
    let (facts, kept) = (Facts::default(), Kept::default());
    let host = Host { id: "__serial", facts: &facts, kept: &kept };
    let Built::Device(mut serial) = spec.build(&host).unwrap() else { panic!("a device") };
    let (irq, lines) = line();
    serial.wire(grant(lines).0).unwrap();
    serial.start().unwrap();
    serial.start().unwrap();
    Bench { serial, irq, spec }
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
