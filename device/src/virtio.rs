//! A virtio device, apart from how it is attached (virtio 1.3 §2).
//!
//! Three hosts run the same device: the PCI transport, a vhost-user server, and tests. The pair
//! [`Virtio::start_queue`]/[`Virtio::stop_queue`] serves boot, reset, pause, unplug, snapshot and `GET_VRING_BASE` alike.
//!
//! ```text
//!   built ── connect ── [ activate ── start_queue × n ── (stop_queue ⇄ start_queue) ── stop_queue × n ── reset ] …
//! ```

mod live;

use std::sync::Arc;

use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

pub use self::live::{Chain, LiveQueue, RingError};
use crate::state::{self, Node, StateError};
use crate::{Aperture, ApertureNeed, Counters, DeviceError, Events, Ram, Workers};

/// Device types (virtio 1.3 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum VirtioKind {
    Net = 1,
    Block = 2,
    Console = 3,
    Rng = 4,
    Vsock = 19,
    Fs = 26,
    Pmem = 27,
    /// One that means nothing to this program: see [`Virtio::type_number`].
    Other = 0xffff,
}

impl VirtioKind {
    /// The type of this number.
    pub fn of(number: u16) -> VirtioKind {
        use VirtioKind::{Block, Console, Fs, Net, Other, Pmem, Rng, Vsock};
        let known = [Net, Block, Console, Rng, Vsock, Fs, Pmem];
        known.into_iter().find(|kind| *kind as u16 == number).unwrap_or(Other)
    }
}

/// Feature bits that belong to no device type (virtio 1.3 §6).
pub mod feature {
    /// Indirect descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event`.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// Virtio 1.x; the only kind there is here.
    pub const VERSION_1: u64 = 1 << 32;
    /// Buffers are used in the order in which they were made available.
    pub const IN_ORDER: u64 = 1 << 35;

    /// Their names.
    pub const NAMES: &[(u64, &str)] = &[
        (RING_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC"),
        (RING_EVENT_IDX, "VIRTIO_F_EVENT_IDX"),
        (VERSION_1, "VIRTIO_F_VERSION_1"),
        (IN_ORDER, "VIRTIO_F_IN_ORDER"),
    ];
}

/// The way back to the driver. Calls are cheap and may come from any thread.
pub trait DriverLink: Send + Sync {
    /// Interrupts for a queue. Whether the driver wants it was decided before ([`LiveQueue::signal`]).
    fn queue_used(&self, queue: u16);

    /// An eventfd that interrupts for a queue as [`DriverLink::queue_used`] does, for whoever serves the queue in another process;
    /// none where only a call does. It is another one once the driver changed the queue's vector ([`Virtio::vector_changed`]).
    fn queue_event(&self, _queue: u16) -> Option<EventFd> {
        None
    }

    /// The configuration space changed; interrupts for it.
    fn config_changed(&self);

    /// The driver broke the rules beyond repair: sets DEVICE_NEEDS_RESET and interrupts (virtio 1.3 §2.1.1).
    fn needs_reset(&self);
}

/// What a virtio device is given once.
#[derive(Clone)]
pub struct VirtioGrant {
    /// Guest memory.
    pub ram: Ram,
    /// The way back to the driver.
    pub link: Arc<dyn DriverLink>,
    /// Threads, on demand.
    pub workers: Workers,
    /// Where to report.
    pub events: Arc<dyn Events>,
}

/// A virtio device.
pub trait Virtio: Send + Sync {
    /// The type.
    fn kind(&self) -> VirtioKind;

    /// Its number.
    fn type_number(&self) -> u16 {
        self.kind() as u16
    }

    /// The features offered, [`feature::VERSION_1`] among them.
    fn features(&self) -> u64;

    /// Names of the feature bits of this device type, for messages.
    fn feature_names(&self) -> &'static [(u64, &'static str)] {
        &[]
    }

    /// Largest size of each queue: powers of two up to 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Length of the configuration space in bytes; 0 if there is none.
    fn config_length(&self) -> usize {
        0
    }

    /// Reads configuration space; `offset + data.len()` is within [`Virtio::config_length`].
    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    /// Writes configuration space; within bounds as for reads.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// Features that hold for a driver whether it knows of them or not: a disk that cannot be written.
    fn binding_features(&self) -> u64 {
        0
    }

    /// System calls of the device's own threads: see [`crate::Needs::calls`].
    fn calls(&self) -> Vec<sandbox::Set> {
        Vec::new()
    }

    /// Takes what the board granted; called once, before anything else.
    fn connect(&mut self, grant: VirtioGrant);

    /// Room for memory of its own that the guest is to see.
    fn apertures(&self) -> Vec<ApertureNeed> {
        Vec::new()
    }

    /// Takes that room, in the order of [`Virtio::apertures`], and puts there what the guest finds from the beginning; called once,
    /// after [`Virtio::connect`].
    ///
    /// # Errors
    /// The host or the hypervisor refused; the device is dropped.
    fn fill(&mut self, _apertures: Vec<Arc<dyn Aperture>>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver is ready with these features; queues are started after this.
    ///
    /// # Errors
    /// What could not be set up; the driver sees DEVICE_NEEDS_RESET.
    fn activate(&self, features: u64) -> Result<(), DeviceError>;

    /// Starts a queue, and processes at once what is already available in it: its kick may have been spent before.
    ///
    /// # Errors
    /// What could not be set up; the driver sees DEVICE_NEEDS_RESET.
    fn start_queue(&self, index: usize, queue: LiveQueue) -> Result<(), DeviceError>;

    /// Stops a queue and returns its state; returns only when none of its requests is outstanding and nothing it did will touch
    /// guest memory any more. `None` if the queue was not started.
    fn stop_queue(&self, index: usize) -> Option<QueueState>;

    /// Whether a chain, once taken, is given back whatever happens outside. Where it waits for something to come instead, there is nothing
    /// to be finished for a process that died.
    fn finishes_chains(&self) -> bool {
        true
    }

    /// Tells whether the driver uses a queue, for hosts that hear of that themselves and not the device by a command (vhost-user,
    /// `SET_VRING_ENABLE`). A queue that is stopped only for a moment stays in use.
    fn use_queue(&self, _index: usize, _used: bool) {}

    /// The driver chose another interrupt for a queue, which may be running: matters to those who use [`DriverLink::queue_event`].
    fn vector_changed(&self, _index: usize) {}

    /// Forgets what a driver negotiated; all queues are stopped.
    fn reset(&self);

    /// State of the device itself, apart from its queues; called while all of them are stopped. `None` if there is none.
    ///
    /// # Errors
    /// What could not be told.
    fn save(&self) -> Result<Option<Node>, DeviceError> {
        Ok(None)
    }

    /// Goes on from a state that [`Virtio::save`] gave: after [`Virtio::connect`] and before [`Virtio::activate`], which follows if
    /// a driver was active. The state is untrusted.
    ///
    /// # Errors
    /// The state is not one of this device; the device is dropped.
    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        state::none(node)
    }

    /// Counters, if the device has any.
    fn counters(&self) -> Option<Counters> {
        None
    }

    /// The ability to change its size, if the device has it.
    fn resize(&self) -> Option<&dyn crate::grant::Resize> {
        None
    }

    /// The terminal's size changed, for a device that shows one.
    fn resized(&self) {}
}

/// A record of the chains that a device holds, for hosts where that is to survive the death of the process (vhost-user).
pub trait Ledger: Send {
    /// A chain was taken from the available ring; the device has done nothing with it yet.
    fn taken(&mut self, head: u16);

    /// A chain is about to be marked as used.
    fn giving_back(&mut self, head: u16);

    /// It was marked as used, and the used ring's index is this now.
    fn given_back(&mut self, head: u16, index: u16);
}
