//! Which frames of a guest are for the service, and what of them the service looks at. Ethernet (IEEE 802.3), ARP (RFC 826), IPv4 (RFC 791).

use std::net::Ipv4Addr;

/// Where the service is, whatever addresses the guest has.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The station that answers for [`ADDRESS`]: one of local administration that is seen by the guest only.
pub const MAC: [u8; 6] = [0x06, 0x00, 0xa9, 0xfe, 0xa9, 0xfe];

/// Bytes of a frame that [`is_for_service`] looks at.
pub const HEAD: usize = ARP_END;

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const ARP_END: usize = ETHERNET + 28;
const IPV4_END: usize = ETHERNET + 20;

const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];

/// Where the sender's addresses are in an ARP packet, after the Ethernet header, and the target's.
const ARP_SENDER: usize = ETHERNET + 8;
const ARP_TARGET_IP: usize = ETHERNET + 24;
/// Ethernet, IPv4, lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

const PROTOCOL_TCP: u8 = 6;
/// More fragments, and where a fragment belongs.
const FRAGMENT: u16 = 0x3fff;

/// Whether a frame that begins with these bytes, [`HEAD`] of them or all that there are, is for the service. Such frames never leave the
/// host, whether they are answered or not: a network that has a service at the same address shall not see what was meant for this one. Nor
/// does what is sent to [`MAC`], which would be a way around that.
pub fn is_for_service(head: &[u8]) -> bool {
    let at = |from: usize, what: &[u8]| head.get(from..from + what.len()) == Some(what);
    at(0, &MAC)
        || at(12, &TYPE_IPV4) && at(ETHERNET + 16, &ADDRESS.octets())
        || at(12, &TYPE_ARP) && at(ARP_TARGET_IP, &ADDRESS.octets())
}

/// What a frame is to the service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A question that this frame answers.
    Arp([u8; ARP_END]),
    /// A TCP segment to [`ADDRESS`], in an IPv4 packet, without what an Ethernet adds at its end.
    Tcp {
        /// The packet.
        packet: &'a [u8],
        /// The station that sent it.
        mac: [u8; 6],
        /// The address it says it has.
        source: Ipv4Addr,
        /// It asks for a connection.
        opens: bool,
    },
    /// Nothing that is answered.
    Other,
}

impl Frame<'_> {
    /// Reads a frame.
    pub(crate) fn parse(frame: &[u8]) -> Frame<'_> {
        Frame::arp(frame).or_else(|| Frame::tcp(frame)).unwrap_or(Frame::Other)
    }

    fn arp(frame: &[u8]) -> Option<Frame<'_>> {
        let request: &[u8; ARP_END] = frame.first_chunk()?;
        let is_request = request[12..ETHERNET] == TYPE_ARP
            && request[ETHERNET..ETHERNET + 6] == ARP_KIND
            && request[ETHERNET + 6..ARP_SENDER] == ARP_REQUEST
            && request[ARP_TARGET_IP..] == ADDRESS.octets();
        if !is_request || !is_station(&request[6..12]) {
            return None;
        }
        let mut reply = *request;
        reply[..6].copy_from_slice(&request[6..12]);
        reply[6..12].copy_from_slice(&MAC);
        reply[ETHERNET + 6..ARP_SENDER].copy_from_slice(&ARP_REPLY);
        reply[ARP_SENDER..ARP_SENDER + 6].copy_from_slice(&MAC);
        reply[ARP_SENDER + 6..ARP_SENDER + 10].copy_from_slice(&ADDRESS.octets());
        // Whoever asked, as it called itself.
        reply[ARP_SENDER + 10..].copy_from_slice(&request[ARP_SENDER..ARP_SENDER + 10]);
        Some(Frame::Arp(reply))
    }

    fn tcp(frame: &[u8]) -> Option<Frame<'_>> {
        let head: &[u8; IPV4_END] = frame.first_chunk()?;
        let ip = &head[ETHERNET..];
        let header = usize::from(ip[0] & 0xf) * 4;
        let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let fragment = u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT;
        let good = head[12..ETHERNET] == TYPE_IPV4
            && ip[0] >> 4 == 4
            && header >= 20
            && fragment == 0
            && ip[9] == PROTOCOL_TCP
            && ip[16..] == ADDRESS.octets()
            && is_station(&head[6..12]);
        if !good {
            return None;
        }
        let packet = frame[ETHERNET..].get(..length)?;
        let flags = packet.get(header + 13)?;
        Some(Frame::Tcp {
            packet,
            mac: [head[6], head[7], head[8], head[9], head[10], head[11]],
            source: Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]),
            // SYN without ACK.
            opens: flags & 0x12 == 0x02,
        })
    }
}

/// Whether an address is that of a station other than the service, not of a group.
fn is_station(mac: &[u8]) -> bool {
    mac[0] & 1 == 0 && *mac != MAC
}

/// The Ethernet header of an IPv4 packet from the service.
pub(crate) fn header(to: [u8; 6]) -> [u8; ETHERNET] {
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&MAC);
    header[12..].copy_from_slice(&TYPE_IPV4);
    header
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    /// A question for the station at an address.
    pub(crate) fn arp_request(target: Ipv4Addr) -> Vec<u8> {
        let mut frame = [&[0xff; 6][..], &GUEST, &TYPE_ARP, &ARP_KIND, &ARP_REQUEST, &GUEST].concat();
        frame.extend([192, 168, 1, 2, 0, 0, 0, 0, 0, 0]);
        frame.extend(target.octets());
        frame
    }

    /// A TCP segment of `length` bytes in all to an address.
    fn segment(target: Ipv4Addr, length: u16) -> Vec<u8> {
        let mut frame = [&MAC[..], &GUEST, &TYPE_IPV4, &[0x45, 0]].concat();
        frame.extend((20 + length).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, PROTOCOL_TCP, 0, 0, 10, 0, 0, 1]);
        frame.extend(target.octets());
        frame.resize(IPV4_END + usize::from(length), 0);
        frame[IPV4_END + 13] = 0x02;
        frame
    }

    #[test]
    fn only_what_is_for_the_service_is_picked() {
        let mut elsewhere = segment([8, 8, 8, 8].into(), 20);
        elsewhere[..6].copy_from_slice(&[2; 6]);
        let mut udp = segment(ADDRESS, 20);
        udp[ETHERNET + 9] = 17;
        udp[..6].copy_from_slice(&[2; 6]);
        let mut tagged = segment(ADDRESS, 20);
        tagged[..6].copy_from_slice(&[2; 6]);
        tagged.splice(12..12, [0x81, 0x00, 0, 1]);
        for (frame, picked) in [
            (arp_request(ADDRESS), true),
            (arp_request([169, 254, 169, 253].into()), false),
            (segment(ADDRESS, 20), true),
            // By way of the service to elsewhere.
            (segment([8, 8, 8, 8].into(), 20), true),
            (elsewhere, false),
            (udp, true),
            (tagged, false),
        ] {
            assert_eq!(is_for_service(&frame[..frame.len().min(HEAD)]), picked, "{frame:x?}");
            // Cut short, it is at most less.
            for length in 0..frame.len() {
                assert!(!is_for_service(&frame[..length]) || picked);
            }
        }
    }

    #[test]
    fn questions_are_answered_to_whoever_asked() {
        let Frame::Arp(reply) = Frame::parse(&arp_request(ADDRESS)) else { panic!("no answer") };
        assert_eq!((&reply[..6], &reply[6..12]), (&GUEST[..], &MAC[..]));
        assert_eq!(reply[20..22], ARP_REPLY);
        assert_eq!((&reply[22..28], &reply[28..32]), (&MAC[..], &ADDRESS.octets()[..]));
        assert_eq!((&reply[32..38], &reply[38..42]), (&GUEST[..], &[192, 168, 1, 2][..]));
        // Answers, other kinds of address, groups that ask.
        for (at, byte) in [(21, 2), (15, 6), (17, 1), (18, 8), (19, 16), (6, 1)] {
            let mut frame = arp_request(ADDRESS);
            frame[at] = byte;
            assert_eq!(Frame::parse(&frame), Frame::Other, "{at}");
        }
    }

    #[test]
    fn segments_are_cut_to_their_length_and_bad_ones_are_nothing() {
        let mut frame = segment(ADDRESS, 20);
        frame.extend([0; 20]);
        let Frame::Tcp { packet, mac, source, opens } = Frame::parse(&frame) else { panic!("no segment") };
        assert_eq!((packet.len(), mac, source.octets(), opens), (40, GUEST, [10, 0, 0, 1], true));
        // Fragments, lengths that lie, other versions and protocols, other targets, a sender that is the service or a group.
        for (at, byte) in [
            (20, 0x20),
            (21, 1),
            (16, 1),
            (17, 10),
            (14, 0x65),
            (14, 0x44),
            (14, 0x4f),
            (23, 17),
            (33, 1),
            (6, 1),
        ] {
            let mut frame = segment(ADDRESS, 20);
            frame[at] = byte;
            assert_eq!(Frame::parse(&frame), Frame::Other, "{at} {byte}");
        }
        let mut frame = segment(ADDRESS, 20);
        frame[6..12].copy_from_slice(&MAC);
        assert_eq!(Frame::parse(&frame), Frame::Other);
        for length in 0..54 {
            assert_eq!(Frame::parse(&segment(ADDRESS, 20)[..length]), Frame::Other, "{length}");
        }
        frame[IPV4_END + 13] = 0x12;
        frame[6] = 2;
        assert!(matches!(Frame::parse(&frame), Frame::Tcp { opens: false, .. }));
    }
}
