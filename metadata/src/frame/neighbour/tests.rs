use smoltcp::wire::Icmpv6Packet;

use super::*;
use crate::frame::Frame;
use crate::testing::{STATION, neighbour};

const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// A question for the station at an address.
pub(crate) fn solicitation(from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    neighbour(SOLICITATION, from, ASKED, target, &OPTION)
}

/// Who asks.
const OPTION: [u8; 8] =
    [OPTION_SENDER, 1, STATION[0], STATION[1], STATION[2], STATION[3], STATION[4], STATION[5]];

/// The answer, taken apart: to which station and address, and its flags.
fn answered(frame: &[u8]) -> Option<([u8; 6], Ipv6Addr, u8)> {
    let answer = answer(frame)?;
    assert_eq!(Frame::parse(frame), Frame::Question(answer.clone()));
    assert_eq!((answer.len(), &answer[6..14]), (86, &[&MAC[..], &TYPE_IPV6].concat()[..]));
    let ip = &answer[ETHERNET..];
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
    let message = &ip[IPV6..];
    assert_eq!((ip[..8].to_vec(), address(8)), (vec![0x60, 0, 0, 0, 0, 32, ICMPV6, 255], ADDRESS6));
    assert!(Icmpv6Packet::new_checked(message).unwrap().verify_checksum(&address(8), &address(24)));
    assert_eq!((message[0], message[1], address(48)), (ADVERTISEMENT, 0, ADDRESS6));
    assert_eq!(message[24..], [&[OPTION_TARGET, 1][..], &MAC].concat());
    Some((answer[..6].try_into().unwrap(), address(24), message[4]))
}

#[test]
fn whoever_asks_is_told_by_whatever_address_it_has() {
    let global = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
    for from in [SOURCE, global, ADDRESS6] {
        assert_eq!(answered(&solicitation(from, ADDRESS6)), Some((STATION, from, SOLICITED | OVERRIDE)));
    }
    // Again, of the station itself, and with no option or several.
    let again = |options: &[u8]| answered(&neighbour(SOLICITATION, SOURCE, ADDRESS6, ADDRESS6, options));
    for options in
        [&[][..], &OPTION, &[OPTION, OPTION].concat(), &[14, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]]
    {
        assert_eq!(again(options), Some((STATION, SOURCE, SOLICITED | OVERRIDE)));
    }
}

#[test]
fn a_guest_that_would_have_the_address_is_told_that_it_is_taken() {
    let nobody = Ipv6Addr::UNSPECIFIED;
    let asks = |to, options: &[u8]| answered(&neighbour(SOLICITATION, nobody, to, ADDRESS6, options));
    assert_eq!(asks(ASKED, &[]), Some((ALL_MAC, ALL, OVERRIDE)));
    // As nobody asks who it is.
    assert_eq!(asks(ADDRESS6, &[]), None);
    assert_eq!(asks(ASKED, &OPTION), None);
    assert_eq!(asks(ASKED, &[[14, 1, 0, 0, 0, 0, 0, 0], OPTION].concat()), None);
    // And that it has it is not heard, by us or the network.
    let claim = neighbour(ADVERTISEMENT, ADDRESS6, ALL, ADDRESS6, &[]);
    assert!(is_of_service(&claim));
    assert_eq!(Frame::parse(&claim), Frame::Other);
}

#[test]
fn bad_questions_get_no_answer() {
    let good = solicitation(SOURCE, ADDRESS6);
    assert!(answered(&good).is_some());
    // Every bit of the packet but those that say how to carry it (and of the addresses, which the checksum covers like all the message).
    for at in 6..good.len() {
        for bit in 0..8 {
            let mut frame = good.clone();
            frame[at] ^= 1 << bit;
            let carries = matches!(at, 14..18) && (at != 14 || bit < 4);
            let other_station = matches!(at, 6..12) && (at, bit) != (6, 0);
            assert_eq!(answer(&frame).is_some(), carries || other_station, "{at} {bit}");
        }
    }
    for length in 0..good.len() {
        assert_eq!(answer(&good[..length]), None, "{length}");
    }
    let mut own = good.clone();
    own[6..12].copy_from_slice(&MAC);
    assert_eq!(answer(&own), None);
    let asks = |from, to, target, options: &[u8]| answer(&neighbour(SOLICITATION, from, to, target, options));
    let near = Ipv6Addr::from(ADDRESS6.to_bits() ^ 1 << 64);
    for (from, to, target) in [
        (SOURCE, ASKED, near),
        (SOURCE, ALL, ADDRESS6),
        (SOURCE, near, ADDRESS6),
        (ALL, ASKED, ADDRESS6),
        (Ipv6Addr::LOCALHOST, ASKED, ADDRESS6),
    ] {
        assert_eq!(asks(from, to, target, &[]), None, "{from} {to} {target}");
    }
    // Options without a length, longer than there is, and half of one.
    for options in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 0, 0, 0, 0, 0, 0], &[1], &[1, 1, 0, 0], &[14, 255]]
    {
        assert_eq!(asks(SOURCE, ASKED, ADDRESS6, options), None, "{options:?}");
    }
    // What an Ethernet adds does not count.
    assert!(answer(&[&good[..], &[7; 10]].concat()).is_some());
}
