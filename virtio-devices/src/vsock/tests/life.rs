//! Drivers, pauses, restores, and the socket's file.

use std::os::unix::fs::PermissionsExt;

use device::fake::again::Again;
use device::fake::state::{golden, tamper};

use super::*;

const EVENT_BUFFER: u64 = FREE + 0x40_0000;

#[test]
fn connections_outlive_pauses() {
    let mut guest = Guest::new("pause");
    let (mut program, mut header) = guest.accept(1, 1 << 20);
    let (to_guest, to_host) = (pattern(300_000), pattern(400_000));
    let (mut got, mut sent, mut back) = (Vec::new(), 0, Vec::<u8>::new());
    let mut room = (0u32, LARGE_ROOM);
    program.set_nonblocking(true).unwrap();
    let mut written = 0;
    let begun = Instant::now();
    let mut round = 0;
    while got.len() < to_guest.len() || back.len() < to_host.len() {
        assert!(begun.elapsed() < PATIENT, "{} {}", got.len(), back.len());
        if let Ok(count) = program.write(&to_guest[written..]) {
            written += count;
        }
        let mut bytes = [0; 10_000];
        while let Ok(count @ 1..) = program.read(&mut bytes) {
            back.extend(&bytes[..count]);
        }
        let length = (to_host.len() - sent).min(7000).min((room.1 - (sent as u32 - room.0)) as usize);
        if length > 0 {
            guest.send(&data(&header, length), &to_host[sent..sent + length]);
            sent += length;
        }
        while let Some((packet, bytes)) = guest.try_take(Duration::ZERO) {
            assert!(matches!(packet.op, op::RW | op::CREDIT_UPDATE), "{packet:?}");
            room = (packet.fwd_cnt, packet.buf_alloc);
            got.extend(bytes);
            header.fwd_cnt = got.len() as u32;
        }
        let states = guest.b.stop();
        for (queue, state) in states.iter().enumerate() {
            assert_eq!(state.next_avail, state.next_used);
            guest.b.start(queue, state.next_avail);
        }
        round += 1;
    }
    assert!(got == to_guest && back == to_host);
    assert!(round > 20, "{round}");
    guest.stop();
}

#[test]
fn a_new_driver_finds_no_connections() {
    let mut guest = Guest::new("reset");
    let (mut program, header) = guest.accept(1, 1 << 20);
    let states = guest.b.stop();
    guest.b.device.reset();
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    // Without a driver programs wait.
    let mut early = guest.program();
    early.write_all(b"CONNECT 2\n").unwrap();
    guest.b.device.activate(0).unwrap();
    for (queue, state) in states.iter().enumerate() {
        guest.b.start(queue, state.next_avail);
    }
    assert_eq!(guest.expect(op::REQUEST).dst_port, 2);
    guest.send(&data(&header, 1), b"x");
    assert_eq!(guest.expect(op::RST).dst_port, 1);
    guest.stop();
}

/// Saves the guest's device and goes on with another one.
fn moved(guest: Guest) -> Guest {
    let Guest { b, path, got, next, _dir } = guest;
    let other = path.with_extension("other");
    let b = b.move_to(|| make(&other)).unwrap();
    Guest { b, path: other, got, next, _dir }
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut guest = Guest::new("move");
    let (mut program, header) = guest.accept(1, 1 << 20);
    let (_other, later) = guest.accept(1, 1 << 20);
    program.write_all(b"lost").unwrap();
    guest.take();
    let old = guest.path.clone();
    let mut guest = moved(guest);
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    assert!(!old.exists());
    // Whoever connects waits until the guest has forgotten what was.
    let mut program = guest.program();
    program.write_all(b"CONNECT 1\n").unwrap();
    guest.b.chain(EVENT, 0, &[(EVENT_BUFFER, 8, true)]);
    guest.b.chain(EVENT, 1, &[(EVENT_BUFFER + 8, 8, true)]);
    guest.b.put(EVENT_BUFFER, &[0xff; 16]);
    guest.b.kick(EVENT);
    assert_eq!(guest.b.used(EVENT), (0, 4));
    assert_eq!(guest.b.get(EVENT_BUFFER, 4), [0; 4]);
    assert_eq!(guest.try_take(HEARING / 4), None);
    guest.b.chain(EVENT, 0, &[(EVENT_BUFFER, 8, true)]);
    guest.b.kick(EVENT);
    // The guest's listener gets a connection on a port that none of the lost ones had.
    let wanted = guest.expect(op::REQUEST);
    assert_eq!(wanted.src_port, later.dst_port + 1);
    guest.send(&Header { op: op::RESPONSE, buf_alloc: 100, ..back(&wanted) }, &[]);
    program.read_exact(&mut [0; 14]).unwrap();
    // Whoever goes on as before is corrected.
    guest.send(&data(&header, 1), b"x");
    assert_eq!(guest.expect(op::RST).src_port, header.dst_port);
    // It is told once.
    assert_eq!(guest.b.try_used(EVENT, SHORT), None);
    guest.stop();
}

#[test]
fn a_restored_guest_that_does_not_listen_is_not_waited_for_long() {
    let mut guest = moved(Guest::new("deafmove"));
    let mut program = guest.program();
    program.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(guest.try_take(HEARING / 4), None);
    guest.expect(op::REQUEST);
    // Buffers that no event fits into come back; the next one gets it.
    for (head, buffer) in
        [(EVENT_BUFFER, 3, true), (EVENT_BUFFER, 8, false), (EVENT_BUFFER, 4, true)].iter().enumerate()
    {
        guest.b.chain(EVENT, head as u16, &[*buffer]);
    }
    guest.b.kick(EVENT);
    assert_eq!([guest.b.used(EVENT), guest.b.used(EVENT), guest.b.used(EVENT)], [(0, 0), (1, 0), (2, 4)]);
    guest.stop();
}

#[test]
fn buffers_without_end_that_no_event_fits_into_do_not_hold_up_whoever_stops_the_queue() {
    let mut guest = moved(Guest::new("deafagain"));
    guest.b.chain(EVENT, 0, &[(EVENT_BUFFER, 3, true)]);
    let again = Again::new(&mut guest.b, EVENT);
    guest.b.kick(EVENT);
    for _ in 0..1000 {
        guest.b.used(EVENT);
    }
    guest.b.device.stop_queue(EVENT).unwrap();
    assert!(again.goes_on(), "the queue stopped when the driver did");
}

#[test]
fn no_state_that_was_tampered_with_does_harm() {
    let guest = Guest::new("tamper");
    let node = guest.b.device.save().unwrap().unwrap();
    let path = guest.path.with_extension("tampered");
    for tampered in tamper(&node) {
        let Some(node) = tampered.node() else { continue };
        let vsock = make(&path);
        if vsock.load(Some(node)).is_ok() {
            assert!(!tampered.impossible, "{} was taken", tampered.what);
            let b = Bench::new(vsock, u64::MAX);
            b.stop();
            b.device.save().unwrap();
        }
    }
    let e = make(&path).load(None).unwrap_err();
    assert_eq!(e.to_string(), "the state of the device is missing");
    let spec = VsockSpec::parse(&format!("cid=53,socket={}", path.display())).unwrap();
    let vsock = spec.make(&Host { id: "v", facts: &Facts::default(), kept: &Kept::default() }).unwrap();
    let e = vsock.load(Some(node)).unwrap_err().to_string();
    assert!(e.contains("cid of \"v\" is 52, and the specification's is 53"), "{e}");
    guest.stop();
}

#[test]
fn states_of_all_versions_load() {
    let mut guest = Guest::new("golden");
    guest.accept(1, 100);
    let present = guest.b.device.save().unwrap().unwrap();
    for node in golden(env!("CARGO_MANIFEST_DIR"), "virtio-vsock", &present) {
        let vsock = make(&guest.path.with_extension("golden"));
        vsock.load(Some(node)).unwrap();
        let b = Bench::new(vsock, u64::MAX);
        assert_eq!(b.device.next_port(), Some(FIRST_PORT + 1));
        b.stop();
    }
    guest.stop();
}

#[test]
fn the_socket_is_private_replaced_when_stale_kept_over_a_reboot_and_gone_in_the_end() {
    let dir = Scratch::new("file");
    let path = dir.0.join("v");
    drop(UnixListener::bind(&path).unwrap());
    let kept = Kept::default();
    let spec = VsockSpec::parse(&format!("cid=3,socket={}", path.display())).unwrap();
    let build = |id: &str, kept: &Kept| spec.make(&Host { id, facts: &Facts::default(), kept });
    let vsock = build("v", &kept).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let e = build("w", &Kept::default()).err().unwrap();
    let taken = format!("socket path {} is in use", path.display());
    assert_eq!(
        (e.kind(), e.chain()),
        (::spec::Kind::Conflict, vec!["cannot set up the socket of \"w\"".into(), taken])
    );
    drop(vsock);
    let _waiting = UnixStream::connect(&path).unwrap();
    drop(build("v", &kept).unwrap());
    kept.forget("v");
    assert!(!path.exists());
    std::fs::write(&path, "a file").unwrap();
    let e = build("v", &kept).err().unwrap();
    assert_eq!(e.chain()[2], "the path exists and is no socket");
}
