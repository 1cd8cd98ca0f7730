//! Asking the metadata service, step by step as somebody at COM1 says: `probe.ip` is the guest's address, `probe.path` what is asked for.
//!
//! `t` gets a token and keeps it; `g` asks with it, `o` without; `b` begins a request and leaves it, `c` goes on with that. Each but `b` tells
//! `WEB status=n` and the last line of the answer. A segment's checksum is left to the card. `6` asks who the service is by IPv6, tells that
//! as `WEB station=…`, and goes on so, from the address of the link; `4` does the same by ARP. `q` ends it.

use super::Machine;
use super::net::{IPV4, addresses, open, resolve};
use crate::clock::PATIENCE;
use crate::console::typed;
use crate::io::Region;
use crate::verdict::{Outcome, Stop};
use crate::virtio::net::{self, Card, ethernet, get16, ipv4, ipv6, put16, sum};

const SERVICE: [u8; 4] = [169, 254, 169, 254];
const SERVICE6: [u8; 16] = [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54];
const IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
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
    own: Own,
    port: u16,
    next: u32,
    expected: u32,
}

/// The guest's address, which decides by which IP it speaks.
#[derive(Clone, Copy)]
enum Own {
    V4([u8; 4]),
    V6([u8; 16]),
}

/// Where things are in a frame with a segment.
struct Places {
    kind: u16,
    protocol: u64,
    /// Addresses of sender and receiver, and all their bytes.
    addresses: u64,
    both: u64,
    segment: u64,
}

const PLACES: Places = Places { kind: IPV4, protocol: 23, addresses: 26, both: 8, segment: 34 };
const PLACES6: Places = Places { kind: IPV6, protocol: 20, addresses: 22, both: 32, segment: 54 };

impl Own {
    fn places(self) -> Places {
        match self {
            Own::V4(_) => PLACES,
            Own::V6(_) => PLACES6,
        }
    }

    /// Writes the header of a packet with `len` bytes for the service.
    fn address(self, frame: Region, len: u16) {
        match self {
            Own::V4(ip) => ipv4(frame, ip, SERVICE, TCP, len),
            Own::V6(ip) => ipv6(frame, ip, SERVICE6, (TCP, 64), len),
        }
    }

    /// Whether a frame comes from the service.
    fn hears(self, frame: Region) -> bool {
        let mut from = [0; 16];
        let from = &mut from[..self.places().both as usize / 2];
        frame.load(self.places().addresses, from);
        match self {
            Own::V4(_) => *from == SERVICE,
            Own::V6(_) => *from == SERVICE6,
        }
    }

    /// Where the packet in a frame ends.
    fn end(self, frame: Region) -> u64 {
        match self {
            Own::V4(_) => 14 + u64::from(get16(frame, 16)),
            Own::V6(_) => 54 + u64::from(get16(frame, 18)),
        }
    }
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
        let (frame, places) = (card.frame(), self.own.places());
        ethernet(frame, self.mac, card.mac, places.kind);
        self.own.address(frame, 20 + length as u16);
        let tcp = frame.part(places.segment, 20 + length as u64);
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
        let pseudo = sum(frame.part(places.addresses, places.both), u32::from(TCP) + 20 + length as u32);
        put16(tcp, 16, pseudo as u16);
        let header = card.header();
        header.write8(0, 1); // NEEDS_CSUM
        header.write16(6, places.segment as u16);
        header.write16(8, 16);
        let ends = u32::from(flags & (SYN | FIN) != 0);
        self.next = self.next.wrapping_add(length as u32 + ends);
        card.send((places.segment + 20 + length as u64).max(60)).map_err(Stop::Fail)
    }

    /// The next segment; its payload goes to `room`.
    fn receive(&self, card: &mut Card, room: &mut [u8]) -> Result<Segment, Stop> {
        let (own, port) = (self.own, self.port);
        let Places { kind, protocol, addresses, both, segment: at } = own.places();
        let segment = card.receive(PATIENCE, |frame| {
            let ours = frame.len() >= at + 20 && get16(frame, 12) == kind && frame.read8(protocol) == TCP;
            (ours && own.hears(frame) && get16(frame, at + 2) == port).then_some(())?;
            let number = |at| u32::from(get16(frame, at)) << 16 | u32::from(get16(frame, at + 2));
            let head = at + u64::from(frame.read8(at + 12) >> 4) * 4;
            let end = own.end(frame);
            let whole = head <= end && end <= frame.len();
            whole.then_some(())?;
            let kept = room.len().min((end - head) as usize);
            frame.load(head, &mut room[..kept]);
            let good = u32::from(TCP) + (end - at) as u32;
            let checked = sum(frame.part(at, end - at), sum(frame.part(addresses, both), good)) == 0xffff;
            let (seq, ack, length) = (number(at + 4), number(at + 8), (end - head) as u32);
            checked.then_some(Segment { seq, ack, flags: frame.read8(at + 13), length, kept })
        });
        segment.ok_or_else(|| Stop::Fail(text!("the service does not answer")))
    }

    fn open(card: &mut Card, own: Own, mac: [u8; 6], port: u16) -> Result<Stream, Stop> {
        let mut stream = Stream { mac, own, port, next: u32::from(port) << 16, expected: 0 };
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

/// Asks who the service is by IPv6 (RFC 4861 §4.3), from an address or, to have that of the service, from none: the station, and to which
/// it was told.
fn solicit(card: &mut Card, from: [u8; 16]) -> Result<([u8; 6], [u8; 6]), Stop> {
    const GROUP: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 2, 0x54];
    let frame = card.frame();
    ethernet(frame, [0x33, 0x33, 0xff, 0, 2, 0x54], card.mac, IPV6);
    ipv6(frame, from, GROUP, (ICMPV6, 255), 24);
    let message = frame.part(54, 24);
    message.store(0, &[135, 0, 0, 0, 0, 0, 0, 0]);
    message.store(8, &SERVICE6);
    let all = |frame: Region, length| {
        let addresses = sum(frame.part(PLACES6.addresses, PLACES6.both), u32::from(ICMPV6) + length as u32);
        sum(frame.part(54, length), addresses)
    };
    put16(message, 2, !(all(frame, 24) as u16));
    card.send(78).map_err(Stop::Fail)?;
    let answer = card.receive(PATIENCE, |frame| {
        let is_one = frame.len() >= 86 && get16(frame, 12) == IPV6 && frame.read8(20) == ICMPV6;
        (is_one && frame.read8(54) == 136 && Own::V6(from).hears(frame)).then_some(())?;
        let (mut target, mut option, mut to) = ([0; 16], [0; 8], [0; 6]);
        frame.load(62, &mut target);
        frame.load(78, &mut option);
        frame.load(0, &mut to);
        let good = target == SERVICE6 && option[..2] == [2, 1] && all(frame, 32) == 0xffff;
        let mut station = [0; 6];
        station.copy_from_slice(&option[2..]);
        good.then_some((station, to))
    });
    answer.ok_or_else(|| Stop::Fail(text!("nobody says to be the service by IPv6")))
}

/// Finds the service by IPv6: its station, and the address of the link from which it is asked.
fn find(card: &mut Card) -> Result<([u8; 6], Own), Stop> {
    let [a, b, c, d, e, f] = card.mac;
    // Made of the card's (RFC 4291, appendix A).
    let link = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let (taken, to) = solicit(card, [0; 16])?;
    check!(to == [0x33, 0x33, 0, 0, 0, 1], "whoever would be the service is told so as {to:x?}");
    let (station, to) = solicit(card, link)?;
    check!(taken == station && to == card.mac, "{taken:x?} and {station:x?} are the service");
    Ok((station, Own::V6(link)))
}

/// The test.
pub(super) fn web(machine: &mut Machine) -> Outcome {
    let (ip, _) = addresses(machine)?;
    let mut card = open(machine, net::F_CSUM)?;
    let (mut mac, mut own) = (resolve(&mut card, ip, SERVICE)?, Own::V4(ip));
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
        if matches!(letter, b'4' | b'6') {
            (mac, own) = match letter {
                b'4' => (resolve(&mut card, ip, SERVICE)?, Own::V4(ip)),
                _ => find(&mut card)?,
            };
            let [a, b, c, d, e, f] = mac;
            println!("WEB station={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            continue;
        }
        let mut stream = match (letter, left.take()) {
            (b'c', Some(stream)) => stream,
            _ => {
                port += 1;
                Stream::open(&mut card, own, mac, port)?
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
