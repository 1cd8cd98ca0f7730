//! A network card behind which somebody makes connections in the guest's name: `net-dhcp` takes an address, `net-dns` asks the name server
//! that came with it, `net-reach` tries whom it can reach, `net-serve` answers connections.
//!
//! `probe.ip`, `probe.host` are the guest's and its gateway's addresses, `probe.ip6`, `probe.host6` those of IPv6, `probe.to` a list of
//! `tcp:ADDRESS:PORT` or `udp:…` which echo what they get, `probe.port` where to serve, `probe.connections` how many.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Machine;
use crate::io::Region;
use crate::text::Text;
use crate::verdict::{Outcome, Stop};
use crate::virtio::ip::{self, ACK, Ends, FIN, RST, SYN, Segment, TCP, UDP};
use crate::virtio::net::{Card, TOGETHER, get16};

/// How long an answer may take, in milliseconds, and how often it is asked for.
const PATIENCE: u64 = 700;
const TRIES: u64 = 8;

fn open(machine: &mut Machine) -> Result<Card, Stop> {
    let nth = machine.start.number("net").unwrap_or(0);
    match Card::open(&machine.bus, &mut machine.arena, machine.clock, nth, 0) {
        Ok(Some(card)) => Ok(card),
        Ok(None) => Err(Stop::Skip(text!("there is no network card {nth}"))),
        Err(why) => Err(Stop::Fail(why)),
    }
}

/// An address from the command line.
fn given(machine: &Machine, name: &str) -> Result<IpAddr, Stop> {
    let text = machine.start.option(name);
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Stop::Skip(text!("probe.{name} names no address: {text:?}")))
}

/// Bytes of a message before its options (RFC 2131, 2), and the cookie.
const OPTIONS: u64 = 240;

/// An option of a DHCP message.
fn option(message: Region, wanted: u8) -> Option<Region> {
    let mut at = OPTIONS;
    while at + 2 <= message.len() {
        let (code, length) = (message.read8(at), u64::from(message.read8(at + 1)));
        match code {
            0 => at += 1,
            255 => return None,
            _ if at + 2 + length > message.len() => return None,
            code if code == wanted => return Some(message.part(at + 2, length)),
            _ => at += 2 + length,
        }
    }
    None
}

fn v4(region: Region) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    (region.len() >= 4).then(|| region.load(0, &mut bytes))?;
    Some(bytes.into())
}

/// What a lease says: the address, the router, the name server.
type Lease = (Ipv4Addr, Option<Ipv4Addr>, Option<Ipv4Addr>);

/// Sends a message of this kind and waits for the answer of that one.
fn exchange(card: &mut Card, kind: u8, wanted: Option<Ipv4Addr>, answer: u8) -> Result<Lease, Stop> {
    let everybody = Ends {
        mac: [0xff; 6],
        ours: Ipv4Addr::UNSPECIFIED.into(),
        our_port: 68,
        theirs: Ipv4Addr::BROADCAST.into(),
        their_port: 67,
    };
    let own = card.mac;
    for _ in 0..TRIES {
        let sent = ip::datagram(card, &everybody, OPTIONS + 16, |message| {
            message.store(0, &[1, 1, 6, 0, 0x56, 0x49, 0x52, 0x47]);
            message.store(28, &own);
            message.store(236, &[99, 130, 83, 99]);
            message.store(OPTIONS, &[53, 1, kind]);
            match wanted {
                Some(address) => {
                    message.store(OPTIONS + 3, &[50, 4]);
                    message.store(OPTIONS + 5, &address.octets());
                    message.write8(OPTIONS + 9, 255);
                }
                None => message.write8(OPTIONS + 3, 255),
            }
        });
        sent.map_err(Stop::Fail)?;
        let lease = card.receive(PATIENCE, |frame| {
            let packet = ip::packet(frame).filter(|p| p.protocol == UDP && p.body.len() > 8 + OPTIONS)?;
            let message = packet.body.part(8, packet.body.len() - 8);
            let kind = option(message, 53).filter(|kind| kind.len() == 1)?.read8(0);
            let ours = get16(packet.body, 2) == 68 && message.read8(0) == 2 && kind == answer;
            let of = |code| option(message, code).and_then(v4);
            ours.then(|| v4(message.part(16, 4)).map(|address| (address, of(3), of(6))))?
        });
        if let Some(lease) = lease {
            return Ok(lease);
        }
    }
    Err(Stop::Fail(text!("message {kind} is not answered")))
}

fn lease(card: &mut Card) -> Result<Lease, Stop> {
    let (offered, ..) = exchange(card, 1, None, 2)?;
    exchange(card, 3, Some(offered), 5)
}

/// Takes an address.
pub(super) fn dhcp(machine: &mut Machine) -> Outcome {
    let mut card = open(machine)?;
    let (address, router, server) = lease(&mut card)?;
    let show = |address: Option<Ipv4Addr>| address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    Ok(text!("address={address} router={} dns={}", show(router), show(server)))
}

/// `probe.example`, as it is asked for: its address (RFC 1035, 4.1).
const NAME: &[u8] = b"\x05probe\x07example\x00\x00\x01\x00\x01";

/// Asks the name server.
pub(super) fn dns(machine: &mut Machine) -> Outcome {
    let mut card = open(machine)?;
    let (address, router, server) = lease(&mut card)?;
    let Some((router, server)) = router.zip(server) else { fail!("no router or no name server") };
    let mac = ip::neighbour(&mut card, address.into(), router.into()).map_err(Stop::Fail)?;
    let ends = Ends { mac, ours: address.into(), our_port: 4053, theirs: server.into(), their_port: 53 };
    for _ in 0..TRIES {
        let question = |message: Region| {
            message.store(0, &[0x56, 0x47, 1, 0, 0, 1]);
            message.store(12, NAME);
        };
        ip::datagram(&mut card, &ends, 12 + NAME.len() as u64, question).map_err(Stop::Fail)?;
        let answer = card.receive(PATIENCE, |frame| {
            let packet = ip::packet(frame).filter(|p| p.protocol == UDP && p.from == ends.theirs)?;
            let (body, end) = (packet.body, packet.body.len());
            let ours = get16(body, 2) == ends.our_port && end >= 8 + 12 + 4 && get16(body, 8) == 0x5647;
            ours.then(|| v4(body.part(end - 4, 4)))?
        });
        if let Some(answer) = answer {
            return Ok(text!("server={server} answer={answer}"));
        }
    }
    fail!("{server} does not answer")
}

/// What is sent.
fn byte(at: u64) -> u8 {
    (at * 7 + at / 251) as u8
}

/// Bytes that are sent to who is reached by TCP.
const BYTES: u64 = 20_000;

/// Tries to reach each, and says what came of it.
pub(super) fn reach(machine: &mut Machine) -> Outcome {
    let mut card = open(machine)?;
    let Some(list) = machine.start.option("to") else { skip!("probe.to names nobody") };
    let mut results = text!("");
    for (nth, one) in list.split(',').enumerate() {
        let parsed = one.split_once(':').and_then(|(p, a)| Some((p, a.parse::<SocketAddr>().ok()?)));
        let Some((protocol, to)) = parsed else { fail!("{one:?} is no address") };
        let v6 = if to.is_ipv6() { ("ip6", "host6") } else { ("ip", "host") };
        let (ours, gateway) = (given(machine, v6.0)?, given(machine, v6.1)?);
        let mac = ip::neighbour(&mut card, ours, gateway).map_err(Stop::Fail)?;
        let our_port = 40_000 + nth as u16;
        let ends = Ends { mac, ours, our_port, theirs: to.ip(), their_port: to.port() };
        let came = match protocol {
            "tcp" => by_tcp(&mut card, &ends)?,
            "udp" => by_udp(&mut card, &ends)?,
            _ => fail!("{protocol:?} is no protocol"),
        };
        println!("# {one} {came}");
        results = text!("{results}{}{came}", if nth == 0 { "" } else { "," });
    }
    Ok(text!("results={results}"))
}

fn by_udp(card: &mut Card, ends: &Ends) -> Result<&'static str, Stop> {
    for _ in 0..3 {
        ip::datagram(card, ends, 32, |data| (0..32).for_each(|i| data.write8(i, byte(i))))
            .map_err(Stop::Fail)?;
        let echo = card.receive(PATIENCE, |frame| {
            let packet = ip::packet(frame).filter(|p| p.protocol == UDP && p.from == ends.theirs)?;
            let body = packet.body;
            let ours = get16(body, 2) == ends.our_port && body.len() == 40;
            ours.then(|| (0..32).all(|i| body.read8(8 + i) == byte(i)))
        });
        match echo {
            Some(true) => return Ok("echo"),
            Some(false) => return Err(Stop::Fail(text!("{} sent something else back", ends.theirs))),
            None => {}
        }
    }
    Ok("silent")
}

/// The next segments from the other end.
fn heard(card: &mut Card, ends: &Ends, millis: u64) -> [Option<Segment>; TOGETHER] {
    card.gather(millis, |frame| {
        let packet = ip::packet(frame).filter(|packet| packet.from == ends.theirs)?;
        ip::segment(&packet).filter(|s| s.to == ends.our_port && s.from == ends.their_port)
    })
}

/// A connection that we made.
struct Made {
    /// Our next byte's number.
    sequence: u32,
    /// Theirs.
    next: u32,
    /// Bytes that came back.
    back: u64,
    refused: bool,
}

impl Made {
    /// Takes a segment; `false` if it brings something else than was sent.
    fn take(&mut self, s: &Segment) -> bool {
        self.refused |= s.flags & RST != 0;
        if s.sequence != self.next {
            return true;
        }
        let same = (0..s.data.len()).all(|i| s.data.read8(i) == byte(self.back + i));
        self.back += s.data.len();
        self.next = self.next.wrapping_add(s.length());
        same
    }
}

const FIRST: u32 = 0x1000_0000;

fn connect(card: &mut Card, ends: &Ends) -> Result<Option<Made>, Stop> {
    for _ in 0..3 {
        ip::say(card, ends, (FIRST, 0), SYN, 0, |_| ()).map_err(Stop::Fail)?;
        for s in heard(card, ends, PATIENCE).iter().flatten() {
            let next = s.sequence.wrapping_add(1);
            if s.flags & RST != 0 {
                return Ok(Some(Made { sequence: 0, next, back: 0, refused: true }));
            }
            if s.flags & (SYN | ACK) == SYN | ACK && s.acknowledged == FIRST + 1 {
                return Ok(Some(Made { sequence: FIRST + 1, next, back: 0, refused: false }));
            }
        }
    }
    Ok(None)
}

fn by_tcp(card: &mut Card, ends: &Ends) -> Result<&'static str, Stop> {
    let Some(mut made) = connect(card, ends)? else { return Ok("silent") };
    let mut out = 0;
    while out < BYTES && !made.refused {
        let length = (BYTES - out).min(u64::from(ip::SEGMENT));
        let (mut tries, mut acknowledged) = (0, false);
        // Its echo, and that it came.
        while !(made.refused || acknowledged && made.back == out + length) {
            if !acknowledged && tries < TRIES {
                let fill = |data: Region| (0..length).for_each(|i| data.write8(i, byte(out + i)));
                ip::say(card, ends, (made.sequence, made.next), ACK, length, fill).map_err(Stop::Fail)?;
            }
            let wanted = made.sequence.wrapping_add(length as u32);
            let mut any = false;
            for s in heard(card, ends, PATIENCE).iter().flatten() {
                any = true;
                acknowledged |= s.acknowledged == wanted;
                if !made.take(s) {
                    return Err(Stop::Fail(text!("{} sent something else back", ends.theirs)));
                }
            }
            if any {
                let at = if acknowledged { wanted } else { made.sequence };
                ip::say(card, ends, (at, made.next), ACK, 0, |_| ()).map_err(Stop::Fail)?;
            } else {
                tries += 1;
                if tries > TRIES {
                    return Err(Stop::Fail(text!("{} is silent after {} bytes", ends.theirs, made.back)));
                }
            }
        }
        out += length;
        made.sequence = made.sequence.wrapping_add(length as u32);
    }
    if made.refused {
        return Ok(if made.back == 0 { "refused" } else { "reset" });
    }
    ip::say(card, ends, (made.sequence, made.next), ACK | FIN, 0, |_| ()).map_err(Stop::Fail)?;
    Ok("echo")
}

/// The connection that is served.
struct Served {
    ends: Ends,
    /// Our next byte's number.
    sequence: u32,
    /// Theirs.
    next: u32,
}

/// Echoes what comes by connections, one at a time, and datagrams.
pub(super) fn serve(machine: &mut Machine) -> Outcome {
    let mut card = open(machine)?;
    let port = machine.start.number("port").unwrap_or(7) as u16;
    let wanted = machine.start.number("connections").unwrap_or(u64::MAX);
    // Who serves has said who it is.
    let (ours, gateway) = (given(machine, "ip")?, given(machine, "host")?);
    ip::neighbour(&mut card, ours, gateway).map_err(Stop::Fail)?;
    println!("# serving");
    let (mut served, mut done) = (None::<Served>, 0u64);
    while done < wanted {
        let came = card.gather(1000, |frame| {
            let packet = ip::packet(frame).filter(|packet| packet.body.len() >= 8)?;
            let known = [UDP, TCP].contains(&packet.protocol) && get16(packet.body, 2) == port;
            known.then_some(packet)
        });
        for packet in came.iter().flatten() {
            let (their_port, body) = (get16(packet.body, 0), packet.body);
            let ends =
                Ends { mac: packet.mac, ours: packet.to, our_port: port, theirs: packet.from, their_port };
            if packet.protocol == UDP {
                let data = body.part(8, body.len() - 8);
                let copy = |to: Region| (0..data.len()).for_each(|i| to.write8(i, data.read8(i)));
                ip::datagram(&mut card, &ends, data.len(), copy).map_err(Stop::Fail)?;
            } else if let Some(segment) = ip::segment(packet) {
                done += u64::from(echo(&mut card, ends, &segment, &mut served).map_err(Stop::Fail)?);
            }
        }
    }
    Ok(text!("connections={done}"))
}

/// Answers a segment; `true` if it was the last of a connection.
fn echo(card: &mut Card, ends: Ends, s: &Segment, served: &mut Option<Served>) -> Result<bool, Text> {
    if s.flags & SYN != 0 {
        // Whoever was there before is forgotten.
        let (sequence, next) = (0x2000_0000, s.sequence.wrapping_add(1));
        ip::say(card, &ends, (sequence, next), SYN | ACK, 0, |_| ())?;
        *served = Some(Served { ends, sequence: sequence + 1, next });
        return Ok(false);
    }
    let Some(one) = served.as_mut().filter(|one| one.ends.their_port == s.from) else { return Ok(false) };
    if s.flags & RST != 0 {
        *served = None;
        return Ok(false);
    }
    if s.sequence != one.next || s.length() == 0 {
        return Ok(false);
    }
    one.next = one.next.wrapping_add(s.length());
    let over = s.flags & FIN != 0;
    let flags = if over { ACK | FIN } else { ACK };
    let copy = |to: Region| (0..s.data.len()).for_each(|i| to.write8(i, s.data.read8(i)));
    ip::say(card, &one.ends, (one.sequence, one.next), flags, s.data.len(), copy)?;
    one.sequence = one.sequence.wrapping_add(s.data.len() as u32 + u32::from(over));
    if over {
        *served = None;
    }
    Ok(over)
}
