//! virtio-pmem (virtio 1.3 §5.19): a file as memory of the guest's, which reads and writes it without an exit and asks for a flush
//! when it wants to know that what it wrote is durable.
//!
//! What the host enforces, whatever the guest does: a file that cannot be written is mapped for reading only, here and in the
//! hypervisor; with `discard_writes=on` what is written goes to copies that nobody else sees. The device itself never looks into the
//! mapping.

mod backing;
mod calls;
mod flusher;
mod pages;
mod spec;
mod state;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use device::state::{self as saved, Node, StateError};
use device::virtio::feature;
use device::{
    Aperture, ApertureNeed, Attached, DeviceError, LiveQueue, MapMode, Mapping, Virtio, VirtioGrant,
    VirtioKind,
};
use log::warn;
use sandbox::Set;
use virtio_queue::QueueState;

use backing::Backing;
use flusher::Flusher;

pub use self::spec::PmemSpec;

/// Size of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// The memory begins at a multiple of this many bytes, and has a multiple of them: what guests map large pages by.
pub const ALIGN: u64 = 2 << 20;
/// Length of the configuration space: where the memory is, and how long (§5.19.4).
const CONFIG_LENGTH: usize = 16;

/// A file as memory.
pub struct Pmem {
    id: String,
    backing: Arc<Backing>,
    mapping: Arc<Mapping>,
    grant: OnceLock<VirtioGrant>,
    aperture: Option<Arc<dyn Aperture>>,
    queue: Mutex<Option<Attached<Flusher>>>,
}

impl Pmem {
    fn new(id: &str, backing: Backing, mapping: Mapping) -> Self {
        Pmem {
            id: id.to_owned(),
            backing: Arc::new(backing),
            mapping: Arc::new(mapping),
            grant: OnceLock::new(),
            aperture: None,
            queue: Mutex::new(None),
        }
    }

    fn error(&self, what: &str) -> DeviceError {
        DeviceError { what: format!("{what} of \"{}\"", self.id), source: None }
    }
}

impl Virtio for Pmem {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Pmem
    }

    fn calls(&self) -> Vec<Set> {
        calls::CALLS.own.to_vec()
    }

    fn features(&self) -> u64 {
        feature::VERSION_1
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config_length(&self) -> usize {
        CONFIG_LENGTH
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let start = self.aperture.as_ref().map_or(0, |aperture| aperture.span().base);
        let mut config = [0; CONFIG_LENGTH];
        config[..8].copy_from_slice(&start.to_le_bytes());
        config[8..].copy_from_slice(&self.backing.length().to_le_bytes());
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn apertures(&self) -> Vec<ApertureNeed> {
        vec![ApertureNeed { length: self.backing.length(), align: ALIGN }]
    }

    fn connect(&mut self, grant: VirtioGrant) {
        if self.grant.set(grant).is_err() {
            warn!("{}: connected twice", self.id);
        }
    }

    fn fill(&mut self, apertures: Vec<Arc<dyn Aperture>>) -> Result<(), DeviceError> {
        let aperture =
            apertures.into_iter().next().ok_or_else(|| self.error("there is no room for the memory"))?;
        aperture.put(0, self.mapping.clone())?;
        self.aperture = Some(aperture);
        Ok(())
    }

    fn activate(&self, _features: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn start_queue(&self, _index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        let grant = self.grant.get().ok_or_else(|| self.error("nothing is connected to the queue"))?;
        // A flush takes as long as the host's disk does, so nobody else may depend on this thread.
        let worker = grant.workers.own(&format!("{}_q0", self.id), &[])?;
        let flusher = Flusher::new(&self.id, queue, self.backing.clone());
        let attached = worker
            .attach(flusher)
            .map_err(|e| DeviceError::new(format!("cannot start the queue of \"{}\"", self.id), e))?;
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(attached);
        Ok(())
    }

    fn stop_queue(&self, _index: usize) -> Option<QueueState> {
        let attached = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        attached.stop().map(|flusher| flusher.state())
    }

    fn reset(&self) {}

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        self.backing.check_save(&self.mapping)?;
        let node = self.save_state();
        node.map(Some).map_err(|e| DeviceError::new(format!("cannot tell the state of \"{}\"", self.id), e))
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        self.load_state(saved::some(node)?)
    }
}

impl Pmem {
    /// Whether what the guest writes goes nowhere.
    fn readonly(&self) -> bool {
        self.mapping.mode() == MapMode::ReadOnly
    }
}

#[cfg(test)]
mod tests;
