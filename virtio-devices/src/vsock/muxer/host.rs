//! The host's side: programs that come, what happens to sockets, and the time.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{
    BATCH, DRAIN_PATIENCE, FIRST, Greeter, HEARING, Hurry, LISTENER, MAX_GREETERS, Muxer, PATIENCE, TICK,
    TIMER,
};
use crate::vsock::connection::{Connection, Stage};
use crate::vsock::greeting::{self, Said};
use crate::vsock::packet::malformed;

impl Muxer {
    /// The machine goes on: nobody could hurry while it stood still.
    pub(in crate::vsock) fn resume(&mut self) {
        let now = Instant::now();
        if let Some(until) = &mut self.closed_until {
            *until = now + HEARING;
        }
        self.greeters.values_mut().for_each(|greeter| greeter.deadline = now + PATIENCE);
        for (token, hurry) in &mut self.hurried {
            let stage = self.connections.get(token).map(|connection| connection.stage);
            hurry.deadline = now + if stage == Some(Stage::Draining) { DRAIN_PATIENCE } else { PATIENCE };
        }
        self.settle();
    }

    /// Does what there is to do at the host's side; what is left makes the descriptor readable again.
    pub(in crate::vsock) fn host_events(&mut self) {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(e) => {
                if e.kind() != io::ErrorKind::Interrupted {
                    log::warn!("{}: {e}", self.id);
                }
                0
            }
        };
        for event in &events[..count] {
            match event.data() as u32 {
                LISTENER => self.accept(),
                TIMER => self.tick(),
                token => self.socket_event(token, event.event_set()),
            }
        }
        self.settle();
    }

    fn accept(&mut self) {
        for _ in 0..BATCH {
            if self.greeters.len() >= MAX_GREETERS {
                return;
            }
            let accepted = match self.listener.socket().accept() {
                Ok((stream, _)) => stream.set_nonblocking(true).map(|()| stream),
                Err(e) => Err(e),
            };
            let registered = accepted.and_then(|stream| self.register(&stream).map(|token| (token, stream)));
            match registered {
                Ok((token, stream)) => {
                    self.greeters.insert(token, Greeter { stream, deadline: Instant::now() + PATIENCE });
                    self.greet(token, false);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    // Out of descriptors, perhaps. Whoever waits is still there a moment later.
                    malformed(&self.id, format_args!("cannot accept a connection: {e}"));
                    self.closed_until = Some(Instant::now() + TICK);
                    return;
                }
            }
        }
    }

    /// Waits for everything that can happen to a socket, under a new token.
    pub(super) fn register(&mut self, stream: &UnixStream) -> io::Result<u32> {
        let mut token = self.next_token;
        while token < FIRST || self.greeters.contains_key(&token) || self.connections.contains_key(&token) {
            token = token.wrapping_add(1);
        }
        let all = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(all, u64::from(token)))?;
        self.next_token = token.wrapping_add(1);
        Ok(token)
    }

    /// Listens to a program that has not said what it wants; `last` if it will say no more.
    fn greet(&mut self, token: u32, last: bool) {
        let Some(greeter) = self.greeters.get_mut(&token) else { return };
        let said = greeting::listen(&mut greeter.stream);
        if said == Said::Little && !last {
            return;
        }
        let Some(Greeter { stream, .. }) = self.greeters.remove(&token) else { return };
        match said {
            Said::Port(port) => self.ask(token, stream, port),
            _ => log::debug!("{}: a program did not say CONNECT and a port", self.id),
        }
    }

    fn socket_event(&mut self, token: u32, events: EventSet) {
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let ended = gone || events.contains(EventSet::READ_HANG_UP);
        if self.greeters.contains_key(&token) {
            self.greet(token, ended);
        }
        // One that was forgotten earlier in this batch is no longer there.
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let readable = ended || events.contains(EventSet::IN);
        connection.host_event(readable, events.contains(EventSet::OUT), gone);
        match connection.stage {
            // The program has lost its patience.
            Stage::Asking if gone => self.end(token, true),
            Stage::Draining if connection.is_drained() => self.end(token, false),
            _ => self.wake(token),
        }
    }

    /// Ends what took too long.
    fn tick(&mut self) {
        if let Err(e) = self.timer.wait() {
            log::debug!("{}: timer: {e}", self.id);
        }
        let now = Instant::now();
        self.closed_until = self.closed_until.filter(|until| *until > now);
        self.greeters.retain(|_, greeter| greeter.deadline > now);
        let mut over = Vec::new();
        for (token, hurry) in &mut self.hurried {
            let went = self.connections.get(token).map_or(hurry.went, Connection::went);
            if went != hurry.went {
                *hurry = Hurry { deadline: now + DRAIN_PATIENCE, went };
            } else if hurry.deadline <= now {
                over.push(*token);
            }
        }
        over.into_iter().for_each(|token| self.end(token, true));
    }

    /// Waits for new programs if there is room for them, and for the time if somebody has to hurry.
    pub(super) fn settle(&mut self) {
        let listen = self.closed_until.is_none() && self.greeters.len() < MAX_GREETERS;
        if listen != self.listening {
            let events = if listen { EventSet::IN } else { EventSet::empty() };
            let event = EpollEvent::new(events, u64::from(LISTENER));
            let fd = self.listener.socket().as_raw_fd();
            match self.epoll.ctl(ControlOperation::Modify, fd, event) {
                Ok(()) => self.listening = listen,
                Err(e) => log::warn!("{}: cannot wait for connections: {e}", self.id),
            }
        }
        let tick = self.closed_until.is_some() || !self.greeters.is_empty() || !self.hurried.is_empty();
        if tick != self.ticking {
            let set = if tick { self.timer.reset(TICK, Some(TICK)) } else { self.timer.clear() };
            match set {
                Ok(()) => self.ticking = tick,
                Err(e) => log::warn!("{}: cannot set a timer: {e}", self.id),
            }
        }
    }
}
