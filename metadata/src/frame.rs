//! Which frames of a guest are for the service, and what of them the service looks at. Ethernet (IEEE 802.3), ARP (RFC 826), IPv4 (RFC 791),
//! IPv6 (RFC 8200), and who is whose neighbour there ([`neighbour`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) mod neighbour;

/// Where the service is, whatever addresses the guest has.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Where it is by IPv6, likewise.
pub const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);

/// The station that answers for [`ADDRESS`] and [`ADDRESS6`]: one of local administration that is seen by the guest only.
pub const MAC: [u8; 6] = [0x06, 0x00, 0xa9, 0xfe, 0xa9, 0xfe];

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const ARP_END: usize = ETHERNET + 28;
const IPV4: usize = 20;
pub(crate) const IPV6: usize = 40;

const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Where the sender's addresses are in an ARP packet, after the Ethernet header, and the target's.
const ARP_SENDER: usize = ETHERNET + 8;
const ARP_TARGET_IP: usize = ETHERNET + 24;
/// Ethernet, IPv4, lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

/// Where the receiver of an IPv6 packet is, after the Ethernet header.
const IPV6_TO: usize = ETHERNET + 24;

const PROTOCOL_TCP: u8 = 6;
/// More fragments, and where a fragment belongs.
const FRAGMENT: u16 = 0x3fff;

/// Bytes of a frame that are enough to tell of nearly all whether they are for the service.
const FIRST: usize = ARP_END;
/// Bytes that are enough for any.
const MOST: usize = neighbour::TARGET_END;

/// Whether a frame is for the service. Such frames never leave the host, whether they are answered or not: a network that has a service at
/// the same address shall not see what was meant for this one. Nor does what is sent to [`MAC`], which would be a way around that.
pub fn is_for_service(frame: &[u8]) -> bool {
    let at = |from: usize, what: &[u8]| frame.get(from..from + what.len()) == Some(what);
    at(0, &MAC)
        || at(12, &TYPE_IPV4) && at(ETHERNET + 16, &ADDRESS.octets())
        || at(12, &TYPE_ARP) && at(ARP_TARGET_IP, &ADDRESS.octets())
        || at(12, &TYPE_IPV6) && (at(IPV6_TO, &ADDRESS6.octets()) || neighbour::is_of_service(frame))
}

/// The beginning of a frame, as far as it tells whether the frame is for the service.
pub struct Head {
    bytes: [u8; MOST],
    length: usize,
}

impl Head {
    /// Reads it by `read`, which fills a buffer with the frame's bytes from a place on and tells how many there were. No byte is read twice.
    pub fn read(read: impl Fn(usize, &mut [u8]) -> usize) -> Head {
        let mut bytes = [0; MOST];
        let mut length = read(0, &mut bytes[..FIRST]);
        // What is to another address, and says nothing of neighbours, need not be looked at further.
        let more = length == FIRST
            && bytes[12..ETHERNET] == TYPE_IPV6
            && (bytes[IPV6_TO..FIRST] == ADDRESS6.octets()[..FIRST - IPV6_TO] || neighbour::may_be(&bytes));
        if more {
            length += read(FIRST, &mut bytes[FIRST..]);
        }
        Head { bytes, length }
    }

    /// What was read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What a frame is to the service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A question for the station, by ARP or IPv6, that this frame answers.
    Question(Vec<u8>),
    /// A TCP segment to [`ADDRESS`] or [`ADDRESS6`], in an IP packet, without what an Ethernet adds at its end.
    Tcp {
        /// The packet.
        packet: &'a [u8],
        /// The station that sent it.
        mac: [u8; 6],
        /// The address it says it has.
        source: IpAddr,
        /// It asks for a connection.
        opens: bool,
    },
    /// Nothing that is answered.
    Other,
}

impl Frame<'_> {
    /// Reads a frame.
    pub(crate) fn parse(frame: &[u8]) -> Frame<'_> {
        let answer = arp(frame).or_else(|| neighbour::answer(frame));
        answer.map(Frame::Question).or_else(|| Frame::tcp(frame)).unwrap_or(Frame::Other)
    }

    fn tcp(frame: &[u8]) -> Option<Frame<'_>> {
        let mac = station(frame)?;
        let (header, length, source) = ipv4(frame).or_else(|| ipv6(frame))?;
        let packet = frame[ETHERNET..].get(..length)?;
        let flags = packet.get(header + 13)?;
        // SYN without ACK.
        Some(Frame::Tcp { packet, mac, source, opens: flags & 0x12 == 0x02 })
    }
}

/// The answer to a question by ARP.
fn arp(frame: &[u8]) -> Option<Vec<u8>> {
    let request: &[u8; ARP_END] = frame.first_chunk()?;
    let is_request = request[12..ETHERNET] == TYPE_ARP
        && request[ETHERNET..ETHERNET + 6] == ARP_KIND
        && request[ETHERNET + 6..ARP_SENDER] == ARP_REQUEST
        && request[ARP_TARGET_IP..] == ADDRESS.octets();
    let asker = station(frame).filter(|_| is_request)?;
    let mut reply = header(asker, TYPE_ARP).to_vec();
    reply.extend(ARP_KIND);
    reply.extend(ARP_REPLY);
    reply.extend(MAC);
    reply.extend(ADDRESS.octets());
    // Whoever asked, as it called itself.
    reply.extend(&request[ARP_SENDER..ARP_SENDER + 10]);
    Some(reply)
}

/// Lengths of the header and of all of an IPv4 packet with a TCP segment for the service, and who sent it.
fn ipv4(frame: &[u8]) -> Option<(usize, usize, IpAddr)> {
    let ip: &[u8; IPV4] = after(frame, TYPE_IPV4)?.first_chunk()?;
    let header = usize::from(ip[0] & 0xf) * 4;
    let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT;
    let good = ip[0] >> 4 == 4
        && header >= IPV4
        && fragment == 0
        && ip[9] == PROTOCOL_TCP
        && ip[16..] == ADDRESS.octets();
    good.then(|| (header, length, Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]).into()))
}

/// The same of an IPv6 packet. No segment is looked for behind further headers, of which fragments have one too.
fn ipv6(frame: &[u8]) -> Option<(usize, usize, IpAddr)> {
    let ip: &[u8; IPV6] = after(frame, TYPE_IPV6)?.first_chunk()?;
    let length = IPV6 + usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let source = sender(ip);
    let good = ip[0] >> 4 == 6
        && ip[6] == PROTOCOL_TCP
        && ip[24..] == ADDRESS6.octets()
        && !(source.is_unspecified() || source.is_loopback() || source.is_multicast());
    good.then(|| (IPV6, length, source.into()))
}

/// Who sent an IPv6 packet.
fn sender(ip: &[u8; IPV6]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&ip[8..24]);
    octets.into()
}

/// What is in a frame of this type.
fn after(frame: &[u8], kind: [u8; 2]) -> Option<&[u8]> {
    frame.get(ETHERNET..).filter(|_| frame[12..ETHERNET] == kind)
}

/// The station that sent a frame, if it is one: not a group, and not the service.
fn station(frame: &[u8]) -> Option<[u8; 6]> {
    let mac: &[u8; 6] = frame.get(6..)?.first_chunk()?;
    (mac[0] & 1 == 0 && *mac != MAC).then_some(*mac)
}

/// The Ethernet header of a frame from the service.
fn header(to: [u8; 6], kind: [u8; 2]) -> [u8; ETHERNET] {
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&MAC);
    header[12..].copy_from_slice(&kind);
    header
}

/// The Ethernet header of an IP packet from the service, of which only the version is looked at.
pub(crate) fn header_of(packet: &[u8], to: [u8; 6]) -> [u8; ETHERNET] {
    header(to, if is_ipv6(packet) { TYPE_IPV6 } else { TYPE_IPV4 })
}

/// Whether an IP packet is one of IPv6.
pub(crate) fn is_ipv6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|byte| byte >> 4 == 6)
}

#[cfg(test)]
pub(crate) mod tests;
