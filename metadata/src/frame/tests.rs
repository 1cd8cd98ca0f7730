pub(crate) use super::neighbour::tests::solicitation;
use super::*;
use crate::testing::{ADVERTISEMENT, neighbour};

/// The station that asks, and its address.
const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

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
    frame.resize(ETHERNET + IPV4 + usize::from(length), 0);
    frame[ETHERNET + IPV4 + 13] = 0x02;
    frame
}

/// The same by IPv6, from a link-local address.
fn segment6(target: Ipv6Addr, length: u16) -> Vec<u8> {
    let mut frame = [&MAC[..], &GUEST, &TYPE_IPV6, &[0x60, 0, 0, 0]].concat();
    frame.extend(length.to_be_bytes());
    frame.extend([PROTOCOL_TCP, 64]);
    frame.extend(SOURCE.octets());
    frame.extend(target.octets());
    frame.resize(ETHERNET + IPV6 + usize::from(length), 0);
    frame[ETHERNET + IPV6 + 13] = 0x02;
    frame
}

/// The same frame, to another station.
fn to_another(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&[2; 6]);
    frame
}

/// With a byte changed.
fn with(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

/// What a card finds out of a frame, and how many bytes of it were looked at.
fn picked(frame: &[u8]) -> (bool, usize) {
    let read = std::cell::RefCell::new(vec![false; frame.len()]);
    let head = Head::read(|at, bytes| {
        let rest = frame.get(at..).unwrap_or_default();
        let count = bytes.len().min(rest.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        for seen in &mut read.borrow_mut()[at..at + count] {
            assert!(!std::mem::replace(seen, true), "a byte is read twice");
        }
        count
    });
    assert_eq!(is_for_service(head.bytes()), is_for_service(frame), "{frame:x?}");
    (is_for_service(frame), head.bytes().len())
}

#[test]
fn only_what_is_for_the_service_is_picked() {
    let mut tagged = to_another(segment(ADDRESS, 20));
    tagged.splice(12..12, [0x81, 0x00, 0, 1]);
    let mut tagged6 = to_another(segment6(ADDRESS6, 20));
    tagged6.splice(12..12, [0x81, 0x00, 0, 1]);
    let near = Ipv6Addr::from(ADDRESS6.to_bits() ^ 1);
    let asks = |target| to_another(solicitation(SOURCE, target));
    let claims = |target| {
        to_another(neighbour(ADVERTISEMENT, SOURCE, [0xff02, 0, 0, 0, 0, 0, 0, 1].into(), target, &[]))
    };
    for (frame, expected, looked_at) in [
        (arp_request(ADDRESS), true, FIRST),
        (arp_request([169, 254, 169, 253].into()), false, FIRST),
        (segment(ADDRESS, 60), true, FIRST),
        // By way of the service to elsewhere.
        (segment([8, 8, 8, 8].into(), 60), true, FIRST),
        (to_another(segment([8, 8, 8, 8].into(), 60)), false, FIRST),
        (with(to_another(segment(ADDRESS, 60)), ETHERNET + 9, 17), true, FIRST),
        (tagged, false, FIRST),
        (to_another(segment6(ADDRESS6, 60)), true, MOST),
        (to_another(segment6(near, 60)), false, MOST),
        (segment6(near, 60), true, MOST),
        // The network's own, of which no more is looked at.
        (to_another(segment6([0x2a00, 1, 2, 3, 4, 5, 6, 7].into(), 60)), false, FIRST),
        (to_another(segment6([0xfe80, 0, 0, 0, 0, 0, 0, 1].into(), 60)), false, FIRST),
        (with(to_another(segment6(ADDRESS6, 60)), ETHERNET + 6, 17), true, MOST),
        // Behind further headers, fragments among them.
        (with(to_another(segment6(ADDRESS6, 60)), ETHERNET + 6, 0), true, MOST),
        (with(to_another(segment6(ADDRESS6, 60)), ETHERNET + 6, 44), true, MOST),
        (tagged6, false, FIRST),
        (asks(ADDRESS6), true, MOST),
        // One whose group is the same.
        (asks(near), false, MOST),
        (asks(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x254)), false, MOST),
        (claims(ADDRESS6), true, MOST),
        (claims(near), false, MOST),
        // Other messages go where they are sent to: an echo, who listens to which groups.
        (with(asks(ADDRESS6), 54, 128), false, MOST),
        (with(asks(ADDRESS6), 54, 143), false, MOST),
    ] {
        assert_eq!(picked(&frame), (expected, looked_at.min(frame.len())), "{frame:x?}");
        // Cut short, it is at most less.
        for length in 0..frame.len() {
            assert!(!picked(&frame[..length]).0 || expected);
        }
    }
}

#[test]
fn questions_are_answered_to_whoever_asked() {
    let Frame::Question(reply) = Frame::parse(&arp_request(ADDRESS)) else { panic!("no answer") };
    assert_eq!((reply.len(), &reply[..6], &reply[6..12]), (42, &GUEST[..], &MAC[..]));
    assert_eq!((&reply[12..14], &reply[14..20]), (&TYPE_ARP[..], &ARP_KIND[..]));
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
    let sources: [IpAddr; 2] = [[10, 0, 0, 1].into(), SOURCE.into()];
    for (good, own, at) in
        [(segment(ADDRESS, 20), sources[0], IPV4), (segment6(ADDRESS6, 20), sources[1], IPV6)]
    {
        let mut frame = good.clone();
        frame.extend([0; 20]);
        let Frame::Tcp { packet, mac, source, opens } = Frame::parse(&frame) else { panic!("no segment") };
        assert_eq!((packet.len(), mac, source, opens), (at + 20, GUEST, own, true));
        let mut frame = good.clone();
        frame[6..12].copy_from_slice(&MAC);
        assert_eq!(Frame::parse(&frame), Frame::Other, "from the service");
        for length in 0..good.len() {
            assert_eq!(Frame::parse(&good[..length]), Frame::Other, "{length}");
        }
        let frame = with(good, ETHERNET + at + 13, 0x12);
        assert!(matches!(Frame::parse(&frame), Frame::Tcp { opens: false, .. }));
    }
    // Fragments, lengths that lie, other versions and protocols, other targets, a sender that is a group.
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
        assert_eq!(Frame::parse(&with(segment(ADDRESS, 20), at, byte)), Frame::Other, "{at} {byte}");
    }
    // Further headers of every kind instead of fragments; senders that are a group's address.
    let further = [0, 17, 43, 44, 50, 51, 58, 59, 60, 135, 139, 140, 255].map(|kind| (20, kind));
    for (at, byte) in further.into_iter().chain([
        (18, 1),
        (19, 10),
        (19, 21),
        (14, 0x40),
        (14, 0x50),
        (53, 1),
        (6, 1),
        (22, 0xff),
    ]) {
        assert_eq!(Frame::parse(&with(segment6(ADDRESS6, 20), at, byte)), Frame::Other, "{at} {byte}");
    }
    for source in [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST] {
        let mut frame = segment6(ADDRESS6, 20);
        frame[22..38].copy_from_slice(&source.octets());
        assert_eq!(Frame::parse(&frame), Frame::Other, "{source}");
    }
}
