//! virtio-blk on a disk image (virtio 1.3 §5.2).
//!
//! Each queue has a thread and an I/O engine of its own; queues share nothing but the image and a few flags. The device
//! never looks at the data: the kernel moves it between the image and guest memory.
//!
//! What the host enforces, whatever the driver negotiated: the size, read-only images, and the first sector of an image
//! whose type was not stated.

mod calls;
mod polling;
mod queue;
mod remote;
mod request;
mod spec;
mod state;
mod stats;
mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ::block::{Choice, Image, Topology};
use ::spec::Refusal;
use device::grant::Resize;
use device::limit::LogLimit;
use device::state::{self as saved, Node, StateError};
use device::virtio::feature as ring;
use device::{Attached, Counters, DeviceError, LiveQueue, Virtio, VirtioGrant, VirtioKind};
use log::{error, warn};
use sandbox::Set;
use virtio_queue::{QueueState, QueueT};

use polling::Polling;
use queue::DiskQueue;
use stats::Stats;
use wire::{CONFIG_LENGTH, Config, WRITEBACK, feature};

use crate::rate::{Limiter, Throttle};

pub(crate) use self::spec::fault;

pub use self::request::MAX_PIECES;
pub use self::spec::{Affinity, DiskSpec, DiskType, ImageType, LockGranularity, QueueAffinity};
pub use self::wire::{MAX_SEGMENTS, SERIAL_LENGTH};

/// What a driver is told once and relies on, wherever the image comes from.
#[derive(Clone, Copy, Debug)]
struct Known {
    serial: [u8; SERIAL_LENGTH],
    topology: Topology,
}

/// What the threads of one disk share.
#[derive(Debug)]
struct Shared {
    id: String,
    image: Arc<Image>,
    serial: [u8; SERIAL_LENGTH],
    /// What the driver knows from before the disk was saved.
    loaded: OnceLock<Known>,
    /// Ranges may be given back.
    discard: bool,
    /// Ranges may be zeroed.
    zeroes: bool,
    /// The driver can flush, or can choose not to have to.
    flushes: AtomicBool,
    /// `writeback` of the configuration space (§5.2.5).
    writeback: AtomicBool,
    stats: Vec<Stats>,
    limit: LogLimit,
}

impl Shared {
    fn known(&self) -> Known {
        let fresh = || Known { serial: self.serial, topology: self.image.topology() };
        self.loaded.get().copied().unwrap_or_else(fresh)
    }

    /// Whether writes must be durable before they are answered (§5.2.6.2).
    fn writes_through(&self) -> bool {
        !(self.flushes.load(Ordering::Relaxed) && self.writeback.load(Ordering::Relaxed))
    }
}

/// What a disk is made of.
struct Parts {
    id: String,
    image: Arc<Image>,
    engine: Choice,
    serial: [u8; SERIAL_LENGTH],
    /// Whether the guest may give space back.
    sparse: bool,
    limiter: Option<Arc<Limiter>>,
    queues: u16,
    queue_size: u16,
    /// CPUs of the host that the thread of each queue is bound to; empty or missing for any.
    cpus: Vec<Vec<usize>>,
    /// How long a queue looks for work by itself at most.
    polling: Duration,
}

/// A disk.
pub struct Disk {
    shared: Arc<Shared>,
    engine: Choice,
    limiter: Option<Arc<Limiter>>,
    offered: u64,
    queue_size: u16,
    cpus: Vec<Vec<usize>>,
    polling: Duration,
    negotiated_wce: AtomicBool,
    grant: OnceLock<VirtioGrant>,
    /// Queues that are started. The lock is held by those who start and stop queues; no thread of the disk takes it.
    live: Mutex<Vec<Option<Attached<DiskQueue>>>>,
}

impl Disk {
    fn new(parts: Parts) -> Self {
        let Parts { id, image, engine, serial, sparse, limiter, queues, queue_size, cpus, polling } = parts;
        let zeroes = image.sparse().punch;
        let discard = zeroes && sparse;
        let mut offered = ring::VERSION_1 | ring::RING_EVENT_IDX | ring::RING_INDIRECT_DESC;
        offered |= feature::FLUSH | feature::CONFIG_WCE;
        offered |= feature::BLK_SIZE | feature::TOPOLOGY | feature::SEG_MAX;
        for (condition, bit) in [
            (image.readonly(), feature::RO),
            (queues > 1, feature::MQ),
            (zeroes, feature::WRITE_ZEROES),
            (discard, feature::DISCARD),
        ] {
            offered |= if condition { bit } else { 0 };
        }
        let shared = Shared {
            id,
            image,
            serial,
            loaded: OnceLock::new(),
            discard,
            zeroes,
            flushes: AtomicBool::new(true),
            writeback: AtomicBool::new(true),
            stats: (0..queues).map(|_| Stats::default()).collect(),
            limit: LogLimit::new(),
        };
        Disk {
            shared: Arc::new(shared),
            engine,
            limiter,
            offered,
            queue_size,
            cpus,
            polling,
            negotiated_wce: AtomicBool::new(false),
            grant: OnceLock::new(),
            live: Mutex::default(),
        }
    }

    fn live(&self) -> MutexGuard<'_, Vec<Option<Attached<DiskQueue>>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> [u8; CONFIG_LENGTH] {
        let shared = &self.shared;
        let config = Config {
            size: shared.image.size(),
            topology: shared.known().topology,
            // At most 65535: see `DiskSpec::check`.
            queues: shared.stats.len() as u16,
            queue_size: self.queue_size,
            writeback: shared.writeback.load(Ordering::Relaxed),
            zeroes: shared.zeroes,
            discard: shared.discard,
            most_zeroed: shared.image.most_zeroed(),
        };
        config.bytes()
    }

    fn error(&self, what: &str) -> DeviceError {
        DeviceError { what: format!("disk \"{}\": {what}", self.shared.id), source: None }
    }
}

impl Resize for Disk {
    fn resize(&self, bytes: u64) -> Result<(), Refusal> {
        let Shared { id, image, .. } = &*self.shared;
        image
            .resize(bytes)
            .map_err(|e| Refusal::new(spec::fault(&e), format!("cannot resize disk \"{id}\"")).because(e))?;
        if let Some(grant) = self.grant.get() {
            grant.link.config_changed();
        }
        Ok(())
    }
}

impl Virtio for Disk {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn feature_names(&self) -> &'static [(u64, &'static str)] {
        feature::NAMES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.shared.stats.len()]
    }

    fn config_length(&self) -> usize {
        CONFIG_LENGTH
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = self.config();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        // The only field that a driver may write, and only if it negotiated that (§5.2.5).
        let writeback = WRITEBACK.checked_sub(offset).and_then(|at| data.get(at));
        if let Some(writeback) = writeback
            && self.negotiated_wce.load(Ordering::Relaxed)
        {
            self.shared.writeback.store(*writeback != 0, Ordering::Relaxed);
        }
    }

    fn binding_features(&self) -> u64 {
        feature::RO
    }

    fn calls(&self) -> Vec<Set> {
        calls::of(self.engine)
    }

    fn connect(&mut self, grant: VirtioGrant) {
        if self.grant.set(grant).is_err() {
            warn!("disk {}: connected twice", self.shared.id);
        }
    }

    fn activate(&self, features: u64) -> Result<(), DeviceError> {
        // A driver that can neither flush nor choose relies on writes being durable (§5.2.5).
        let flushes = features & (feature::FLUSH | feature::CONFIG_WCE) != 0;
        self.shared.flushes.store(flushes, Ordering::Relaxed);
        self.negotiated_wce.store(features & feature::CONFIG_WCE != 0, Ordering::Relaxed);
        Ok(())
    }

    fn start_queue(&self, index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        let shared = &self.shared;
        let grant = self.grant.get().ok_or_else(|| self.error("not connected"))?;
        if index >= shared.stats.len() {
            return Err(self.error(&format!("there is no queue {index}")));
        }
        let mut live = self.live();
        if live.get(index).is_some_and(Option::is_some) {
            return Err(self.error(&format!("queue {index} is started already")));
        }
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
            DeviceError::new(format!("cannot start queue {index} of disk \"{}\"", shared.id), source)
        };
        let (shared, choice) = (shared.clone(), self.engine);
        let cpus = self.cpus.get(index).map_or(&[][..], Vec::as_slice);
        let worker = grant.workers.own(&format!("{}_q{index}", shared.id), cpus)?;
        let throttle = self.limiter.clone().map(Throttle::new).transpose()?;
        let polling = Polling::new(self.polling);
        let make = {
            let shared = shared.clone();
            move || {
                let depth = usize::from(queue::depth(queue.queue.size()));
                let engine = shared.image.engine(depth, choice);
                DiskQueue::new(queue, engine, shared, throttle, polling)
            }
        };
        let attached = worker.attach_made(make).map_err(|e| failed(e.into()))?;
        if live.len() <= index {
            live.resize_with(index + 1, || None);
        }
        live[index] = Some(attached);
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let attached = self.live().get_mut(index)?.take()?;
        let stopped = attached.stop();
        if stopped.is_none() {
            error!("disk {}: the thread of queue {index} had ended", self.shared.id);
        }
        stopped.map(|queue| queue.state())
    }

    fn reset(&self) {
        self.shared.flushes.store(true, Ordering::Relaxed);
        self.shared.writeback.store(true, Ordering::Relaxed);
        self.negotiated_wce.store(false, Ordering::Relaxed);
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        let what = || format!("cannot save disk \"{}\"", self.shared.id);
        self.shared.image.settle().map_err(|e| DeviceError::new(what(), e))?;
        self.save_state().map(Some).map_err(|e| DeviceError::new(what(), e))
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        self.load_state(saved::some(node)?)
    }

    fn resize(&self) -> Option<&dyn Resize> {
        Some(self)
    }

    fn counters(&self) -> Option<Counters> {
        Some(stats::counters(&self.shared.stats))
    }
}

#[cfg(test)]
mod tests;
