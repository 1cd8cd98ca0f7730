//! Moves packets between the queues and the [`Muxer`], on the device's own thread.
//!
//! Each round is bounded, interrupts once a queue, and takes packets from the guest only while answers to it find room: a guest that
//! gives no buffers is not listened to.

use std::io;
use std::os::fd::AsRawFd;

use device::{LiveQueue, Task, Watch};
use log::warn;
use virtio_queue::QueueOwnedT;
use vmm_sys_util::epoll::EventSet;

use super::muxer::Muxer;
use super::packet::{HEADER, TRANSPORT_RESET, malformed};
use crate::buffers::{Direction, Pieces, drain_event, kick_again, next_chain};

/// Most packets taken from the guest, and given to it, before sockets are looked at again.
pub const BUDGET: usize = 64;

/// The queues' numbers (§5.10.2).
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;
/// How many there are.
pub(super) const QUEUES: usize = 3;

/// Token of the host's sockets; the queues' are their numbers.
const HOST: u32 = QUEUES as u32;

/// Serves the queues. It has those for packets; the driver may do without events.
pub(super) struct Server {
    id: String,
    pub(super) rx: LiveQueue,
    pub(super) tx: LiveQueue,
    pub(super) event: Option<LiveQueue>,
    pub(super) muxer: Muxer,
    /// The guest is to be told that its connections are gone, or was told and has not said that it heard.
    pub(super) forget: Forget,
    pieces: Pieces,
    /// Packets of the guest's wait until it takes some.
    held: bool,
}

/// What the guest knows of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forget {
    /// Nothing, and it is to be told.
    Due,
    /// It was told.
    Told,
    /// There was none, or it has heard of it.
    Done,
}

impl Server {
    pub(super) fn new(
        id: &str,
        rx: LiveQueue,
        tx: LiveQueue,
        event: Option<LiveQueue>,
        muxer: Muxer,
        forget: Forget,
    ) -> Self {
        Server { id: id.to_owned(), rx, tx, event, muxer, forget, pieces: Pieces::new(), held: false }
    }

    /// One round.
    fn serve(&mut self) {
        self.tell();
        if self.take() {
            kick_again(&self.tx.kick);
        }
        if self.give() {
            kick_again(&self.rx.kick);
        }
        if self.held && !self.muxer.is_full() {
            kick_again(&self.tx.kick);
        }
    }

    /// Tells the guest that its connections are gone, as soon as it has a buffer for that.
    fn tell(&mut self) {
        let Some(queue) = self.event.as_mut().filter(|_| self.forget == Forget::Due) else { return };
        let map = queue.ram.map();
        for _ in 0..BUDGET {
            let Some(chain) = next_chain(queue, &map) else { return };
            let head = chain.head_index();
            let event = TRANSPORT_RESET.to_le_bytes();
            let written = match self.pieces.gather(&map, chain, Direction::ToDriver) {
                Ok(mut buffer) if buffer.length() >= event.len() => buffer.write(0, &event),
                Ok(short) => {
                    malformed(&self.id, format_args!("{} bytes for an event", short.length()));
                    0
                }
                Err(e) => {
                    malformed(&self.id, format_args!("a buffer for events: {e}"));
                    0
                }
            };
            queue.push(&map, head, written as u32); // 4 at most
            queue.signal(&map);
            if written > 0 {
                self.forget = Forget::Told;
                return;
            }
        }
        kick_again(&queue.kick);
    }

    /// Takes packets from the guest; tells whether there may be more.
    fn take(&mut self) -> bool {
        let Server { id, tx: queue, muxer, pieces, .. } = self;
        let map = queue.ram.map();
        let mut used = 0;
        queue.quiet(&*map);
        let more = loop {
            self.held = muxer.is_full();
            if self.held {
                break false;
            }
            if used == BUDGET {
                break true;
            }
            let Some(chain) = next_chain(queue, &map) else { break false };
            let head = chain.head_index();
            match pieces.gather(&map, chain, Direction::ToDevice) {
                Ok(mut packet) => muxer.packet(&mut packet),
                Err(e) => malformed(id, format_args!("a packet: {e}")),
            }
            queue.push(&map, head, 0);
            used += 1;
        };
        if used > 0 {
            queue.signal(&map);
        }
        more
    }

    /// Gives packets to the guest; tells whether there may be more.
    fn give(&mut self) -> bool {
        let Server { id, rx: queue, muxer, pieces, .. } = self;
        if !muxer.has_news() {
            return false;
        }
        let map = queue.ram.map();
        let mut used = 0;
        // Kicks are wanted only when buffers have run out.
        queue.quiet(&*map);
        let more = loop {
            if used == BUDGET {
                break muxer.has_news();
            }
            if !muxer.has_news() {
                break false;
            }
            let Some(chain) = next_chain(queue, &map) else { break false };
            let head = chain.head_index();
            let written = match pieces.gather(&map, chain, Direction::ToDriver) {
                Ok(mut buffer) if buffer.length() >= HEADER => match muxer.deliver(&mut buffer) {
                    Some(length) => length,
                    None => {
                        queue.queue.go_to_previous_position();
                        break false;
                    }
                },
                Ok(short) => {
                    malformed(id, format_args!("a buffer of {} bytes for packets", short.length()));
                    0
                }
                Err(e) => {
                    malformed(id, format_args!("a buffer for packets: {e}"));
                    0
                }
            };
            // At most `HEADER + MAX_DATA`.
            queue.push(&map, head, written as u32);
            used += 1;
        };
        if used > 0 {
            queue.signal(&map);
        }
        more
    }
}

impl Task for Server {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.rx.kick.as_raw_fd(), RX as u32, EventSet::IN)?;
        watch.add(self.tx.kick.as_raw_fd(), TX as u32, EventSet::IN)?;
        if let Some(event) = &self.event {
            watch.add(event.kick.as_raw_fd(), EVENT as u32, EventSet::IN)?;
        }
        watch.add(self.muxer.as_raw_fd(), HOST, EventSet::IN)?;
        self.muxer.resume();
        self.serve();
        Ok(())
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &mut Watch<'_>) {
        match (token, &self.event) {
            (HOST, _) => self.muxer.host_events(),
            (token, Some(event)) if token == EVENT as u32 => {
                drain_event(&event.kick);
                // Drivers give a buffer back when they are done with what it said.
                if self.forget == Forget::Told {
                    self.forget = Forget::Done;
                    self.muxer.heard();
                }
            }
            (token, _) if token == RX as u32 => drain_event(&self.rx.kick),
            (token, _) if token == TX as u32 => drain_event(&self.tx.kick),
            (token, _) => warn!("{}: an event {token} that nobody waits for", self.id),
        }
        self.serve();
    }
}
