//! The service on one card: a station with one TCP port, by smoltcp.
//!
//! ```text
//!   frame ─► Frame ─┬─ a question for the station: answered ► outgoing
//!                   └─ TCP ─► Interface ◄─► Connection ─────► outgoing
//! ```
//!
//! IPv4 and IPv6 are alike from there on, and share all limits. One connection waits to be opened as long as there is room for it; a request for one more than [`MAX_CONNECTIONS`] is not heard, as where
//! a backlog is full, and comes again. Each is given up when its time is over, whatever its guest does.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time as wire_time;
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::frame::{ADDRESS, ADDRESS6, Frame};
use crate::http::{self, Request};
use crate::token::Tokens;
use crate::wire::Wire;
use crate::{Store, random};

/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 16;
/// Bytes that wait in each direction of a connection.
pub const BUFFER: usize = 8192;
/// Longest time for a connection to be opened.
pub const OPENING: Duration = Duration::from_secs(3);
/// Longest time for a request to come, and then for the guest to say nothing while an answer waits for it, or to end the connection.
pub const IDLE: Duration = Duration::from_secs(10);
/// Longest time for an answer to be taken.
pub const ANSWERING: Duration = Duration::from_secs(20);
/// The port.
pub const PORT: u16 = 80;
/// Most bytes of a packet to the guest, less where the card's MTU is less; none has less than IPv6 needs (RFC 8200 §5).
const MTU: u16 = 1500;
const LEAST_MTU: u16 = 1280;

/// How many requests are answered, and when.
pub trait Pace: Send + Sync {
    /// How long no request may be answered; `None` if one may be now.
    fn pause(&self, now: Instant) -> Option<Duration>;
    /// Counts an answer of so many bytes.
    fn count(&self, now: Instant, bytes: u64);
}

/// See the module.
pub struct Endpoint {
    store: Arc<Store>,
    pace: Arc<dyn Pace>,
    tokens: Tokens,
    /// What smoltcp's time is counted from.
    begin: Instant,
    station: Station,
}

/// What a driver's end makes an end of.
struct Station {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
}

/// A connection, or the one that waits to be opened.
struct Connection {
    socket: SocketHandle,
    phase: Phase,
    /// When it began to be in this phase.
    since: Instant,
    /// The request as far as it came.
    head: Vec<u8>,
}

#[derive(PartialEq)]
enum Phase {
    /// Nobody has asked for it.
    Waiting,
    /// It is being opened.
    Opening,
    /// The request is coming.
    Reading,
    /// The answer is going; so many bytes of it went.
    Answering(Vec<u8>, usize),
    /// There is nothing more to say.
    Closing,
    /// It was given up, and the guest is yet to be told.
    GivenUp,
}

impl Phase {
    /// How long it may last.
    fn limit(&self) -> Option<Duration> {
        match self {
            Phase::Waiting | Phase::GivenUp => None,
            Phase::Opening => Some(OPENING),
            Phase::Reading | Phase::Closing => Some(IDLE),
            Phase::Answering(..) => Some(ANSWERING),
        }
    }
}

impl Station {
    fn new(mtu: u16, now: wire_time::Instant) -> io::Result<Self> {
        let mut wire = Wire::new(usize::from(mtu));
        let mut config = Config::new(HardwareAddress::Ip);
        // Numbers of segments cannot be guessed from outside.
        config.random_seed = u64::from_ne_bytes(random::bytes()?);
        let mut interface = Interface::new(config, &mut wire, now);
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(ADDRESS.into(), 32));
            let _ = addresses.push(IpCidr::new(ADDRESS6.into(), 128));
        });
        Ok(Station { interface, wire, sockets: SocketSet::new(Vec::new()), connections: Vec::new() })
    }

    /// Has one connection wait to be opened, if there is room.
    fn listen(&mut self, now: Instant) {
        let waits = self.connections.iter().any(|c| c.phase == Phase::Waiting);
        if waits || self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_timeout(Some(IDLE.into()));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        // At both addresses: what is to another does not come this far.
        if socket.listen(PORT).is_ok() {
            let socket = self.sockets.add(socket);
            self.connections.push(Connection { socket, phase: Phase::Waiting, since: now, head: Vec::new() });
        }
    }

    /// Takes out the connections that have ended.
    fn sweep(&mut self) {
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let socket = sockets.get::<Socket<'_>>(connection.socket);
            let ended = match socket.state() {
                // The guest is told before.
                State::Closed => socket.remote_endpoint().is_none() || connection.phase != Phase::GivenUp,
                // The guest has closed it too; what is late is answered by a reset.
                State::TimeWait => true,
                _ => false,
            };
            if ended {
                sockets.remove(connection.socket);
            }
            !ended
        });
    }
}

impl Endpoint {
    /// The service on a card whose packets have `mtu` bytes at most.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn new(store: Arc<Store>, pace: Arc<dyn Pace>, mtu: Option<u16>) -> io::Result<Self> {
        let (begin, mtu) = (Instant::now(), mtu.map_or(MTU, |mtu| mtu.clamp(LEAST_MTU, MTU)));
        let station = Station::new(mtu, wire_time::Instant::ZERO)?;
        Ok(Endpoint { store, pace, tokens: Tokens::default(), begin, station })
    }

    /// Forgets connections, tokens and what waits for the guest: it has another driver.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.station.connections.clear();
        self.station.sockets = SocketSet::new(Vec::new());
        self.station.wire.clear();
    }

    fn ticks(&self, now: Instant) -> wire_time::Instant {
        let since = now.saturating_duration_since(self.begin).as_micros();
        wire_time::Instant::from_micros(i64::try_from(since).unwrap_or(i64::MAX))
    }

    /// Takes a frame of the guest's for which [`crate::is_for_service`] holds, without anything in front of it.
    pub fn take(&mut self, frame: &[u8], now: Instant) {
        match Frame::parse(frame) {
            Frame::Question(answer) => self.station.wire.send(answer),
            Frame::Tcp { packet, mac, source, opens } => {
                self.station.listen(now);
                let room = self.station.connections.iter().any(|c| c.phase == Phase::Waiting);
                if !opens || room {
                    self.station.wire.note(source, mac);
                    self.station.wire.incoming.extend_from_slice(packet);
                    self.turn(now);
                }
            }
            Frame::Other => {}
        }
    }

    /// Whether a frame waits for the guest.
    pub fn has_frame(&self) -> bool {
        !self.station.wire.outgoing.is_empty()
    }

    /// Takes a frame for the guest.
    pub fn next_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        let was_full = self.station.wire.is_full();
        let frame = self.station.wire.outgoing.pop_front();
        if was_full {
            self.turn(now);
        }
        frame
    }

    /// Does what is due, and tells how long nothing else will be unless a frame comes or goes; `None` if it never will.
    pub fn poll(&mut self, now: Instant) -> Option<Duration> {
        self.turn(now);
        let ticks = self.ticks(now);
        let station = &mut self.station;
        // While no frame can be sent there is nothing to do for smoltcp.
        let wire = match station.wire.is_full() {
            true => None,
            false => station.interface.poll_delay(ticks, &station.sockets).map(Duration::from),
        };
        let ends = station.connections.iter().filter_map(|connection| {
            Some((connection.since + connection.phase.limit()?).saturating_duration_since(now))
        });
        let waits = station.connections.iter().any(|c| c.phase == Phase::Reading && is_complete(&c.head));
        let pause = if waits { self.pace.pause(now) } else { None };
        ends.chain(wire).chain(pause).min()
    }

    /// Has smoltcp and the connections do what they can.
    fn turn(&mut self, now: Instant) {
        let ticks = self.ticks(now);
        for _ in 0..MAX_ROUNDS {
            let Station { interface, wire, sockets, .. } = &mut self.station;
            interface.poll(ticks, wire, sockets);
            let mut moved = false;
            for at in 0..self.station.connections.len() {
                moved |= self.serve(at, now);
            }
            if !moved {
                break;
            }
        }
        self.station.sweep();
    }

    /// Does what a connection can do, and tells whether that was anything.
    fn serve(&mut self, at: usize, now: Instant) -> bool {
        let Endpoint { store, pace, tokens, station, .. } = self;
        let connection = &mut station.connections[at];
        let socket = station.sockets.get_mut::<Socket<'_>>(connection.socket);
        let late = connection.phase.limit().is_some_and(|limit| now >= connection.since + limit);
        if late {
            socket.abort();
            connection.enter(Phase::GivenUp, now);
            return true;
        }
        match &mut connection.phase {
            Phase::Waiting if socket.state() == State::SynReceived => connection.enter(Phase::Opening, now),
            Phase::Waiting | Phase::Opening if socket.is_active() && socket.state() != State::SynReceived => {
                connection.enter(Phase::Reading, now);
            }
            // A reset while it was being opened has it wait again.
            Phase::Opening if socket.is_listening() => connection.enter(Phase::Waiting, now),
            Phase::Reading => {
                let room = http::MAX_HEAD - connection.head.len();
                let head = &mut connection.head;
                // What is more than a head stays where it is.
                let read = socket.recv(|bytes| {
                    let count = bytes.len().min(room);
                    head.extend_from_slice(&bytes[..count]);
                    (count, count)
                });
                let moved = read.is_ok_and(|count| count > 0);
                match Request::parse(head) {
                    Some(request) if pace.pause(now).is_none() => {
                        let answer = http::answer(request, store, tokens, now);
                        pace.count(now, answer.len() as u64);
                        connection.enter(Phase::Answering(answer, 0), now);
                        connection.head = Vec::new();
                    }
                    // The guest has closed it, and what it asked for is not known.
                    None if !socket.may_recv() => {
                        socket.close();
                        connection.enter(Phase::Closing, now);
                    }
                    _ => return moved,
                }
            }
            Phase::Answering(answer, sent) => {
                let Ok(count) = socket.send_slice(&answer[*sent..]) else {
                    socket.abort();
                    connection.enter(Phase::GivenUp, now);
                    return true;
                };
                *sent += count;
                if *sent == answer.len() {
                    socket.close();
                    connection.enter(Phase::Closing, now);
                } else {
                    return count > 0;
                }
            }
            Phase::Closing => {
                // So that what the guest still says does not hold up its end.
                return socket.recv(|bytes| (bytes.len(), bytes.len())).is_ok_and(|count| count > 0);
            }
            Phase::Waiting | Phase::Opening | Phase::GivenUp => return false,
        }
        true
    }
}

/// Most rounds of smoltcp and the connections for one frame; there is another for the next, or when a time is over.
const MAX_ROUNDS: usize = 4;

fn is_complete(head: &[u8]) -> bool {
    Request::parse(head).is_some()
}

impl Connection {
    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }
}

#[cfg(test)]
mod tests;
