//! All connections of one device, and the sockets of the host's that belong to them.
//!
//! ```text
//!   listener ── accept ──► Greeter ── CONNECT ──► Connection ◄── connect to <path>_<port> ◄── guest's REQUEST
//! ```
//!
//! Sockets are waited for in an epoll of its own, by edges: what is ready is remembered until it has been used up, and no system call
//! is spent on changing one's mind. Connections outlive pauses; they do not outlive their driver.
//!
//! Bounds: [`MAX_CONNECTIONS`], of which [`MAX_LARGE`] may keep [`LARGE_ROOM`] bytes of the guest's each and the others
//! [`SMALL_ROOM`]; [`MAX_GREETERS`] programs that have not said what they want, each for [`PATIENCE`]; [`MAX_REPLIES`] answers that
//! wait for the guest before no more of its packets are taken.

mod host;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use terminal::Listener;
use terminal::socket;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{Connection, Ports, Stage};
use super::packet::{HEADER, HOST_CID, Header, STREAM, malformed, op};
use crate::buffers::Gathered;

/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 1023;
/// Most of them that may keep [`LARGE_ROOM`] bytes.
pub const MAX_LARGE: usize = 64;
/// Bytes from the guest that a connection may keep while the host does not take them.
pub const LARGE_ROOM: u32 = 256 * 1024;
/// The same where there are many connections.
pub const SMALL_ROOM: u32 = 64 * 1024;
/// Most programs of the host's that have connected and not said to which port.
pub const MAX_GREETERS: usize = 64;
/// How long such a program, and a guest that is asked for a connection, may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a program may take nothing of what a guest that has left sent it.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(60);
/// Answers that wait for the guest when no more packets are taken from it.
pub const MAX_REPLIES: usize = 256;
/// First port given to a program of the host's.
pub const FIRST_PORT: u32 = 1 << 30;
/// How long host's programs wait after a restore for the guest to have heard that its connections are gone, if it does not say so.
pub const HEARING: Duration = Duration::from_secs(1);

/// How often the time is looked at while somebody has to hurry.
const TICK: Duration = Duration::from_secs(1);
/// Most events of sockets handled at a time.
const BATCH: usize = 64;

const LISTENER: u32 = 0;
const TIMER: u32 = 1;
/// First token of sockets.
const FIRST: u32 = 2;

/// A program of the host's that has not said what it wants.
#[derive(Debug)]
struct Greeter {
    stream: UnixStream,
    deadline: Instant,
}

/// Somebody who has to hurry.
#[derive(Clone, Copy, Debug)]
struct Hurry {
    deadline: Instant,
    /// How much had gone on to the host then.
    went: u32,
}

/// See the module.
pub(super) struct Muxer {
    id: String,
    cid: u64,
    listener: Arc<Listener>,
    /// Whether the listener is waited for.
    listening: bool,
    /// No connection is accepted before this moment.
    closed_until: Option<Instant>,
    epoll: Epoll,
    timer: TimerFd,
    ticking: bool,
    next_token: u32,
    next_port: u32,
    greeters: HashMap<u32, Greeter>,
    connections: HashMap<u32, Connection>,
    /// Connections that are asked for or drain.
    hurried: HashMap<u32, Hurry>,
    /// Tokens of the connections that the guest knows or will know.
    tokens: HashMap<Ports, u32>,
    /// Connections with [`LARGE_ROOM`].
    large: usize,
    replies: VecDeque<Header>,
    /// Connections that may have something for the guest, in turn.
    ready: VecDeque<u32>,
}

impl Muxer {
    /// None yet. Programs of the host's wait for [`HEARING`] if the guest has connections to forget.
    pub(super) fn new(
        id: &str,
        cid: u64,
        next_port: u32,
        listener: Arc<Listener>,
        forget: bool,
    ) -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, TimerFd::new().map_err(io::Error::from)?);
        let listen = EpollEvent::new(EventSet::empty(), u64::from(LISTENER));
        epoll.ctl(ControlOperation::Add, listener.socket().as_raw_fd(), listen)?;
        epoll.ctl(
            ControlOperation::Add,
            timer.as_raw_fd(),
            EpollEvent::new(EventSet::IN, u64::from(TIMER)),
        )?;
        Ok(Muxer {
            id: id.to_owned(),
            cid,
            listener,
            listening: false,
            closed_until: forget.then(|| Instant::now() + HEARING),
            epoll,
            timer,
            ticking: false,
            next_token: FIRST,
            next_port: next_port.max(FIRST_PORT),
            greeters: HashMap::new(),
            connections: HashMap::new(),
            hurried: HashMap::new(),
            tokens: HashMap::new(),
            large: 0,
            replies: VecDeque::new(),
            ready: VecDeque::new(),
        })
    }

    /// Readable when there is something to do ([`Muxer::host_events`]).
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// The port that the next program gets, if nobody has it.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Connections, and programs that have not said what they want.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.connections.len(), self.greeters.len())
    }

    /// The guest has heard that its connections are gone.
    pub(super) fn heard(&mut self) {
        self.closed_until = None;
        self.settle();
    }

    /// Whether no more packets are to be taken from the guest until it has taken some.
    pub(super) fn is_full(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Whether there may be packets for the guest.
    pub(super) fn has_news(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Asks the guest for a connection.
    fn ask(&mut self, token: u32, stream: UnixStream, guest: u32) {
        let Some(room) = self.room() else {
            log::debug!("{}: there are {MAX_CONNECTIONS} connections already", self.id);
            return;
        };
        let mut host = self.next_port;
        // There are fewer connections than ports.
        while self.tokens.contains_key(&Ports { host, guest }) {
            host = following(host);
        }
        self.next_port = following(host);
        let connection = Connection::asking(Ports { host, guest }, stream, room);
        let hurry = Hurry { deadline: Instant::now() + PATIENCE, went: 0 };
        self.hurried.insert(token, hurry);
        self.insert(token, connection);
    }

    /// The room for one more connection, if there can be one.
    fn room(&self) -> Option<u32> {
        let room = if self.large < MAX_LARGE { LARGE_ROOM } else { SMALL_ROOM };
        (self.connections.len() < MAX_CONNECTIONS).then_some(room)
    }

    fn insert(&mut self, token: u32, connection: Connection) {
        self.large += usize::from(connection.promised() == LARGE_ROOM);
        self.tokens.insert(connection.ports, token);
        self.connections.insert(token, connection);
        self.wake(token);
    }

    /// Has a connection say what it has to, in turn.
    fn wake(&mut self, token: u32) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.queued
            && connection.has_news()
        {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    /// Forgets a connection; `tell` if the guest, where it knows it, does not know that it is gone.
    fn end(&mut self, token: u32, tell: bool) {
        self.hurried.remove(&token);
        let Some(connection) = self.connections.remove(&token) else { return };
        self.large -= usize::from(connection.promised() == LARGE_ROOM);
        if connection.stage != Stage::Draining {
            self.tokens.remove(&connection.ports);
        }
        if tell && connection.is_known() {
            self.reset(connection.ports);
        }
    }

    /// Tells the guest that there is no such connection.
    fn reset(&mut self, ports: Ports) {
        self.replies.push_back(Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op: op::RST,
            ..Header::default()
        });
    }

    /// Takes a packet from the guest.
    pub(super) fn packet(&mut self, packet: &mut Gathered<'_>) {
        let Some(header) = Header::read(packet) else {
            malformed(&self.id, format_args!("a packet of {} bytes", packet.length()));
            return;
        };
        if (header.src_cid, header.dst_cid) != (self.cid, HOST_CID) {
            malformed(
                &self.id,
                format_args!("a packet from {} to {} was dropped", header.src_cid, header.dst_cid),
            );
            return;
        }
        if header.kind != STREAM {
            if header.op != op::RST {
                self.replies.push_back(header.refusal());
            }
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        match self.tokens.get(&ports).copied() {
            Some(token) => self.known(token, &header, packet),
            None if header.op == op::REQUEST => self.connect(ports, &header),
            None if header.op == op::RST => {}
            None => self.replies.push_back(header.refusal()),
        }
        self.settle();
    }

    /// A packet of a connection.
    fn known(&mut self, token: u32, header: &Header, packet: &mut Gathered<'_>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.note_room(header);
        let answer = match header.op {
            op::RW if packet.length() - HEADER < header.len as usize => {
                malformed(&self.id, format_args!("{} bytes of {} came", packet.length(), header.len));
                Err(super::connection::Broken)
            }
            op::RW => connection.take(packet, header.len),
            op::RESPONSE => connection.accept(),
            op::RST => return self.end(token, false),
            op::CREDIT_UPDATE if connection.stage == Stage::Open => Ok(()),
            op::CREDIT_REQUEST if connection.stage == Stage::Open => {
                connection.ask_credit();
                Ok(())
            }
            op::SHUTDOWN if connection.stage == Stage::Open => {
                connection.guest_shutdown(header.flags);
                Ok(())
            }
            // Also one more request: whoever sends it does not know this connection.
            _ => Err(super::connection::Broken),
        };
        if answer.is_err() {
            malformed(&self.id, format_args!("port {}: operation {} resets", header.src_port, header.op));
            return self.end(token, true);
        }
        if connection.guest_left() {
            // Its ports are free again for the guest once it hears so, whatever the host still takes.
            let (ports, drained, went) = (connection.ports, connection.is_drained(), connection.went());
            self.tokens.remove(&ports);
            self.reset(ports);
            if drained {
                return self.end(token, false);
            }
            self.hurried.insert(token, Hurry { deadline: Instant::now() + DRAIN_PATIENCE, went });
        } else if connection.stage == Stage::Open {
            self.hurried.remove(&token);
        }
        self.wake(token);
    }

    /// The guest wants a connection.
    fn connect(&mut self, ports: Ports, header: &Header) {
        let mut path = self.listener.path().as_os_str().to_owned();
        path.push(format!("_{}", ports.host));
        let connected = match self.room() {
            Some(room) => socket::connect(&PathBuf::from(path))
                .and_then(|stream| self.register(&stream).map(|token| (token, stream, room))),
            None => Err(io::Error::other("there are too many connections")),
        };
        match connected {
            Ok((token, stream, room)) => {
                let mut connection = Connection::accepted(ports, stream, room);
                connection.note_room(header);
                self.insert(token, connection);
            }
            Err(e) => {
                log::debug!("{}: port {} of the host: {e}", self.id, ports.host);
                self.replies.push_back(header.refusal());
            }
        }
    }

    /// Puts the next packet for the guest into its buffer, which has room for a header; tells how long it is, if there is one.
    pub(super) fn deliver(&mut self, buffer: &mut Gathered<'_>) -> Option<usize> {
        for _ in 0..=self.ready.len() {
            if let Some(reply) = self.replies.pop_front() {
                return Some(buffer.write(0, &reply.bytes()));
            }
            let Some(token) = self.ready.pop_front() else { break };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.queued = false;
            match connection.next(self.cid, buffer) {
                Ok(Some(header)) => {
                    self.wake(token);
                    return Some(buffer.write(0, &header.bytes()) + header.len as usize);
                }
                Ok(None) => self.wake(token),
                Err(_) => self.end(token, true),
            }
        }
        None
    }
}

/// The port after this one, within those given to programs of the host's.
fn following(port: u32) -> u32 {
    // The last one means "any" (VMADDR_PORT_ANY).
    if port < u32::MAX - 1 { port + 1 } else { FIRST_PORT }
}
