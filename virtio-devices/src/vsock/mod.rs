//! virtio-vsock (virtio 1.3 §5.10): stream sockets between guest and host, where the host's ends are UNIX sockets.
//!
//! ```text
//!   host connects:   program ── <path> ─── "CONNECT 22\n" ──► guest's port 22;  "OK 1073741824\n" when it accepts
//!   guest connects:  guest ── port 80 of the host ──► program that listens on <path>_80
//! ```
//!
//! One thread serves all three queues. While no driver is active programs of the host's wait in the kernel. The kernel's vsock is
//! not used, and context IDs of several machines may be the same.

mod calls;
mod connection;
mod greeting;
mod muxer;
mod packet;
mod server;
mod spec;
mod state;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use device::state::{self as saved, Node, StateError};
use device::virtio::feature as ring;
use device::worker::Worker;
use device::{Attached, Counters, DeviceError, LiveQueue, Virtio, VirtioGrant, VirtioKind};
use log::warn;
use sandbox::Set;
use terminal::Listener;
use virtio_queue::QueueState;

use muxer::Muxer;
use server::{EVENT, Forget, QUEUES, RX, Server, TX};
use state::Driver;

pub use self::greeting::MAX_LINE;
pub use self::muxer::{
    DRAIN_PATIENCE, FIRST_PORT, HEARING, LARGE_ROOM, MAX_CONNECTIONS, MAX_GREETERS, MAX_LARGE, MAX_REPLIES,
    PATIENCE, SMALL_ROOM,
};
pub use self::packet::{HEADER, MAX_DATA};
pub use self::server::BUDGET;
pub use self::spec::VsockSpec;

/// Size of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Bytes of the configuration space: the guest's context ID (§5.10.4).
const CONFIG_LENGTH: usize = 8;

/// A socket device.
pub struct Vsock {
    id: String,
    cid: u32,
    listener: Arc<Listener>,
    grant: OnceLock<VirtioGrant>,
    live: Mutex<Live>,
}

/// What a driver has set up. The lock is held by those who start and stop; no thread of the device takes it.
#[derive(Default)]
struct Live {
    /// Queues that were started and are not served, because the others are missing.
    waiting: [Option<LiveQueue>; QUEUES],
    /// Connections, while they are not served.
    idle: Option<(Muxer, Forget)>,
    running: Option<Attached<Server>>,
    /// The thread, while there are queues.
    worker: Option<Arc<Worker>>,
    /// Until the device is activated or reset.
    loaded: Option<Driver>,
}

impl Live {
    /// Takes queues and connections back from the thread.
    fn stop(&mut self) {
        let Some(server) = self.running.take().and_then(Attached::stop) else { return };
        let Server { rx, tx, event, muxer, forget, .. } = server;
        self.waiting = [Some(rx), Some(tx), event];
        self.idle = Some((muxer, forget));
    }

    /// Gives them to the thread if all that is needed is there.
    fn start(&mut self, id: &str) -> io::Result<()> {
        let Some(worker) = &self.worker else { return Ok(()) };
        let taken = (self.waiting[RX].take(), self.waiting[TX].take(), self.idle.take());
        let (Some(rx), Some(tx), Some((muxer, forget))) = taken else {
            (self.waiting[RX], self.waiting[TX], self.idle) = taken;
            return Ok(());
        };
        let server = Server::new(id, rx, tx, self.waiting[EVENT].take(), muxer, forget);
        self.running = Some(worker.attach(server)?);
        Ok(())
    }
}

impl Vsock {
    fn new(id: &str, cid: u32, listener: Arc<Listener>) -> Self {
        Vsock { id: id.to_owned(), cid, listener, grant: OnceLock::new(), live: Mutex::default() }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, what: &str) -> DeviceError {
        DeviceError { what: format!("\"{}\" {what}", self.id), source: None }
    }

    /// Asks the connections something, wherever they are; `None` if there is no driver.
    fn ask<R: Send + 'static>(&self, question: fn(&Muxer) -> R) -> Option<R> {
        let live = self.live();
        match &live.running {
            Some(server) => server.with(move |server| question(&server.muxer)).ok(),
            None => live.idle.as_ref().map(|(muxer, _)| question(muxer)),
        }
    }

    fn next_port(&self) -> Option<u32> {
        self.ask(Muxer::next_port)
    }
}

impl Virtio for Vsock {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Vsock
    }

    fn features(&self) -> u64 {
        // Each chain is given back before the next one is taken.
        ring::VERSION_1 | ring::IN_ORDER
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn config_length(&self) -> usize {
        CONFIG_LENGTH
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = u64::from(self.cid).to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    fn calls(&self) -> Vec<Set> {
        calls::CALLS.own.to_vec()
    }

    fn connect(&mut self, grant: VirtioGrant) {
        if self.grant.set(grant).is_err() {
            warn!("{}: connected twice", self.id);
        }
    }

    fn activate(&self, _features: u64) -> Result<(), DeviceError> {
        let mut live = self.live();
        let loaded = live.loaded.take();
        let port = loaded.map_or(FIRST_PORT, |driver| driver.next_port);
        let muxer = Muxer::new(&self.id, u64::from(self.cid), port, self.listener.clone(), loaded.is_some());
        let muxer = muxer.map_err(|e| DeviceError::new(format!("cannot set up \"{}\"", self.id), e))?;
        live.idle = Some((muxer, if loaded.is_some() { Forget::Due } else { Forget::Done }));
        Ok(())
    }

    fn start_queue(&self, index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        let grant = self.grant.get().ok_or_else(|| self.failed("is not connected"))?;
        let mut live = self.live();
        live.stop();
        let place = live.waiting.get_mut(index).ok_or_else(|| self.failed("has no such queue"))?;
        *place = Some(queue);
        if live.worker.is_none() {
            live.worker = Some(grant.workers.own(&self.id, &[])?);
        }
        live.start(&self.id)
            .map_err(|e| DeviceError::new(format!("cannot start the queues of \"{}\"", self.id), e))
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let mut live = self.live();
        live.stop();
        let queue = live.waiting.get_mut(index)?.take()?;
        if live.waiting.iter().all(Option::is_none) {
            live.worker = None;
        } else if let Err(e) = live.start(&self.id) {
            warn!("{}: cannot go on without queue {index}: {e}", self.id);
        }
        Some(queue.state())
    }

    fn reset(&self) {
        let mut live = self.live();
        (live.idle, live.loaded) = (None, None);
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        let failed = |e| DeviceError::new(format!("cannot save \"{}\"", self.id), e);
        self.save_state().map(Some).map_err(failed)
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        self.load_state(saved::some(node)?)
    }

    fn counters(&self) -> Option<Counters> {
        let (connections, greeters) = self.ask(Muxer::count).unwrap_or_default();
        Some(Counters::from([("connections", connections as u64), ("greeters", greeters as u64)]))
    }
}

#[cfg(test)]
mod tests;
