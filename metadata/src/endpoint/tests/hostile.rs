//! Guests that mean no good: floods, lies, silence.

use super::*;

/// A TCP segment with its checksum undone.
fn segment(source: IpAddr, port: u16, (seq, ack): (u32, u32), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [port.to_be_bytes(), PORT.to_be_bytes()].concat();
    segment.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    framed(&packet(source, &segment))
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Where the segment begins in a frame.
fn tcp_at(frame: &[u8]) -> usize {
    ETHERNET + if frame[ETHERNET] >> 4 == 6 { 40 } else { 20 }
}

/// Sequence number, acknowledgement, flags and payload of a frame.
fn fields(frame: &[u8]) -> (u32, u32, u8, Vec<u8>) {
    let tcp = &frame[tcp_at(frame)..];
    let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
    (number(4), number(8), tcp[13], tcp[usize::from(tcp[12] >> 4) * 4..].to_vec())
}

/// Opens a connection by hand, and returns the number that the service sends next.
fn open(service: &mut Endpoint, guest: IpAddr, port: u16, now: Instant) -> u32 {
    service.take(&segment(guest, port, (1000, 0), SYN, &[]), now);
    let (seq, ack, flags, _) = fields(&service.next_frame(now).expect("an answer to SYN"));
    assert_eq!((ack, flags), (1001, SYN | ACK));
    service.take(&segment(guest, port, (1001, seq.wrapping_add(1)), ACK, &[]), now);
    seq.wrapping_add(1)
}

fn connections(service: &Endpoint) -> usize {
    service.station.connections.len()
}

#[test]
fn a_request_in_one_huge_segment_with_its_checksum_undone_is_answered() {
    // 64 KiB less the headers that count: what is beyond the window is not taken.
    for (guest, headers) in BOTH.into_iter().zip([40, 20]) {
        let (mut service, now) = (endpoint(r#"{"a":"b"}"#), Instant::now());
        let seq = open(&mut service, guest, 5000, now);
        let mut huge = b"GET /a HTTP/1.1\r\n\r\n".to_vec();
        huge.resize(65_535 - headers, b'x');
        service.take(&segment(guest, 5000, (1001, seq), ACK, &huge), now);
        let mut text = Vec::new();
        while let Some(frame) = service.next_frame(now) {
            text.extend(fields(&frame).3);
        }
        assert!(text.ends_with(b"\r\n\r\nb"), "{}", String::from_utf8_lossy(&text));
    }
}

#[test]
fn half_open_connections_are_bounded_and_given_up() {
    let (mut service, begin) = (endpoint(r#"{"a":"b"}"#), Instant::now());
    for port in 0..1000u16 {
        let source = match port % 2 {
            0 => [10, 1, (port >> 8) as u8, port as u8].into(),
            _ => [0x2001, 0xdb8, port, 1, 2, 3, 4, 5].into(),
        };
        service.take(&segment(source, 1024 + port, (7, 0), SYN, &[]), begin);
        assert!(connections(&service) <= MAX_CONNECTIONS);
    }
    assert_eq!(connections(&service), MAX_CONNECTIONS);
    assert!(service.station.wire.outgoing.len() <= MAX_WAITING);
    assert!(service.poll(begin).unwrap() <= OPENING);
    let late = begin + OPENING;
    for _ in 0..2 {
        service.poll(late);
        while service.next_frame(late).is_some() {}
    }
    assert!(connections(&service) <= 1, "{}", connections(&service));
    assert_eq!(part(&mut Guest::new(GUEST, late), &mut service, late, "/a"), "b");
}

#[test]
fn connections_that_say_nothing_or_too_little_end() {
    let (mut service, begin) = (endpoint("{}"), Instant::now());
    let mut next = 0;
    for port in 0..MAX_CONNECTIONS as u16 {
        next = open(&mut service, BOTH[usize::from(port) % 2], 2000 + port, begin);
    }
    // One more is not heard, and the others stay.
    for guest in BOTH {
        service.take(&segment(guest, 3000, (1, 0), SYN, &[]), begin);
        assert!(!service.has_frame());
    }
    // A byte a second does not help.
    let last = 2000 + MAX_CONNECTIONS as u16 - 1;
    for second in 1..10 {
        let now = begin + Duration::from_secs(second);
        service.take(&segment(BOTH[1], last, (1000 + second as u32, next), ACK, b"G"), now);
        assert_eq!(connections(&service), MAX_CONNECTIONS);
        while let Some(frame) = service.next_frame(now) {
            assert_eq!(fields(&frame).1, 1001 + second as u32, "it was taken");
        }
    }
    let late = begin + IDLE;
    service.poll(late);
    let mut resets = 0;
    while let Some(frame) = service.next_frame(late) {
        resets += usize::from(fields(&frame).2 & RST != 0);
    }
    assert_eq!(resets, MAX_CONNECTIONS);
    service.poll(late);
    assert_eq!(connections(&service), 0);
    assert_eq!(service.poll(late), None);
}

#[test]
fn an_answer_that_nobody_takes_is_given_up() {
    for guest in BOTH {
        is_given_up(guest);
    }
}

fn is_given_up(guest: IpAddr) {
    let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(50_000));
    let (mut service, begin) = (endpoint(&text), Instant::now());
    let seq = open(&mut service, guest, 5000, begin);
    service.take(&segment(guest, 5000, (1001, seq), ACK, b"GET /a HTTP/1.1\r\n\r\n"), begin);
    let mut now = begin;
    // Nobody acknowledges anything, and frames are not even fetched: no frame more than fits, and no spinning.
    let mut turns = 0;
    while let Some(wait) = service.poll(now) {
        now += wait;
        turns += 1;
        assert!(turns < 100, "it would spin");
        assert!(service.station.wire.outgoing.len() <= MAX_WAITING);
    }
    assert!(now - begin <= ANSWERING + IDLE);
    while service.next_frame(now).is_some() {}
    service.poll(now);
    assert!(service.station.connections.iter().all(|c| c.phase == Phase::Waiting));
}

#[test]
fn a_driver_that_takes_no_frames_costs_no_more_than_the_queue() {
    let (mut service, now) = (endpoint(r#"{"a":"b"}"#), Instant::now());
    for _ in 0..10_000 {
        service.take(&arp_request(ADDRESS), now);
        service.take(&solicitation(GUEST6, ADDRESS6), now);
        service.take(&solicitation(Ipv6Addr::UNSPECIFIED, ADDRESS6), now);
    }
    assert_eq!(service.station.wire.outgoing.len(), MAX_WAITING);
    for guest in BOTH {
        service.take(&segment(guest, 5000, (1000, 0), SYN, &[]), now);
        assert_eq!(service.station.wire.outgoing.len(), MAX_WAITING);
    }
    while service.next_frame(now).is_some() {}
    for guest in BOTH {
        assert_eq!(part(&mut Guest::new(guest, now), &mut service, now, "/a"), "b");
    }
}

#[test]
fn senders_that_cannot_be_and_fragments_get_no_answer() {
    let (mut service, now) = (endpoint("{}"), Instant::now());
    let nobody = [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, [0xff02, 0, 0, 0, 0, 0, 0, 1].into()];
    let groups = [Ipv4Addr::BROADCAST, [224, 0, 0, 1].into()].map(IpAddr::V4);
    for source in nobody.map(IpAddr::V6).into_iter().chain(groups) {
        service.take(&segment(source, 5000, (1, 0), SYN, &[]), now);
        assert!(!service.has_frame(), "{source:?}");
    }
    // As if from the service itself: answered to the card, where it means nothing.
    for source in [ADDRESS.into(), ADDRESS6.into()] {
        service.take(&segment(source, 5000, (1, 0), SYN, &[]), now);
        while let Some(frame) = service.next_frame(now) {
            assert_eq!(frame[..6], STATION);
        }
    }
    for (at, byte) in [(6, 0x20), (7, 0x01)] {
        let mut fragment = segment(BOTH[0], 5001, (1, 0), SYN, &[]);
        fragment[ETHERNET + at] = byte;
        service.take(&fragment, now);
        assert!(!service.has_frame());
    }
    // The same segment behind further headers: for each hop, for a way, for its end, and a fragment that is the whole packet.
    for kind in [0, 43, 60, 44] {
        let mut further = segment(BOTH[1], 5001, (1, 0), SYN, &[]);
        further[ETHERNET + 6] = kind;
        further[ETHERNET + 5] += 8;
        further.splice(ETHERNET + 40..ETHERNET + 40, [6, 0, 0, 0, 0, 0, 0, 0]);
        service.take(&further, now);
        assert!(!service.has_frame(), "{kind}");
    }
    // Another port: told that nobody listens.
    for guest in BOTH {
        let mut other = segment(guest, 5002, (1, 0), SYN, &[]);
        let port = tcp_at(&other) + 3;
        other[port] = 22;
        service.take(&other, now);
        assert_eq!(fields(&service.next_frame(now).unwrap()).2 & RST, RST);
    }
}

#[test]
fn a_head_that_does_not_end_is_refused_at_its_limit() {
    let (mut service, now) = (endpoint("{}"), Instant::now());
    let mut guest = Guest::new(GUEST, now);
    let long = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(MAX_HEAD));
    assert!(ask(&mut guest, &mut service, now, &long).starts_with("HTTP/1.1 431 "));
}

/// Frames made of good ones by changing, cutting and repeating them, in any order and at any time: nothing panics, and all stays within
/// bounds.
#[test]
fn frames_at_random_do_no_harm() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut service, mut now) = (endpoint(r#"{"a":{"b":"c"}}"#), Instant::now());
    let (mut last, mut answers) = ((5000, (1001, 0)), [0; 2]);
    for round in 0..30_000 {
        let flags = [SYN, ACK, RST, ACK | 1, ACK | 8, ACK, 0, 0xff][random(8)];
        let payload = [&b""[..], b"GET /a HTTP/1.1\r\n\r\n", b"GET", b"\r\n\r\n", &[0; 9000]][random(5)];
        let any = (5000 + random(3) as u16, (random(1 << 32) as u32, random(1 << 32) as u32));
        let (port, numbers) = [last, last, any, (any.0, (1000, 0))][random(4)];
        let mut frame = match random(8) {
            0 => solicitation(GUEST6, ADDRESS6),
            // A port tells which address its connections have.
            _ => segment(BOTH[usize::from(port % 2)], port, numbers, flags, payload),
        };
        for _ in 0..random(3) {
            let at = random(frame.len().min(100));
            frame[at] = random(256) as u8;
        }
        frame.truncate(if random(4) == 0 { random(frame.len() + 1) } else { frame.len() });
        service.take(&frame, now);
        if random(3) == 0 {
            now += Duration::from_millis(random(2000) as u64);
            service.poll(now);
        }
        while random(8) != 0
            && let Some(frame) = service.next_frame(now)
        {
            // Answers to questions for the station.
            if frame.len() < ETHERNET + 40 || frame[12] == 0x86 && frame[ETHERNET + 6] != 6 {
                continue;
            }
            let (seq, ack, flags, payload) = fields(&frame);
            answers[usize::from(frame[12] == 0x86)] += usize::from(payload.starts_with(b"HTTP/1.1 200 OK"));
            let port = u16::from_be_bytes([frame[tcp_at(&frame) + 2], frame[tcp_at(&frame) + 3]]);
            last = (port, (ack, seq.wrapping_add(payload.len() as u32 + u32::from(flags & SYN != 0))));
        }
        assert!(connections(&service) <= MAX_CONNECTIONS, "{round}");
        assert!(service.station.wire.outgoing.len() <= MAX_WAITING, "{round}");
    }
    assert!(answers[0] > 0 && answers[1] > 0, "{answers:?}: some of it made sense");
    let late = now + Duration::from_secs(60);
    for _ in 0..3 {
        service.poll(late);
        while service.next_frame(late).is_some() {}
    }
    for guest in BOTH {
        assert_eq!(part(&mut Guest::new(guest, late), &mut service, late, "/a/b"), "c");
    }
}
