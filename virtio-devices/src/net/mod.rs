//! virtio-net on a tap (virtio 1.3 §5.1).
//!
//! Queue 2n receives and queue 2n+1 transmits for pair n; the control queue comes after the last pair that the driver
//! may use: a driver that did not accept MQ knows one pair and looks for it at index 2. Each pair has a thread, which
//! moves frames between the tap and guest memory without copying them; commands are few and served by the thread that
//! quiet devices share.
//!
//! ```text
//!          guest memory             thread of pair n                kernel
//!   rx queue  ◄── buffers ───────── Rx ◄── readv ─────────────┐
//!   tx queue  ─── frames ─────────► Tx ─── writev ──────────► tap queue n
//!   ctrl queue ── pairs, offloads ► Ctrl ─ attach, detach, offloads ─┘
//! ```
//!
//! Where the device is served to a front end in another process, the control queue is the front end's, and which pairs are in use is
//! told by [`Virtio::use_queue`].
//!
//! The link is always up. Nothing is filtered: the driver sees what the tap carries. Where the guest finds metadata over the card, what it
//! sends to that service goes there and not to the tap ([`service`]).

mod calls;
mod ctrl;
mod held;
mod pair;
mod remote;
mod rx;
mod service;
mod spec;
mod state;
mod stats;
mod tx;
pub mod user;
mod window;
mod wire;

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use ::spec::RateLimit;
use device::state::{self as saved, Node, StateError};
use device::virtio::feature as ring;
use device::worker::Worker;
use device::{Attached, Counters, DeviceError, LiveQueue, Task, Virtio, VirtioGrant, VirtioKind};
use log::{debug, warn};
use net_util::MacAddr;
use sandbox::Set;
use virtio_queue::QueueState;

use ctrl::Ctrl;
use pair::Pairs;
use rx::Rx;
use service::Service;
use state::Settings;
use stats::Stats;
use tx::Tx;
use wire::{CONFIG_LENGTH, STATUS_ANNOUNCE, STATUS_LINK_UP, feature};

use crate::rate::{Limiter, Throttle};

pub use self::rx::BUDGET as RX_BUDGET;
pub use self::spec::{Mac, NetSpec, TapFds, VhostMode};
pub use self::tx::BUDGET as TX_BUDGET;
pub use self::wire::{MAX_COMMAND, MAX_FRAME};

/// What the threads of one device share.
#[derive(Debug)]
struct Shared {
    id: String,
    pairs: Arc<Pairs>,
    stats: Stats,
    /// Accepted by the driver.
    features: AtomicU64,
    /// The link's status, as in the configuration space.
    status: AtomicU16,
    /// What the tap leaves undone, as the bits of features.
    offloads: AtomicU64,
    /// Limits of what is received, and of what is transmitted, by all pairs together.
    limiters: [Option<Arc<Limiter>>; 2],
    /// What the card answers itself.
    service: Option<Service>,
}

/// What a device is made of.
#[derive(Debug)]
struct Parts {
    id: String,
    pairs: Arc<Pairs>,
    mac: Option<MacAddr>,
    mtu: Option<u16>,
    queue_size: u16,
    /// Features beyond those that are always offered.
    offloads: u64,
    /// Those of each direction.
    limits: RateLimit,
    commands: Commands,
    service: Option<Service>,
}

/// Who carries out the commands of the control queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commands {
    /// The device.
    Ours,
    /// A front end in another process, which keeps the queue to itself.
    FrontEnds,
}

/// A network device.
pub struct Net {
    shared: Arc<Shared>,
    mac: Option<MacAddr>,
    mtu: Option<u16>,
    queue_size: u16,
    offered: u64,
    commands: Commands,
    grant: OnceLock<VirtioGrant>,
    live: Mutex<Live>,
    /// Until the device is activated or reset.
    loaded: Mutex<Option<Settings>>,
}

/// The queues that are started. The lock is held by those who start and stop queues; no thread of the device takes it.
#[derive(Default)]
struct Live {
    queues: Vec<Option<Started>>,
    threads: Vec<Weak<Worker>>,
}

/// A started queue.
enum Started {
    Rx(Attached<Rx>),
    Tx(Attached<Tx>),
    Ctrl(Attached<Ctrl>),
    /// One that the driver has no business to use: kept, not served.
    Idle(Box<LiveQueue>),
}

impl Shared {
    /// The way to keep the limit of a direction: 0 for receiving, 1 for transmitting.
    fn throttle(&self, direction: usize) -> Result<Option<Throttle>, DeviceError> {
        self.limiters[direction].clone().map(Throttle::new).transpose()
    }

    /// Tells the tap what the driver takes, in the bits of features. The first queue is never detached, and the setting is the whole
    /// interface's.
    fn set_offloads(&self, offloads: u64) -> Result<(), net_util::Error> {
        self.pairs.list[0].rx.set_offloads(wire::offloads(offloads))?;
        self.offloads.store(offloads, Ordering::Release);
        Ok(())
    }
}

/// What a driver needs to have accepted so that it can be asked to announce itself.
const ANNOUNCES: u64 = feature::GUEST_ANNOUNCE | feature::CTRL_VQ;

impl Net {
    fn new(parts: Parts) -> Self {
        let Parts { id, pairs, mac, mtu, queue_size, offloads, limits, commands, service } = parts;
        let mut offered = ring::VERSION_1 | ring::RING_EVENT_IDX | ring::RING_INDIRECT_DESC | offloads;
        offered |= feature::MQ | feature::CTRL_VQ | feature::STATUS | feature::GUEST_ANNOUNCE;
        offered |= feature::MRG_RXBUF;
        if mac.is_some() {
            offered |= feature::MAC;
        }
        if mtu.is_some() {
            offered |= feature::MTU;
        }
        if commands == Commands::FrontEnds {
            // Of such a change we would not hear.
            offered &= !feature::CTRL_GUEST_OFFLOADS;
        }
        let shared = Shared {
            id,
            pairs,
            stats: Stats::default(),
            features: AtomicU64::new(0),
            status: AtomicU16::new(STATUS_LINK_UP),
            offloads: AtomicU64::new(0),
            limiters: [Limiter::new(&limits), Limiter::new(&limits)],
            service,
        };
        Net {
            shared: Arc::new(shared),
            mac,
            mtu,
            queue_size,
            offered,
            commands,
            grant: OnceLock::new(),
            live: Mutex::default(),
            loaded: Mutex::default(),
        }
    }

    fn pairs(&self) -> usize {
        self.shared.pairs.list.len()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loaded(&self) -> MutexGuard<'_, Option<Settings>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many queues carry frames; behind them a driver looks for the control queue (§5.1.2).
    fn data_queues(&self) -> usize {
        if self.shared.features.load(Ordering::Acquire) & feature::MQ != 0 { 2 * self.pairs() } else { 2 }
    }

    /// Asks the driver to tell the network where it is now, after a move to another host (§5.1.6.5.4). Does nothing for a
    /// driver that cannot.
    pub fn announce(&self) {
        if self.shared.features.load(Ordering::Acquire) & ANNOUNCES == ANNOUNCES
            && let Some(grant) = self.grant.get()
        {
            self.shared.status.fetch_or(STATUS_ANNOUNCE, Ordering::AcqRel);
            grant.link.config_changed();
        }
    }

    /// The thread of a pair, which ends with the last queue on it.
    fn thread(&self, live: &mut Live, pair: usize, grant: &VirtioGrant) -> Result<Arc<Worker>, DeviceError> {
        if live.threads.len() <= pair {
            live.threads.resize(pair + 1, Weak::new());
        }
        if let Some(worker) = live.threads[pair].upgrade() {
            return Ok(worker);
        }
        let worker = grant.workers.own(&format!("{}_q{pair}", self.shared.id), &[])?;
        live.threads[pair] = Arc::downgrade(&worker);
        Ok(worker)
    }

    fn attach<T: Task>(&self, worker: &Arc<Worker>, task: T) -> Result<Attached<T>, DeviceError> {
        worker
            .attach(task)
            .map_err(|e| DeviceError::new(format!("cannot start a queue of \"{}\"", self.shared.id), e))
    }
}

impl Virtio for Net {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Net
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn feature_names(&self) -> &'static [(u64, &'static str)] {
        feature::NAMES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; 2 * self.pairs() + usize::from(self.commands == Commands::Ours)]
    }

    fn config_length(&self) -> usize {
        // A front end knows the rest better, and some do not expect to be told.
        let told = self.commands == Commands::Ours || self.mac.is_some() || self.mtu.is_some();
        if told { CONFIG_LENGTH } else { 0 }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let status = self.shared.status.load(Ordering::Acquire);
        // At most 256 pairs: see `net_util::MAX_QUEUE_PAIRS`.
        let mac = self.mac.unwrap_or(MacAddr::new([0; 6]));
        let config = wire::config(mac, status, self.pairs() as u16, self.mtu.unwrap_or(0));
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    fn calls(&self) -> Vec<Set> {
        calls::PAIRS.to_vec()
    }

    fn connect(&mut self, grant: VirtioGrant) {
        if self.grant.set(grant).is_err() {
            warn!("{}: connected twice", self.shared.id);
        }
    }

    fn activate(&self, features: u64) -> Result<(), DeviceError> {
        let failed = |e| DeviceError::new(format!("cannot set up \"{}\"", self.shared.id), e);
        // Frames of older drivers have a shorter header.
        if features & ring::VERSION_1 == 0 {
            let what = format!("\"{}\": a driver without VIRTIO_F_VERSION_1", self.shared.id);
            return Err(DeviceError { what, source: None });
        }
        let pairs = &self.shared.pairs;
        // A driver that was saved has perhaps changed by command what it began with.
        let saved = self.loaded().take();
        let settings = saved.unwrap_or_else(|| Settings::new(features));
        if !settings.suit(features) {
            let what = format!("\"{}\": {settings:?} with the features {features:#x}", self.shared.id);
            return Err(DeviceError { what, source: None });
        }
        self.shared.set_offloads(settings.offloads).map_err(failed)?;
        // What waits in the tap was prepared for another driver's offloads, or for none at all.
        pairs.list[0].drain();
        for pair in &pairs.list {
            pair.held().clear();
        }
        if let Some(service) = &self.shared.service {
            service.clear();
        }
        pairs.use_first(usize::from(settings.pairs)).map_err(failed)?;
        // A restored guest may be at another port of the network; the transport tells its driver to look.
        let announce = if saved.is_some() && features & ANNOUNCES == ANNOUNCES { STATUS_ANNOUNCE } else { 0 };
        self.shared.status.store(settings.status() | announce, Ordering::Release);
        self.shared.features.store(features, Ordering::Release);
        Ok(())
    }

    fn start_queue(&self, index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        let Some(grant) = self.grant.get() else {
            return Err(DeviceError {
                what: format!("\"{}\" is not connected", self.shared.id),
                source: None,
            });
        };
        let data = self.data_queues();
        let mut live = self.live();
        let shared = self.shared.clone();
        let started = if index == data && self.commands == Commands::Ours {
            Started::Ctrl(self.attach(&grant.workers.shared()?, Ctrl::new(queue, shared))?)
        } else if index >= data {
            debug!("{}: queue {index} has no use without MQ", self.shared.id);
            Started::Idle(Box::new(queue))
        } else {
            let pair = index / 2;
            let worker = self.thread(&mut live, pair, grant)?;
            if index.is_multiple_of(2) {
                Started::Rx(self.attach(&worker, Rx::new(queue, shared, pair)?)?)
            } else {
                Started::Tx(self.attach(&worker, Tx::new(queue, shared, pair)?)?)
            }
        };
        if live.queues.len() <= index {
            live.queues.resize_with(index + 1, || None);
        }
        live.queues[index] = Some(started);
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let started = self.live().queues.get_mut(index)?.take()?;
        match started {
            Started::Rx(task) => task.stop().map(|t| t.queue.state()),
            Started::Tx(task) => task.stop().map(|t| t.queue.state()),
            Started::Ctrl(task) => task.stop().map(|t| t.queue.state()),
            Started::Idle(queue) => Some(queue.state()),
        }
    }

    fn finishes_chains(&self) -> bool {
        false
    }

    fn use_queue(&self, index: usize, used: bool) {
        if index.is_multiple_of(2)
            && index < self.data_queues()
            && let Err(e) = self.shared.pairs.set_in_use(index / 2, used)
        {
            warn!("{}: queue {index}: {e}", self.shared.id);
        }
    }

    fn reset(&self) {
        self.shared.features.store(0, Ordering::Release);
        self.shared.status.store(STATUS_LINK_UP, Ordering::Release);
        *self.loaded() = None;
        if let Err(e) = self.shared.pairs.use_first(1).and_then(|()| self.shared.set_offloads(0)) {
            warn!("{}: reset: {e}", self.shared.id);
        }
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        let failed = |e| DeviceError::new(format!("cannot save \"{}\"", self.shared.id), e);
        self.save_state().map(Some).map_err(failed)
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        self.load_state(saved::some(node)?)
    }

    fn counters(&self) -> Option<Counters> {
        Some(self.shared.stats.counters())
    }
}

#[cfg(test)]
mod tests;
