//! A guest's frames into the metadata service, as far as the service's frames out of it; no card and no rings.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use metadata::endpoint::{ANSWERING, IDLE, PORT};
use metadata::testing::{ASKED, Guest, SOLICITATION, body, framed, get, neighbour, packet};
use metadata::{ADDRESS6, Document, Endpoint, Pace, Patch, Store, TokenUse, is_for_service};

use crate::Target;
use crate::input::Input;

pub fn target() -> Target {
    Target {
        name: "metadata",
        about: "frames of a guest to the metadata service, and the passing of time",
        length: 4096,
        options: &[],
        words: || {
            let words = "GET PUT /latest/api/token /latest/meta-data/ HTTP/1.1 X-metadata-token: Accept: application/json \
                         X-aws-ec2-metadata-token-ttl-seconds: X-Forwarded-For:";
            words
                .split_whitespace()
                .map(str::to_owned)
                .chain(["\r\n".to_owned(), "\r\n\r\n".to_owned()])
                .collect()
        },
        seeds,
        run,
    }
}

/// What a step begins with: which one it is.
const SEGMENT: u8 = 0;
const RAW: u8 = 1;
const TAKE: u8 = 2;
const WAIT: u8 = 3;
const CHANGE: u8 = 4;
const CLEAR: u8 = 5;
const NEIGHBOUR: u8 = 6;
const STEPS: usize = NEIGHBOUR as usize + 1;

/// Bits of how a segment is: the port, as many words of options, and how it is addressed.
const PORT_BITS: u8 = 7;
const WORDS: u8 = 3;
const BY_IPV6: u8 = 0x80;
const OTHER: u8 = 0x40;

/// Flags of a segment.
const SYN: u8 = 2;
const ACK: u8 = 16;

fn segment(how: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut step = vec![SEGMENT, how, flags, 0, 0];
    step.extend((payload.len() as u16).to_le_bytes());
    step.extend(payload);
    step
}

fn seeds() -> Vec<Vec<u8>> {
    let ask_by = |how, request: &[u8]| {
        [
            segment(how, SYN, b""),
            vec![TAKE, 4],
            segment(how, ACK, b""),
            segment(how, ACK, request),
            vec![TAKE, 8],
            segment(how, ACK | 1, b""),
            vec![TAKE, 8],
        ]
        .concat()
    };
    let ask = |request: &[u8]| ask_by(0, request);
    let begin = |flags, payload: &[u8]| segment(0, flags, payload);
    // A question for the station, which of its bytes is changed, and how.
    let question = |from, kind, option: &[u8], at, by| {
        [&[NEIGHBOUR, from, kind, option.len() as u8, 1][..], option, &[at, by, TAKE, 1]].concat()
    };
    let option = [1, 1, 2, 3, 4, 5, 6, 7];
    let token = b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let json = b"GET /latest/meta-data/ HTTP/1.1\r\nAccept: application/json\r\n\r\n";
    vec![
        ask(get("/latest/meta-data/hostname").as_bytes()),
        ask(get("/large").as_bytes()),
        ask(token),
        ask(json),
        [begin(SYN, b""), vec![WAIT, 200, WAIT, 200, TAKE, 3], ask(b"GET / HTTP/1.0\r\n\r\n")].concat(),
        [
            begin(SYN, b""),
            vec![TAKE, 1],
            begin(ACK, b"GET / HT"),
            vec![CHANGE, 1],
            begin(ACK, b"TP/1.1\r\n\r\n"),
        ]
        .concat(),
        [question(1, 0, &option, 0, 0), ask_by(BY_IPV6, get("/latest/meta-data/hostname").as_bytes())]
            .concat(),
        ask_by(BY_IPV6 | OTHER, token),
        [question(0, 0, &[], 0, 0), question(2, 1, &option, 0, 0), question(1, 0, &option, 21, 64)].concat(),
    ]
}

/// Two answers in each tenth of a second.
struct Two(Instant, AtomicU32);

impl Pace for Two {
    fn pause(&self, now: Instant) -> Option<Duration> {
        let next = self.0 + Duration::from_millis(100) * (self.1.load(Relaxed) / 2);
        (next > now).then(|| next - now)
    }

    fn count(&self, _: Instant, bytes: u64) {
        assert!(bytes < 60_000);
        self.1.fetch_add(1, Relaxed);
    }
}

/// Numbers of the connection that the service answered last.
#[derive(Clone, Copy, Default)]
struct Last {
    by_ipv6: bool,
    port: u16,
    seq: u32,
    ack: u32,
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let begin = Instant::now();
    let mut now = begin;
    let text = format!(r#"{{"meta-data":{{"hostname":"h"}},"large":"{}"}}"#, "x".repeat(40_000));
    let store = Arc::new(Store::new(Document::parse(text.as_bytes()).unwrap(), TokenUse::Optional));
    let mut service = Endpoint::new(store.clone(), Arc::new(Two(begin, AtomicU32::new(0))), None).unwrap();
    let mut last = Last::default();
    while !input.is_empty() {
        match input.below(STEPS) as u8 {
            SEGMENT => {
                let frame = addressed(&mut input, &last);
                service.take(&frame, now);
            }
            RAW => {
                let count = usize::from(input.u16()) % 200;
                let frame = input.bytes(count);
                if is_for_service(frame) {
                    service.take(frame, now);
                }
            }
            TAKE => {
                for _ in 0..input.u8() {
                    let Some(frame) = service.next_frame(now) else { break };
                    last = note(&frame).unwrap_or(last);
                }
            }
            WAIT => {
                now += Duration::from_millis(u64::from(input.u8()) * 20);
                service.poll(now);
            }
            CHANGE => {
                let count = usize::from(input.u8());
                if let Ok(patch) = Patch::parse(input.bytes(count)) {
                    let _ = store.patch(&patch);
                }
            }
            CLEAR => service.clear(),
            _ => {
                let frame = question(&mut input);
                if is_for_service(&frame) {
                    service.take(&frame, now);
                }
            }
        }
    }
    // Whatever was left is over, and a guest that behaves is answered.
    store.replace(Document::parse(br#"{"a":"b"}"#).unwrap());
    let late = now + ANSWERING + IDLE + Duration::from_secs(600);
    for _ in 0..3 {
        service.poll(late);
        while service.next_frame(late).is_some() {}
    }
    for own in [[10, 9, 8, 7].into(), GUEST.into()] {
        let own: IpAddr = own;
        let answer = Guest::new(own, begin).ask(&get("/a"), |guest| {
            let frames = guest.turn(late);
            let mut moved = !frames.is_empty();
            frames.iter().for_each(|frame| service.take(frame, late));
            service.poll(late);
            while let Some(frame) = service.next_frame(late) {
                guest.take(&frame);
                moved = true;
            }
            moved
        });
        assert_eq!(body(&answer), "b");
    }
}

/// The guest's address of its link.
const GUEST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// A question for the station at the service's address, or something like it: who asks, by which message, with which option; a byte of it
/// may be another.
fn question(input: &mut Input<'_>) -> Vec<u8> {
    let from = input.one_of(&[Ipv6Addr::UNSPECIFIED, GUEST, ADDRESS6, ASKED]);
    let kind = SOLICITATION.wrapping_add(input.u8());
    let length = usize::from(input.u8() % 64);
    let to = input.one_of(&[ADDRESS6, ASKED]);
    let mut frame = neighbour(kind, from, to, ADDRESS6, input.bytes(length));
    let at = usize::from(input.u8()) % frame.len();
    frame[at] ^= input.u8();
    frame
}

/// A frame with a segment that mostly belongs to the last connection.
fn addressed(input: &mut Input<'_>, last: &Last) -> Vec<u8> {
    let how = input.u8();
    let flags = input.u8();
    let (seq, ack) = (i32::from(input.u8() as i8), i32::from(input.u8() as i8));
    let length = usize::from(input.u16());
    let payload = input.bytes(length);
    let last_one = how & PORT_BITS == 0 && last.port != 0;
    let port = if last_one { last.port } else { 5000 + u16::from(how & PORT_BITS) };
    let by_ipv6 = if last_one { last.by_ipv6 } else { how & BY_IPV6 != 0 };
    let other = how & OTHER != 0;
    let source: IpAddr = match by_ipv6 {
        true => Ipv6Addr::from(GUEST.to_bits() | u128::from(other)).into(),
        false => [10, 0, 0, other.into()].into(),
    };
    let mut segment = [port.to_be_bytes(), PORT.to_be_bytes()].concat();
    segment.extend(last.ack.wrapping_add_signed(seq).to_be_bytes());
    segment.extend(last.seq.wrapping_add_signed(ack).to_be_bytes());
    // Options in front of the payload, if it begins with some.
    let words = 5 + (how >> WORDS & 7).min((payload.len() / 4) as u8);
    segment.extend([words << 4, flags, 0x40, 0, 0, 0, 0, 0]);
    segment.extend(&payload[..payload.len().min(60_000)]);
    framed(&packet(source, &segment))
}

/// What a segment of the service's says of its connection: what it is to be answered with.
fn note(frame: &[u8]) -> Option<Last> {
    let by_ipv6 = frame.get(14)? >> 4 == 6;
    let is_segment = !by_ipv6 || frame.get(20) == Some(&6);
    let tcp = frame.get(if by_ipv6 { 54 } else { 34 }..).filter(|tcp| is_segment && tcp.len() >= 20)?;
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
    let ends = u32::from(tcp[13] & 3 != 0);
    let seq = number(4).wrapping_add(payload as u32 + ends);
    Some(Last { by_ipv6, port: u16::from_be_bytes([tcp[2], tcp[3]]), seq, ack: number(8) })
}
