//! A guest's frames into the metadata service, as far as the service's frames out of it; no card and no rings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use metadata::endpoint::{ANSWERING, IDLE, PORT};
use metadata::testing::{Guest, body, framed, get};
use metadata::{ADDRESS, Document, Endpoint, HEAD, Pace, Patch, Store, TokenUse, is_for_service};

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
const STEPS: usize = CLEAR as usize + 1;

/// Flags of a segment.
const SYN: u8 = 2;
const ACK: u8 = 16;

fn segment(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut step = vec![SEGMENT, 0, flags, 0, 0];
    step.extend((payload.len() as u16).to_le_bytes());
    step.extend(payload);
    step
}

fn seeds() -> Vec<Vec<u8>> {
    let ask = |request: &[u8]| {
        [
            segment(SYN, b""),
            vec![TAKE, 4],
            segment(ACK, b""),
            segment(ACK, request),
            vec![TAKE, 8],
            segment(ACK | 1, b""),
            vec![TAKE, 8],
        ]
        .concat()
    };
    let token = b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let json = b"GET /latest/meta-data/ HTTP/1.1\r\nAccept: application/json\r\n\r\n";
    vec![
        ask(get("/latest/meta-data/hostname").as_bytes()),
        ask(get("/large").as_bytes()),
        ask(token),
        ask(json),
        [segment(SYN, b""), vec![WAIT, 200, WAIT, 200, TAKE, 3], ask(b"GET / HTTP/1.0\r\n\r\n")].concat(),
        [
            segment(SYN, b""),
            vec![TAKE, 1],
            segment(ACK, b"GET / HT"),
            vec![CHANGE, 1],
            segment(ACK, b"TP/1.1\r\n\r\n"),
        ]
        .concat(),
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
                let packet = packet(&mut input, &last);
                let frame = framed(&packet);
                service.take(&frame, now);
            }
            RAW => {
                let count = usize::from(input.u16()) % 200;
                let frame = input.bytes(count);
                if is_for_service(&frame[..frame.len().min(HEAD)]) {
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
            _ => service.clear(),
        }
    }
    // Whatever was left is over, and a guest that behaves is answered.
    store.replace(Document::parse(br#"{"a":"b"}"#).unwrap());
    let late = now + ANSWERING + IDLE + Duration::from_secs(600);
    for _ in 0..3 {
        service.poll(late);
        while service.next_frame(late).is_some() {}
    }
    let mut guest = Guest::new([10, 9, 8, 7].into(), begin);
    let answer = guest.ask(&get("/a"), |guest| {
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

/// An IPv4 packet with a segment that mostly belongs to the last connection.
fn packet(input: &mut Input<'_>, last: &Last) -> Vec<u8> {
    let how = input.u8();
    let flags = input.u8();
    let (seq, ack) = (i32::from(input.u8() as i8), i32::from(input.u8() as i8));
    let length = usize::from(input.u16());
    let payload = input.bytes(length);
    let port = if how & 7 == 0 && last.port != 0 { last.port } else { 5000 + u16::from(how & 7) };
    let mut packet = vec![0x45, 0];
    packet.extend((40 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, how >> 6]);
    packet.extend(ADDRESS.octets());
    packet.extend([port.to_be_bytes(), PORT.to_be_bytes()].concat());
    packet.extend(last.ack.wrapping_add_signed(seq).to_be_bytes());
    packet.extend(last.seq.wrapping_add_signed(ack).to_be_bytes());
    // Options in front of the payload, if it begins with some.
    let words = 5 + (how >> 3 & 7).min((payload.len() / 4) as u8);
    packet.extend([words << 4, flags, 0x40, 0, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}

/// What a segment of the service's says of its connection: what it is to be answered with.
fn note(frame: &[u8]) -> Option<Last> {
    let tcp = frame.get(34..).filter(|tcp| tcp.len() >= 20)?;
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
    let ends = u32::from(tcp[13] & 3 != 0);
    let seq = number(4).wrapping_add(payload as u32 + ends);
    Some(Last { port: u16::from_be_bytes([tcp[2], tcp[3]]), seq, ack: number(8) })
}
