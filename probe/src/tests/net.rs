//! A network card on a tap, against the host's own network stack: `probe.ip` is the guest's address, `probe.host` the tap's.
//! Which card: `probe.net=N` counts from 0.

use super::Machine;
use crate::clock::PATIENCE;
use crate::io::Region;
use crate::verdict::{Outcome, Stop};
use crate::virtio::net::{self, Card, HEADER, address, ethernet, get16, ipv4, put16, sum};
use crate::virtio::queue::Buffer;

const ARP: u16 = 0x0806;
pub(super) const IPV4: u16 = 0x0800;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const BROADCAST: [u8; 6] = [0xff; 6];

pub(super) fn open(machine: &mut Machine, features: u64) -> Result<Card, Stop> {
    let nth = machine.start.number("net").unwrap_or(0);
    match Card::open(&machine.bus, &mut machine.arena, machine.clock, nth, features) {
        Ok(Some(card)) => Ok(card),
        Ok(None) => Err(Stop::Skip(text!("there is no network card {nth}"))),
        Err(why) => Err(Stop::Fail(why)),
    }
}

/// The guest's and the host's addresses.
pub(super) fn addresses(machine: &Machine) -> Result<([u8; 4], [u8; 4]), Stop> {
    let get = |name| machine.start.option(name).and_then(address);
    match (get("ip"), get("host")) {
        (Some(ip), Some(host)) => Ok((ip, host)),
        _ => Err(Stop::Skip(text!("probe.ip and probe.host name no addresses"))),
    }
}

/// Address, link state, queues; `probe.mac` compares the address.
pub(super) fn info(machine: &mut Machine) -> Outcome {
    let card = open(machine, net::F_MQ | net::F_MTU | net::F_CTRL_VQ)?;
    let Some(config) = card.device.config else { fail!("no device configuration") };
    let features = card.device.features;
    let [a, b, c, d, e, f] = card.mac;
    let mac = text!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    check!(a & 1 == 0, "{mac} is a group address");
    if let Some(wanted) = machine.start.option("mac") {
        check!(mac.as_str() == wanted, "the address is {mac}, not {wanted}");
    }
    if features & net::F_STATUS != 0 {
        check!(config.read16(6) & 1 == 1, "the link is down");
    }
    let pairs = if features & net::F_MQ != 0 { config.read16(8) } else { 1 };
    let mtu = if features & net::F_MTU != 0 { config.read16(10) } else { 1500 };
    if let Some(wanted) = machine.start.number("mtu") {
        check!(u64::from(mtu) == wanted, "the MTU is {mtu}, not {wanted}");
    }
    Ok(text!("mac={mac} pairs={pairs} mtu={mtu} queues={} features={features:#x}", card.device.queue_count()))
}

/// Asks who has the host's address; the answer's hardware address.
pub(super) fn resolve(card: &mut Card, ip: [u8; 4], host: [u8; 4]) -> Result<[u8; 6], Stop> {
    for _ in 0..5 {
        let frame = card.frame();
        ethernet(frame, BROADCAST, card.mac, ARP);
        frame.store(14, &[0, 1, 8, 0, 6, 4, 0, 1]);
        frame.store(22, &card.mac);
        frame.store(28, &ip);
        frame.store(32, &[0; 6]);
        frame.store(38, &host);
        card.send(60).map_err(Stop::Fail)?;
        let answer = card.receive(1000, |frame| {
            let mut sender = [0; 10];
            let is_reply = frame.len() >= 42 && get16(frame, 12) == ARP && get16(frame, 20) == 2;
            is_reply.then(|| frame.load(22, &mut sender)).filter(|()| sender[6..] == host)?;
            let mut mac = [0; 6];
            mac.copy_from_slice(&sender[..6]);
            Some(mac)
        });
        if let Some(mac) = answer {
            return Ok(mac);
        }
    }
    Err(Stop::Fail(text!("nobody answers for {host:?}")))
}

/// The host answers an ARP request.
pub(super) fn arp(machine: &mut Machine) -> Outcome {
    let (ip, host) = addresses(machine)?;
    let mut card = open(machine, 0)?;
    let [a, b, c, d, e, f] = resolve(&mut card, ip, host)?;
    Ok(text!("host={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
}

/// Echo requests of many sizes come back with every byte.
pub(super) fn ping(machine: &mut Machine) -> Outcome {
    let (ip, host) = addresses(machine)?;
    let mut card = open(machine, 0)?;
    let mac = resolve(&mut card, ip, host)?;
    let mut total = 0;
    for (sequence, len) in
        [0u64, 1, 2, 55, 56, 57, 64, 511, 512, 1000, 1471, 1472].into_iter().cycle().take(120).enumerate()
    {
        let frame = card.frame();
        ethernet(frame, mac, card.mac, IPV4);
        ipv4(frame, ip, host, ICMP, 8 + len as u16);
        let icmp = frame.part(34, 8 + len);
        icmp.store(0, &[8, 0, 0, 0, 0x56, 0x47]);
        put16(icmp, 6, sequence as u16);
        (0..len).for_each(|i| icmp.write8(8 + i, (i * 7 + sequence as u64) as u8));
        put16(icmp, 2, !(sum(icmp, 0) as u16));
        card.send((34 + 8 + len).max(60)).map_err(Stop::Fail)?;
        let echo = card.receive(PATIENCE, |frame| {
            let ours = frame.len() >= 42 + len
                && get16(frame, 12) == IPV4
                && frame.read8(23) == ICMP
                && frame.read8(34) == 0
                && get16(frame, 40) == sequence as u16;
            ours.then(|| {
                let icmp = frame.part(34, 8 + len);
                sum(icmp, 0) == 0xffff
                    && (0..len).all(|i| icmp.read8(8 + i) == (i * 7 + sequence as u64) as u8)
            })
        });
        match echo {
            None => fail!("echo {sequence} of {len} bytes does not come back"),
            Some(false) => fail!("echo {sequence} of {len} bytes comes back changed"),
            Some(true) => total += len,
        }
    }
    Ok(text!("echoes=120 bytes={total}"))
}

/// A datagram whose checksum is left to the device: the host only answers "port unreachable" if the sum is right.
pub(super) fn checksum(machine: &mut Machine) -> Outcome {
    let (ip, host) = addresses(machine)?;
    let mut card = open(machine, net::F_CSUM)?;
    if card.device.features & net::F_CSUM == 0 {
        skip!("checksum offload is not offered");
    }
    let mac = resolve(&mut card, ip, host)?;
    let len = 101u64;
    let frame = card.frame();
    ethernet(frame, mac, card.mac, IPV4);
    ipv4(frame, ip, host, UDP, 8 + len as u16);
    let udp = frame.part(34, 8 + len);
    put16(udp, 0, 4000);
    put16(udp, 2, 9); // discard: closed on the host
    put16(udp, 4, 8 + len as u16);
    put16(udp, 6, 0);
    (0..len).for_each(|i| udp.write8(8 + i, i as u8));
    // The pseudo header's sum, uncomplemented, is what the device continues from.
    let pseudo = sum(frame.part(26, 8), u32::from(UDP) + 8 + len as u32);
    put16(udp, 6, pseudo as u16);
    let header = card.header();
    header.write8(0, 1); // NEEDS_CSUM
    header.write16(6, 34);
    header.write16(8, 6);
    card.send(34 + 8 + len).map_err(Stop::Fail)?;
    let answer = card.receive(PATIENCE, |frame| {
        (frame.len() >= 62 && get16(frame, 12) == IPV4 && frame.read8(23) == ICMP && frame.read8(34) == 3)
            .then(|| frame.read8(35))
    });
    match answer {
        Some(3) => Ok(text!("")),
        Some(code) => fail!("unreachable, code {code}"),
        None => fail!("the host does not answer: the checksum was wrong, or the frame lost"),
    }
}

/// The control queue takes a known command, and refuses unknown ones without falling over.
pub(super) fn control(machine: &mut Machine) -> Outcome {
    let mut card = open(machine, net::F_CTRL_VQ | net::F_MQ)?;
    let clock = machine.clock;
    let request = machine.arena.take(16, 16);
    let ack = machine.arena.take(1, 1);
    let has_pairs = card.device.features & net::F_MQ != 0;
    let Card { device, control, .. } = &mut card;
    let Some(queue) = control else { skip!("there is no control queue") };
    let mut command = |class: u8, command: u8, data: &[u8]| -> Result<u8, Stop> {
        request.fill(0);
        request.store(0, &[class, command]);
        request.store(2, data);
        ack.fill(0xee);
        let parts = [
            Buffer::readable(request.part(0, 2)),
            Buffer::readable(request.part(2, data.len() as u64)),
            Buffer::writable(ack),
        ];
        queue.add(&parts).ok_or_else(|| Stop::Fail(text!("the control queue is full")))?;
        queue.kick();
        device.complete(queue, &clock).map_err(Stop::Fail)?;
        Ok(ack.read8(0))
    };
    if has_pairs {
        let one_pair = command(4, 0, &[1, 0])?;
        check!(one_pair == 0, "one queue pair: answer {one_pair}");
    }
    for (class, number, data) in [
        (4, 0, &[0u8, 0][..]),
        (4, 0, &[0xff, 0xff]),
        (4, 9, &[1, 0]),
        (0xff, 0xff, &[0; 8]),
        (5, 0, &[0; 1]),
    ] {
        let answer = command(class, number, data)?;
        check!(answer == 1, "command {class}/{number} {data:x?}: answer {answer}, not 1");
    }
    Ok(text!(""))
}

/// Frames that no network has: empty, shorter than an Ethernet header, with a lying virtio header, too long, out of RAM. Each on a
/// card that was just started; the device may drop it, fail it or ask for a reset, and works again afterwards.
pub(super) fn hostile(machine: &mut Machine) -> Outcome {
    let addresses = addresses(machine).ok();
    let mut lies = 0;
    for len in [0, 1, 13, 14, 9000, 65535] {
        lie(machine, &mut lies, |card, send| send(card, &[Buffer::readable(part(card, HEADER + len))]))?;
    }
    for (flags, gso, header_len, gso_size, start, offset) in [
        (1u8, 0u8, 0u16, 0u16, 0xffffu16, 0xffffu16),
        (1, 0, 0, 0, 59, 6),
        (0xff, 0xff, 0xffff, 0xffff, 0, 0),
        (0, 1, 0xffff, 0, 0, 0),
        (1, 1, 54, 1, 34, 16),
        (1, 0x84, 54, 1448, 34, 16),
    ] {
        lie(machine, &mut lies, |card, send| {
            let header = card.header();
            header.store(0, &[flags, gso]);
            for (at, value) in [(2, header_len), (4, gso_size), (6, start), (8, offset)] {
                header.write16(at, value);
            }
            send(card, &[Buffer::readable(part(card, HEADER + 60))])
        })?;
    }
    for len in [1, HEADER - 1] {
        lie(machine, &mut lies, |card, send| send(card, &[Buffer::readable(part(card, len))]))?;
    }
    lie(machine, &mut lies, |card, send| {
        let (header, frame) = (card.header(), card.frame().part(0, 60));
        send(card, &[header.part(0, 5), header.part(5, 7), frame].map(Buffer::readable))
    })?;
    lie(machine, &mut lies, |card, send| send(card, &[Buffer::writable(part(card, 72))]))?;
    for address in [u64::MAX - 5, 1 << 46, 0xfee0_0000] {
        lie(machine, &mut lies, |card, send| send(card, &[Buffer { address, len: 72, writable: false }]))?;
    }
    machine.arena.reset();
    let mut card = open(machine, 0)?;
    if let Some((ip, host)) = addresses {
        resolve(&mut card, ip, host)?;
    }
    Ok(text!("lies={lies}"))
}

/// The first `len` bytes that a card sends, virtio header included.
fn part(card: &Card, len: u64) -> Region {
    // SAFETY: the card's own buffer, which has room for 65536 bytes behind the header.
    unsafe { Region::new(card.header().base(), len) }
}

type Send = fn(&mut Card, &[Buffer]);

/// Starts a card, lets `what` send something through it, gives the device a moment, and resets it.
fn lie(machine: &mut Machine, count: &mut u32, what: impl FnOnce(&mut Card, Send)) -> Result<(), Stop> {
    machine.arena.reset();
    let clock = machine.clock;
    let mut card = open(machine, net::F_CSUM)?;
    what(&mut card, |card, chain| {
        card.transmit.add(chain);
        card.transmit.kick();
    });
    clock.wait(5, || card.transmit.pop().is_some());
    *count += 1;
    if card.device.reset() { Ok(()) } else { Err(Stop::Fail(text!("lie {count}: the card does not reset"))) }
}
