//! Asking the metadata service, step by step as somebody at COM1 says: `probe.ip` is the guest's address, `probe.path` what is asked for.
//!
//! `t` gets a token and keeps it; `g` asks with it, `o` without; `b` begins a request and leaves it, `c` goes on with that. Each but `b` tells
//! `WEB status=n` and the last line of the answer. A segment's checksum is left to the card. `q` ends it.

use super::Machine;
use super::net::{IPV4, addresses, open, resolve};
use crate::clock::PATIENCE;
use crate::console::typed;
use crate::verdict::{Outcome, Stop};
use crate::virtio::net::{self, Card, ethernet, get16, ipv4, put16, sum};

const SERVICE: [u8; 4] = [169, 254, 169, 254];
const TCP: u8 = 6;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PUSH: u8 = 8;
const ACK: u8 = 16;
/// Bytes of an answer that are kept.
const ROOM: usize = 2048;
/// Longest token that is kept.
const TOKEN: usize = 64;

/// A connection.
#[derive(Clone, Copy)]
struct Stream {
    mac: [u8; 6],
    ip: [u8; 4],
    port: u16,
    next: u32,
    expected: u32,
}

/// A segment of the service's: what it says, and how many bytes of payload were kept.
struct Segment {
    seq: u32,
    ack: u32,
    flags: u8,
    length: u32,
    kept: usize,
}

/// What came back.
struct Answer {
    bytes: [u8; ROOM],
    length: usize,
    reset: bool,
}

impl Answer {
    fn text(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("?")
    }

    fn last_line(&self) -> &str {
        self.text().rsplit('\n').next().unwrap_or("")
    }

    /// Tells of it.
    fn tell(&self) {
        let status = if self.reset { "reset" } else { self.text().get(9..12).unwrap_or("none") };
        println!("WEB status={status} {}", self.last_line());
    }
}

impl Stream {
    fn send(&mut self, card: &mut Card, flags: u8, parts: &[&[u8]]) -> Result<(), Stop> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let frame = card.frame();
        ethernet(frame, self.mac, card.mac, IPV4);
        ipv4(frame, self.ip, SERVICE, TCP, 20 + length as u16);
        let tcp = frame.part(34, 20 + length as u64);
        put16(tcp, 0, self.port);
        put16(tcp, 2, 80);
        tcp.store(4, &self.next.to_be_bytes());
        tcp.store(8, &self.expected.to_be_bytes());
        tcp.store(12, &[0x50, flags, 0x40, 0, 0, 0, 0, 0]);
        let mut at = 20;
        for part in parts {
            tcp.store(at, part);
            at += part.len() as u64;
        }
        // The pseudo header's sum is all that there is of a checksum.
        let pseudo = sum(frame.part(26, 8), u32::from(TCP) + 20 + length as u32);
        put16(tcp, 16, pseudo as u16);
        let header = card.header();
        header.write8(0, 1); // NEEDS_CSUM
        header.write16(6, 34);
        header.write16(8, 16);
        let ends = u32::from(flags & (SYN | FIN) != 0);
        self.next = self.next.wrapping_add(length as u32 + ends);
        card.send((54 + length as u64).max(60)).map_err(Stop::Fail)
    }

    /// The next segment; its payload goes to `room`.
    fn receive(&self, card: &mut Card, room: &mut [u8]) -> Result<Segment, Stop> {
        let port = self.port;
        let segment = card.receive(PATIENCE, |frame| {
            let mut from = [0; 4];
            let ours = frame.len() >= 54 && get16(frame, 12) == IPV4 && frame.read8(23) == TCP;
            ours.then(|| frame.load(26, &mut from))
                .filter(|()| from == SERVICE && get16(frame, 36) == port)?;
            let number = |at| u32::from(get16(frame, at)) << 16 | u32::from(get16(frame, at + 2));
            let head = 34 + u64::from(frame.read8(46) >> 4) * 4;
            let end = 14 + u64::from(get16(frame, 16));
            let whole = head <= end && end <= frame.len();
            whole.then_some(())?;
            let kept = room.len().min((end - head) as usize);
            frame.load(head, &mut room[..kept]);
            let good = u32::from(TCP) + (end - 34) as u32;
            let checked = sum(frame.part(34, end - 34), sum(frame.part(26, 8), good)) == 0xffff;
            let (seq, ack, length) = (number(38), number(42), (end - head) as u32);
            checked.then_some(Segment { seq, ack, flags: frame.read8(47), length, kept })
        });
        segment.ok_or_else(|| Stop::Fail(text!("the service does not answer")))
    }

    fn open(card: &mut Card, ip: [u8; 4], mac: [u8; 6], port: u16) -> Result<Stream, Stop> {
        let mut stream = Stream { mac, ip, port, next: u32::from(port) << 16, expected: 0 };
        stream.send(card, SYN, &[])?;
        let answer = stream.receive(card, &mut [])?;
        check!(answer.flags & (SYN | ACK) == SYN | ACK, "flags {:#x} to SYN", answer.flags);
        check!(answer.ack == stream.next, "SYN is answered for another");
        stream.expected = answer.seq.wrapping_add(1);
        stream.send(card, ACK, &[])?;
        Ok(stream)
    }

    /// Sends the rest of a request, and takes the answer to its end.
    fn ask(&mut self, card: &mut Card, parts: &[&[u8]]) -> Result<Answer, Stop> {
        self.send(card, PUSH | ACK, parts)?;
        let mut answer = Answer { bytes: [0; ROOM], length: 0, reset: false };
        loop {
            let segment = self.receive(card, &mut answer.bytes[answer.length..])?;
            if segment.flags & RST != 0 {
                answer.reset = true;
                return Ok(answer);
            }
            if segment.seq != self.expected {
                continue;
            }
            answer.length += segment.kept;
            self.expected = self.expected.wrapping_add(segment.length);
            if segment.flags & FIN != 0 {
                self.expected = self.expected.wrapping_add(1);
                self.send(card, FIN | ACK, &[])?;
                return Ok(answer);
            }
            if segment.length > 0 {
                self.send(card, ACK, &[])?;
            }
        }
    }
}

/// The test.
pub(super) fn web(machine: &mut Machine) -> Outcome {
    let (ip, _) = addresses(machine)?;
    let mut card = open(machine, net::F_CSUM)?;
    let mac = resolve(&mut card, ip, SERVICE)?;
    let path = machine.start.option("path").unwrap_or("/");
    let (mut token, mut kept) = ([0; TOKEN], 0);
    let (mut port, mut left) = (40_000, None);
    println!("# ready for steps");
    loop {
        // What comes meanwhile is not for anybody.
        card.drain(|_| ());
        let Some(letter) = typed() else {
            core::hint::spin_loop();
            continue;
        };
        if letter == b'q' {
            return Ok(text!(""));
        }
        let mut stream = match (letter, left.take()) {
            (b'c', Some(stream)) => stream,
            _ => {
                port += 1;
                Stream::open(&mut card, ip, mac, port)?
            }
        };
        let end = b" HTTP/1.1\r\nHost: 169.254.169.254\r\n";
        let get: [&[u8]; 3] = [b"GET ", path.as_bytes(), end];
        match letter {
            b't' => {
                let ttl = b"X-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
                let answer = stream.ask(&mut card, &[b"PUT /latest/api/token", end, ttl])?;
                let text = answer.last_line().as_bytes();
                check!(text.len() <= TOKEN, "a token of {} bytes", text.len());
                kept = text.len();
                token[..kept].copy_from_slice(text);
                println!("WEB status={} token={kept}", answer.text().get(9..12).unwrap_or("none"));
            }
            b'g' => {
                let header = b"X-aws-ec2-metadata-token: ";
                stream.ask(&mut card, &[get[0], get[1], get[2], header, &token[..kept], b"\r\n\r\n"])?.tell();
            }
            b'o' => stream.ask(&mut card, &[get[0], get[1], get[2], b"\r\n"])?.tell(),
            b'b' => {
                stream.send(&mut card, PUSH | ACK, &[get[0], get[1]])?;
                left = Some(stream);
                println!("WEB begun");
            }
            _ => stream.ask(&mut card, &[get[2], b"\r\n"])?.tell(),
        }
    }
}
