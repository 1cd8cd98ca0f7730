//! Conversations over sockets that go on until they are told to end. It is for machines to which things happen meanwhile: see `load`.
//!
//! The guest listens at port 1000 and says again what it hears there. And it speaks itself, at port 2000 of the host, where what it says is
//! to be said again: it compares. A connection that breaks is made anew. When the device says that all connections are gone, they are forgotten.
//!
//! Signs of life are lines `TALK echoed=n streamed=n resets=n broken=n errors=n`, one every `probe.beat` (65536) bytes. It ends at a `q` on COM1.

use super::Machine;
use super::load::told_to_end;
use crate::io::Region;
use crate::verdict::{Outcome, Stop};
use crate::virtio::vsock::{LARGEST, Packet, Sockets, op};
use crate::virtio::{Device, kind};

const LISTENS: u32 = 1000;
const SERVICE: u32 = 2000;
/// Connections at a time.
const MOST: usize = 8;
/// Bytes that a connection has room for.
const ROOM: u64 = 16 << 10;
/// Bytes of our own that may be on their way there and back.
const WINDOW: u64 = 8 << 10;
/// The first of our own ports.
const FIRST: u32 = 5000;
/// Lines about what went wrong; the rest is counted only.
const COMPLAINTS: u64 = 8;

/// The event that all connections are gone (virtio 1.3, 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

#[derive(Debug, Clone, Copy)]
struct Connection {
    host: u32,
    guest: u32,
    /// Ours, or one to be echoed.
    ours: bool,
    open: bool,
    /// Bytes received, of which the last are still in the room of an echo.
    received: u64,
    sent: u64,
    /// What the other side says of its room.
    room: u32,
    taken: u32,
}

#[derive(Debug, Default)]
struct Sums {
    echoed: u64,
    streamed: u64,
    resets: u64,
    broken: u64,
    errors: u64,
}

struct Talk {
    sockets: Sockets,
    connections: [Option<Connection>; MOST],
    /// Room of each connection.
    rooms: Region,
    /// The port of the next connection of ours.
    next: u32,
    sums: Sums,
    /// A refusal that waits to be sent.
    refusal: Option<Packet>,
}

/// Byte `i` of what is said at the service.
fn byte(i: u64) -> u8 {
    (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8
}

impl Connection {
    /// Bytes that may be sent.
    fn credit(&self) -> u64 {
        u64::from(self.room.saturating_sub((self.sent as u32).wrapping_sub(self.taken)))
    }

    fn packet(&self, op: u16) -> Packet {
        // An echo has room again when it has sent, we when we have looked.
        let left = if self.ours { self.received } else { self.sent };
        Packet {
            host: self.host,
            guest: self.guest,
            op,
            flags: 0,
            buf_alloc: ROOM as u32,
            fwd_cnt: left as u32,
        }
    }
}

impl Talk {
    fn note(&mut self, what: crate::text::Text) {
        self.sums.errors += 1;
        if self.sums.errors <= COMPLAINTS {
            println!("# wrong: {what}");
        }
    }

    fn place(&self, packet: &Packet) -> Option<usize> {
        let same = |c: &Connection| c.host == packet.host && c.guest == packet.guest;
        self.connections.iter().position(|place| place.as_ref().is_some_and(same))
    }

    fn connect(&mut self) {
        let some = self.connections.iter().flatten().any(|c| c.ours);
        let Some(place) = self.connections.iter().position(Option::is_none).filter(|_| !some) else { return };
        if !self.sockets.has_room() {
            return;
        }
        let connection = Connection {
            host: SERVICE,
            guest: self.next,
            ours: true,
            open: false,
            received: 0,
            sent: 0,
            room: 0,
            taken: 0,
        };
        self.next += 1;
        self.sockets.send(&connection.packet(op::REQUEST), 0, |_| {});
        self.connections[place] = Some(connection);
    }

    /// Takes one packet; `false` if there is none, or if an answer has to go out first.
    fn hear(&mut self) -> bool {
        if !self.sockets.has_room() {
            return false;
        }
        if let Some(refusal) = self.refusal.take() {
            self.sockets.send(&refusal, 0, |_| {});
            return true;
        }
        let Some(heard) = self.sockets.receive(|packet, data| {
            // The data goes before the slot does.
            let mut bytes = [0; LARGEST as usize];
            let len = data.len() as usize;
            data.load(0, &mut bytes[..len]);
            (packet, bytes, len)
        }) else {
            return false;
        };
        match heard {
            Ok((packet, bytes, len)) => self.handle(&packet, &bytes[..len]),
            Err(what) => self.note(what),
        }
        true
    }

    fn refuse(&mut self, packet: &Packet) {
        if packet.op != op::RST {
            self.refusal = Some(Packet { op: op::RST, buf_alloc: 0, fwd_cnt: 0, flags: 0, ..*packet });
        }
    }

    fn handle(&mut self, packet: &Packet, data: &[u8]) {
        let Some(place) = self.place(packet) else {
            let free = self.connections.iter().position(Option::is_none);
            let (Some(place), op::REQUEST, LISTENS) = (free, packet.op, packet.guest) else {
                self.refuse(packet);
                return;
            };
            let connection = Connection {
                host: packet.host,
                guest: packet.guest,
                ours: false,
                open: true,
                received: 0,
                sent: 0,
                room: packet.buf_alloc,
                taken: packet.fwd_cnt,
            };
            self.sockets.send(&connection.packet(op::RESPONSE), 0, |_| {});
            self.connections[place] = Some(connection);
            return;
        };
        let Some(mut connection) = self.connections[place] else { return };
        (connection.room, connection.taken) = (packet.buf_alloc, packet.fwd_cnt);
        match packet.op {
            op::RESPONSE if connection.ours && !connection.open => connection.open = true,
            op::RW => self.take(place, &mut connection, data),
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => self.sockets.send(&connection.packet(op::CREDIT_UPDATE), 0, |_| {}),
            op::RST | op::SHUTDOWN => {
                self.sums.broken += u64::from(connection.ours);
                self.connections[place] = None;
                self.refuse(packet);
                return;
            }
            what => self.note(text!("operation {what} on a connection")),
        }
        self.connections[place] = Some(connection);
    }

    fn take(&mut self, place: usize, connection: &mut Connection, data: &[u8]) {
        let len = data.len() as u64;
        if connection.ours {
            let wrong = (connection.received..).zip(data).find(|(i, got)| byte(*i) != **got);
            if let Some((i, _)) = wrong {
                self.note(text!("byte {i} of connection {} came back changed", connection.guest));
            }
            connection.received += len;
            self.sums.streamed += len;
            if connection.received > connection.sent {
                self.note(text!("{} bytes came of {}", connection.received, connection.sent));
            }
            return;
        }
        if connection.received + len - connection.sent > ROOM {
            self.note(text!("more than there is room for, on connection {}", connection.host));
            return;
        }
        let room = self.rooms.part(place as u64 * ROOM, ROOM);
        for (i, byte) in (connection.received..).zip(data) {
            room.write8(i % ROOM, *byte);
        }
        connection.received += len;
    }

    /// Says what there is to say, as far as the other sides have room.
    fn speak(&mut self) {
        for place in 0..MOST {
            let Some(mut connection) = self.connections[place].filter(|c| c.open) else { continue };
            let waiting = if connection.ours {
                WINDOW - (connection.sent - connection.received)
            } else {
                connection.received - connection.sent
            };
            let len = waiting.min(connection.credit()).min(LARGEST);
            if len == 0 || !self.sockets.has_room() {
                continue;
            }
            let from = connection.sent;
            let room = self.rooms.part(place as u64 * ROOM, ROOM);
            connection.sent += len;
            let packet = connection.packet(op::RW);
            self.sockets.send(&packet, len, |data| {
                for i in 0..len {
                    let at = from + i;
                    data.write8(i, if connection.ours { byte(at) } else { room.read8(at % ROOM) });
                }
            });
            self.sums.echoed += if connection.ours { 0 } else { len };
            self.connections[place] = Some(connection);
        }
    }

    fn beat(&self) {
        let Sums { echoed, streamed, resets, broken, errors } = self.sums;
        println!("TALK echoed={echoed} streamed={streamed} resets={resets} broken={broken} errors={errors}");
    }
}

/// The test.
pub(super) fn talk(machine: &mut Machine) -> Outcome {
    let Some(device) = Device::find(&machine.bus, kind::VSOCK, 0) else {
        return Err(Stop::Skip(text!("no socket device")));
    };
    let sockets = Sockets::on(device.map_err(Stop::Fail)?, &mut machine.arena).map_err(Stop::Fail)?;
    let rooms = machine.arena.take(MOST as u64 * ROOM, 4096);
    let beat = machine.start.number("beat").unwrap_or(65536).max(1);
    let mut talk =
        Talk { sockets, connections: [None; MOST], rooms, next: FIRST, sums: Sums::default(), refusal: None };
    println!("# talking cid={}", talk.sockets.cid());
    let (mut next_beat, mut steps) = (0, 0u64);
    loop {
        match talk.sockets.event() {
            Some(TRANSPORT_RESET) => {
                talk.sums.resets += 1;
                talk.connections = [None; MOST];
                talk.refusal = None;
            }
            Some(what) => talk.note(text!("event {what}")),
            None => {}
        }
        talk.connect();
        while talk.hear() {}
        talk.speak();
        let done = talk.sums.echoed + talk.sums.streamed;
        if done >= next_beat {
            talk.beat();
            next_beat = done + beat;
        }
        steps += 1;
        if steps.is_multiple_of(256) && told_to_end() {
            break;
        }
    }
    talk.beat();
    let facts = text!("resets={} broken={} errors={}", talk.sums.resets, talk.sums.broken, talk.sums.errors);
    if talk.sums.errors == 0 { Ok(facts) } else { Err(Stop::Fail(facts)) }
}
