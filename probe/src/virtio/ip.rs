//! As much of IPv4, IPv6, neighbour discovery, TCP and UDP as a guest needs that talks through somebody else's stack: one peer at a time, one segment
//! on its way at a time.

use core::net::IpAddr;

use super::net::{Card, ethernet, get16, put16, sum};
use crate::io::Region;
use crate::text::Text;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Ethernet's header.
const LINK: u64 = 14;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// Largest segment that we take: a frame fits into one buffer.
pub(crate) const SEGMENT: u16 = 1000;

/// Two ends of a conversation.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    /// Where frames go.
    pub(crate) mac: [u8; 6],
    pub(crate) ours: IpAddr,
    pub(crate) our_port: u16,
    pub(crate) theirs: IpAddr,
    pub(crate) their_port: u16,
}

/// What came for us.
pub(crate) struct Packet {
    pub(crate) mac: [u8; 6],
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: u8,
    /// The transport's header and what follows.
    pub(crate) body: Region,
}

/// What a frame carries, if it is of the Internet's; no fragments, no options of IPv6.
pub(crate) fn packet(frame: Region) -> Option<Packet> {
    if frame.len() < LINK + 20 {
        return None;
    }
    let mut mac = [0; 6];
    frame.load(6, &mut mac);
    let rest = frame.part(LINK, frame.len() - LINK);
    let (from, to, protocol, header, length): (IpAddr, IpAddr, u8, u64, u64) = match get16(frame, 12) {
        IPV4 => {
            let (mut from, mut to) = ([0; 4], [0; 4]);
            rest.load(12, &mut from);
            rest.load(16, &mut to);
            let header = u64::from(rest.read8(0) & 15) * 4;
            let length = u64::from(get16(rest, 2)).checked_sub(header)?;
            (from.into(), to.into(), rest.read8(9), header, length)
        }
        IPV6 if rest.len() >= 40 => {
            let (mut from, mut to) = ([0; 16], [0; 16]);
            rest.load(8, &mut from);
            rest.load(24, &mut to);
            (from.into(), to.into(), rest.read8(6), 40, u64::from(get16(rest, 4)))
        }
        _ => return None,
    };
    (header + length <= rest.len()).then(|| Packet {
        mac,
        from,
        to,
        protocol,
        body: rest.part(header, length),
    })
}

/// Sends a packet; `fill` writes the transport's header and what follows, `length` bytes, with its checksum at `checksum` left 0.
pub(crate) fn send(
    card: &mut Card,
    ends: &Ends,
    protocol: u8,
    length: u64,
    checksum: u64,
    fill: impl FnOnce(Region),
) -> Result<(), Text> {
    let frame = card.frame();
    let own = card.mac;
    let pseudo = u32::from(protocol) + length as u32;
    let (header, addresses) = match (ends.ours, ends.theirs) {
        (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
            ethernet(frame, ends.mac, own, IPV4);
            super::net::ipv4(frame, ours.octets(), theirs.octets(), protocol, length as u16);
            (20, frame.part(LINK + 12, 8))
        }
        (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
            ethernet(frame, ends.mac, own, IPV6);
            let header = frame.part(LINK, 40);
            header.fill(0);
            header.write8(0, 0x60);
            put16(header, 4, length as u16);
            header.write8(6, protocol);
            header.write8(7, 255);
            header.store(8, &ours.octets());
            header.store(24, &theirs.octets());
            (40, header.part(8, 32))
        }
        _ => return Err(text!("{} and {} are of two families", ends.ours, ends.theirs)),
    };
    let body = frame.part(LINK + header, length);
    body.fill(0);
    fill(body);
    put16(body, checksum, !(sum(body, sum(addresses, pseudo)) as u16));
    card.send((LINK + header + length).max(60))
}

/// Sends a datagram of `length` bytes.
pub(crate) fn datagram(
    card: &mut Card,
    ends: &Ends,
    length: u64,
    fill: impl FnOnce(Region),
) -> Result<(), Text> {
    send(card, ends, UDP, 8 + length, 6, |body| {
        put16(body, 0, ends.our_port);
        put16(body, 2, ends.their_port);
        put16(body, 4, 8 + length as u16);
        fill(body.part(8, length));
    })
}

/// A segment of TCP's that came.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: u8,
    pub(crate) data: Region,
}

impl Segment {
    /// How far it takes the sequence.
    pub(crate) fn length(&self) -> u32 {
        let ends = [FIN, SYN].iter().filter(|flag| self.flags & **flag != 0).count();
        self.data.len() as u32 + ends as u32
    }
}

fn get32(region: Region, at: u64) -> u32 {
    u32::from_be(region.read32(at))
}

/// The segment in a packet.
pub(crate) fn segment(packet: &Packet) -> Option<Segment> {
    let body = packet.body;
    if packet.protocol != TCP || body.len() < 20 {
        return None;
    }
    let header = u64::from(body.read8(12) >> 4) * 4;
    (20..=body.len()).contains(&header).then(|| Segment {
        from: get16(body, 0),
        to: get16(body, 2),
        sequence: get32(body, 4),
        acknowledged: get32(body, 8),
        flags: body.read8(13),
        data: body.part(header, body.len() - header),
    })
}

/// Sends a segment with `length` bytes of data; one that begins a conversation says how long those may be that we take.
pub(crate) fn say(
    card: &mut Card,
    ends: &Ends,
    (sequence, acknowledged): (u32, u32),
    flags: u8,
    length: u64,
    fill: impl FnOnce(Region),
) -> Result<(), Text> {
    let header = if flags & SYN != 0 { 24 } else { 20 };
    send(card, ends, TCP, header + length, 16, |body| {
        put16(body, 0, ends.our_port);
        put16(body, 2, ends.their_port);
        body.write32(4, sequence.to_be());
        body.write32(8, acknowledged.to_be());
        body.write8(12, (header as u8 / 4) << 4);
        body.write8(13, flags);
        put16(body, 14, 8 * SEGMENT);
        if header > 20 {
            put16(body, 20, 0x0204);
            put16(body, 22, SEGMENT);
        }
        fill(body.part(header, length));
    })
}

/// The hardware address of who has `theirs`, for us at `ours`.
pub(crate) fn neighbour(card: &mut Card, ours: IpAddr, theirs: IpAddr) -> Result<[u8; 6], Text> {
    for _ in 0..30 {
        ask(card, ours, theirs)?;
        let answer = card.receive(1000, |frame| answered(frame, theirs));
        if let Some(mac) = answer {
            return Ok(mac);
        }
    }
    Err(text!("nobody answers for {theirs}"))
}

fn ask(card: &mut Card, ours: IpAddr, theirs: IpAddr) -> Result<(), Text> {
    let own = card.mac;
    match (ours, theirs) {
        (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
            let frame = card.frame();
            ethernet(frame, [0xff; 6], own, ARP);
            frame.store(14, &[0, 1, 8, 0, 6, 4, 0, 1]);
            frame.store(22, &own);
            frame.store(28, &ours.octets());
            frame.store(32, &[0; 6]);
            frame.store(38, &theirs.octets());
            card.send(60)
        }
        (_, IpAddr::V6(target)) => {
            // To the group of those whose address ends so (RFC 4861, 7.2.2).
            let end = target.octets();
            let mut group = [0; 16];
            group[..2].copy_from_slice(&[0xff, 2]);
            group[11..13].copy_from_slice(&[1, 0xff]);
            group[13..].copy_from_slice(&end[13..]);
            let mac = [0x33, 0x33, 0xff, end[13], end[14], end[15]];
            let ends = Ends { mac, ours, our_port: 0, theirs: group.into(), their_port: 0 };
            send(card, &ends, ICMPV6, 32, 2, |body| {
                body.write8(0, 135);
                body.store(8, &end);
                body.store(24, &[1, 1]);
                body.store(26, &own);
            })
        }
        _ => Err(text!("{ours} and {theirs} are of two families")),
    }
}

fn answered(frame: Region, theirs: IpAddr) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    if frame.len() >= 42 && get16(frame, 12) == ARP && get16(frame, 20) == 2 {
        let mut sender = [0; 4];
        frame.load(28, &mut sender);
        frame.load(22, &mut mac);
        return (IpAddr::from(sender) == theirs).then_some(mac);
    }
    let packet = packet(frame).filter(|packet| packet.protocol == ICMPV6 && packet.body.len() >= 24)?;
    let mut target = [0; 16];
    packet.body.load(8, &mut target);
    (packet.body.read8(0) == 136 && IpAddr::from(target) == theirs).then_some(packet.mac)
}
