//! Who is whose neighbour in IPv6 (RFC 4861): solicitations, which ask for the station at an address, and advertisements, which answer. Those
//! about the service's address are the service's, whoever they are sent to.

use std::net::Ipv6Addr;

use super::{ADDRESS6, ETHERNET, IPV6, MAC, TYPE_IPV6, after, header, sender, station};

const ICMPV6: u8 = 58;
/// Asks for the station at an address.
pub(crate) const SOLICITATION: u8 = 135;
/// Tells which one it is.
pub(crate) const ADVERTISEMENT: u8 = 136;

/// Where the address that a message is about ends, in a frame.
pub(super) const TARGET_END: usize = ETHERNET + IPV6 + 24;
/// Where it is in the message.
const TARGET: std::ops::Range<usize> = 8..24;
/// Kinds of option: the station that sent the message, and the one it is about.
const OPTION_SENDER: u8 = 1;
const OPTION_TARGET: u8 = 2;
/// The message is an answer; what was known before is wrong.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// The group where the station at [`ADDRESS6`] is asked for (RFC 4291 §2.7.1).
pub(crate) const ASKED: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x0254);
/// Every station, and where its frames go (RFC 2464 §7).
const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Whether an IPv6 packet may be one of these messages, by its header alone.
pub(super) fn may_be(frame: &[u8]) -> bool {
    frame.get(ETHERNET + 6) == Some(&ICMPV6)
}

/// Whether an IPv6 packet is a message about the service's address.
pub(super) fn is_of_service(frame: &[u8]) -> bool {
    let message = frame.get(ETHERNET + IPV6..TARGET_END);
    may_be(frame)
        && message.is_some_and(|message| {
            matches!(message[0], SOLICITATION | ADVERTISEMENT) && message[TARGET] == ADDRESS6.octets()
        })
}

/// The advertisement that answers a good solicitation (§7.1.1, §7.2.4).
pub(super) fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let ip: &[u8; IPV6] = after(frame, TYPE_IPV6)?.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let message = frame.get(ETHERNET + IPV6..)?.get(..length)?;
    let asker = sender(ip);
    // Whoever would like to have the address itself asks without one (RFC 4862 §5.4.2).
    let wants_it = asker.is_unspecified();
    let target = message.get(TARGET)?;
    let good = ip[0] >> 4 == 6
        && ip[6] == ICMPV6
        && ip[7] == 255
        && (ip[24..] == ASKED.octets() || ip[24..] == ADDRESS6.octets() && !wants_it)
        && !(asker.is_multicast() || asker.is_loopback())
        && message[..2] == [SOLICITATION, 0]
        && target == ADDRESS6.octets()
        && are_sound(&message[TARGET.end..], wants_it)
        && sum(&ip[8..], message) == 0xffff;
    let mac = station(frame).filter(|_| good)?;
    let (mac, to, flags) = match wants_it {
        true => (ALL_MAC, ALL, OVERRIDE),
        false => (mac, asker, OVERRIDE | SOLICITED),
    };
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(ADDRESS6.octets());
    message.extend([OPTION_TARGET, 1]);
    message.extend(MAC);
    let addresses = [ADDRESS6.octets(), to.octets()].concat();
    let checksum = !sum(&addresses, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut answer = header(mac, TYPE_IPV6).to_vec();
    answer.extend([0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    answer.extend(addresses);
    answer.extend(message);
    Some(answer)
}

/// Whether options have lengths, and none says who sends it if nobody does.
fn are_sound(mut options: &[u8], nobody: bool) -> bool {
    while let [kind, length, ..] = options {
        let Some(rest) = options.get(usize::from(*length) * 8..) else { return false };
        if *length == 0 || nobody && *kind == OPTION_SENDER {
            return false;
        }
        options = rest;
    }
    options.is_empty()
}

/// The Internet checksum's sum of a message between these two addresses (RFC 8200 §8.1): all ones if its checksum is right.
fn sum(addresses: &[u8], message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u64 {
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u64::from(*b))).sum()
    };
    let mut sum = words(addresses) + words(message) + message.len() as u64 + u64::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
pub(super) mod tests;
