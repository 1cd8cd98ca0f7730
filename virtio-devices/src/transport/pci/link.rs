//! The way from the device to its driver: interrupts, and the registers that change under the driver's eyes.
//!
//! Everything here is atomic: a device may call from any thread, with any lock of its own or of the transport held.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use device::limit::LogLimit;
use device::{DriverLink, Vector, guest_warn};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

static NO_EVENT: LogLimit = LogLimit::new();

/// Device status bits (virtio 1.3 §2.1).
pub(super) mod status {
    pub(in crate::transport::pci) const ACKNOWLEDGE: u8 = 1;
    pub(in crate::transport::pci) const DRIVER: u8 = 2;
    pub(in crate::transport::pci) const DRIVER_OK: u8 = 4;
    pub(in crate::transport::pci) const FEATURES_OK: u8 = 8;
    pub(in crate::transport::pci) const NEEDS_RESET: u8 = 0x40;
    pub(in crate::transport::pci) const FAILED: u8 = 0x80;
}

/// Interrupt status bits (virtio 1.3 §4.1.4.5).
pub(super) mod isr {
    pub(in crate::transport::pci) const QUEUE: u8 = 1;
    pub(in crate::transport::pci) const CONFIG: u8 = 2;
    /// All of them.
    pub(in crate::transport::pci) const ALL: u8 = QUEUE | CONFIG;
}

/// "No vector" in a vector register (virtio 1.3 §4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// What is saved of a [`Link`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkState {
    pub(super) status: u8,
    isr: u8,
    generation: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

/// Registers that the device side changes.
pub(super) struct Link {
    vectors: Vec<Arc<dyn Vector>>,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    isr: AtomicU8,
    status: AtomicU8,
    generation: AtomicU8,
}

impl Link {
    pub(super) fn new(vectors: Vec<Arc<dyn Vector>>, queues: usize) -> Self {
        Link {
            vectors,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
        }
    }

    /// Device status.
    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// Adds status bits.
    pub(super) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// Forgets all that a driver did; the device is silent by now. The generation goes on, so that a driver which looks again
    /// sees that time has passed.
    pub(super) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.isr.store(0, Ordering::SeqCst);
        // Last: a driver that polls for zero finds everything else forgotten.
        self.status.store(0, Ordering::SeqCst);
    }

    /// Interrupt status; reading clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    /// Configuration generation.
    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The vector of configuration changes.
    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    /// Sets it; a vector that does not exist becomes none, which the driver reads back.
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Relaxed);
    }

    /// The vector of a queue.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |v| v.load(Ordering::Relaxed))
    }

    /// Sets it, likewise; nothing happens for a queue that does not exist.
    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(v) = self.queue_vectors.get(usize::from(queue)) {
            v.store(self.existing(vector), Ordering::Relaxed);
        }
    }

    pub(super) fn save(&self) -> LinkState {
        LinkState {
            status: self.status(),
            isr: self.isr.load(Ordering::SeqCst),
            generation: self.generation(),
            config_vector: self.config_vector(),
            queue_vectors: self.queue_vectors.iter().map(|v| v.load(Ordering::Relaxed)).collect(),
        }
    }

    /// Goes on from a state whose status was checked; tells what cannot be.
    pub(super) fn load(&self, saved: &LinkState) -> Result<(), String> {
        let (found, queues) = (saved.queue_vectors.len(), self.queue_vectors.len());
        if found != queues {
            return Err(format!("queue_vectors has {found} queues, and there are {queues}"));
        }
        let mut vectors = saved.queue_vectors.iter().chain([&saved.config_vector]);
        if let Some(vector) = vectors.find(|v| **v != NO_VECTOR && self.existing(**v) != **v) {
            return Err(format!("there is no vector {vector}"));
        }
        if saved.isr & !isr::ALL != 0 {
            return Err(format!("isr is {:#x}, of which {:#x} can be", saved.isr, isr::ALL));
        }
        self.config_vector.store(saved.config_vector, Ordering::Relaxed);
        for (vector, saved) in self.queue_vectors.iter().zip(&saved.queue_vectors) {
            vector.store(*saved, Ordering::Relaxed);
        }
        self.isr.store(saved.isr, Ordering::SeqCst);
        // The configuration may be another one, a MAC for instance: a driver that was in the middle of it reads it again.
        self.generation.store(saved.generation.wrapping_add(1), Ordering::SeqCst);
        self.status.store(saved.status, Ordering::SeqCst);
        Ok(())
    }

    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR }
    }

    /// Interrupts; without a vector only the interrupt status tells, for drivers that poll it.
    fn interrupt(&self, vector: u16, isr: u8) {
        match self.vectors.get(usize::from(vector)) {
            Some(vector) => vector.signal(),
            None => {
                self.isr.fetch_or(isr, Ordering::SeqCst);
            }
        }
    }
}

impl DriverLink for Link {
    fn queue_used(&self, queue: u16) {
        self.interrupt(self.queue_vector(queue), isr::QUEUE);
    }

    fn queue_event(&self, queue: u16) -> Option<EventFd> {
        let vector = self.vectors.get(usize::from(self.queue_vector(queue)))?;
        match vector.event() {
            Ok(event) => Some(event),
            // The way by a call is there all the same.
            Err(e) => {
                guest_warn!(NO_EVENT, "no eventfd for the interrupt of queue {queue}: {e}");
                None
            }
        }
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        // A driver that has not said DRIVER_OK reads the configuration anyway (virtio 1.3 §4.1.5.3).
        if self.status() & status::DRIVER_OK != 0 {
            self.interrupt(self.config_vector(), isr::CONFIG);
        }
    }

    fn needs_reset(&self) {
        // One that was reset meanwhile has nothing to be reset from, and its driver waits for a status of 0.
        let broken = |now: u8| (now != 0).then_some(now | status::NEEDS_RESET);
        let Ok(before) = self.status.fetch_update(Ordering::SeqCst, Ordering::SeqCst, broken) else { return };
        if before & status::DRIVER_OK != 0 && before & status::NEEDS_RESET == 0 {
            self.interrupt(self.config_vector(), isr::CONFIG);
        }
    }
}
