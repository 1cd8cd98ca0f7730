//! Sockets under load, by `probe.op`; the host connects to any port and does its part:
//!
//! * `accept`: connections are taken, and let go when the host does;
//! * `sink`: what comes is thrown away;
//! * `source`: as much is sent as the host has room for.
//!
//! The time begins with the first connection. The last two count in units of `probe.size` bytes (65536).

use super::{begin, end, millis};
use crate::clock::ticks;
use crate::tests::Machine;
use crate::verdict::{Outcome, Stop};
use crate::virtio::vsock::{LARGEST, Packet, Sockets, op};
use crate::virtio::{Device, kind};

/// Bytes that a connection has room for, as Linux has.
const ROOM: u32 = 256 << 10;
/// Milliseconds that the host may take to connect.
const PATIENCE: u64 = 5000;

/// The connection that bytes go over.
#[derive(Debug, Clone, Copy)]
struct Connection {
    host: u32,
    guest: u32,
    received: u32,
    /// What was received when the host was last told.
    told: u32,
    sent: u32,
    /// What the host says of its room.
    room: u32,
    taken: u32,
}

impl Connection {
    fn packet(&mut self, op: u16) -> Packet {
        self.told = self.received;
        Packet { host: self.host, guest: self.guest, op, flags: 0, buf_alloc: ROOM, fwd_cnt: self.received }
    }

    fn credit(&self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.taken))
    }
}

/// The last connection, and what was counted.
struct Load {
    sockets: Sockets,
    connection: Option<Connection>,
    connections: u64,
    bytes: u64,
}

impl Load {
    /// Takes one packet; `false` if there is none, or no room for an answer.
    fn hear(&mut self) -> Result<bool, Stop> {
        if !self.sockets.has_room() {
            return Ok(false);
        }
        let Some(heard) = self.sockets.receive(|packet, data| (packet, data.len())) else { return Ok(false) };
        let (packet, len) = heard.map_err(Stop::Fail)?;
        let known = self.connection.as_mut().filter(|c| c.host == packet.host && c.guest == packet.guest);
        let answer = match (packet.op, known) {
            (op::REQUEST, _) => {
                let mut connection = Connection {
                    host: packet.host,
                    guest: packet.guest,
                    received: 0,
                    told: 0,
                    sent: 0,
                    room: packet.buf_alloc,
                    taken: packet.fwd_cnt,
                };
                let answer = connection.packet(op::RESPONSE);
                self.connection = Some(connection);
                self.connections += 1;
                Some(answer)
            }
            (op::SHUTDOWN, _) => Some(Packet { op: op::RST, flags: 0, buf_alloc: 0, fwd_cnt: 0, ..packet }),
            (op::RST, _) | (_, None) => None,
            (what, Some(connection)) => {
                (connection.room, connection.taken) = (packet.buf_alloc, packet.fwd_cnt);
                if what == op::RW {
                    connection.received = connection.received.wrapping_add(len as u32);
                    self.bytes += len;
                }
                let much = connection.received.wrapping_sub(connection.told) > ROOM / 2;
                (much || what == op::CREDIT_REQUEST).then(|| connection.packet(op::CREDIT_UPDATE))
            }
        };
        if let Some(answer) = answer {
            self.sockets.send(&answer, 0, |_| {});
        }
        Ok(true)
    }

    /// Sends as much as goes.
    fn speak(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        while self.sockets.has_room() {
            let len = connection.credit().min(LARGEST as u32);
            if len == 0 {
                return;
            }
            let packet = connection.packet(op::RW);
            // What it holds is of no interest.
            self.sockets.send(&packet, u64::from(len), |_| {});
            connection.sent = connection.sent.wrapping_add(len);
            self.bytes += u64::from(len);
        }
    }
}

/// See the module.
pub(in crate::tests) fn sockets(machine: &mut Machine) -> Outcome {
    if !machine.clock.is_known() {
        skip!("the TSC's rate is not known");
    }
    let size = machine.start.number("size").unwrap_or(64 << 10).max(1);
    let (clock, limit) = (machine.clock, millis(machine));
    let op = machine.start.option("op").unwrap_or("accept");
    let Some(device) = Device::find(&machine.bus, kind::VSOCK, 0) else { skip!("there is no socket device") };
    let sockets = Sockets::on(device.map_err(Stop::Fail)?, &mut machine.arena).map_err(Stop::Fail)?;
    let mut load = Load { sockets, connection: None, connections: 0, bytes: 0 };
    begin(clock);
    let waited = ticks();
    while load.connections == 0 {
        load.hear()?;
        check!(ticks() - waited < PATIENCE * clock.khz, "nobody connects");
    }
    let start = ticks();
    while ticks() - start < limit * clock.khz {
        while load.hear()? {}
        if op == "source" {
            load.speak();
        }
    }
    let micros = clock.micros_since(start).max(1);
    let Load { sockets, connections, bytes, .. } = load;
    // Resets it.
    drop(sockets);
    end(clock);
    let count = if op == "accept" { connections } else { bytes / size };
    check!(count > 0, "nothing came");
    Ok(text!("op={op} requests={count} ops/s={}", count * 1_000_000 / micros))
}
