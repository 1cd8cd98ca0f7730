//! The life of a device behind the transport: ready, paused, reset.
//!
//! ```text
//!   idle ── DRIVER_OK ──▶ active ⇄ paused by the board
//!    ▲                      │
//!    └────── status = 0 ────┘
//! ```
//!
//! A queue is either running in the device or held here as a [`QueueState`], never both. Changes are made one after another under
//! a lock of their own; it is held while the device drains, and the device may call its link meanwhile, which takes no lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{DeviceError, DriverLink, Events, LiveQueue, Ram, Virtio};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use super::link::{Link, status};

/// What running queues need.
pub(super) struct Supplies {
    pub(super) ram: Ram,
    pub(super) link: Arc<Link>,
    pub(super) doorbells: Vec<EventFd>,
    pub(super) events: Arc<dyn Events>,
    pub(super) id: String,
}

/// Where the device is in its life.
pub(super) struct Life {
    supplies: Supplies,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    // The board lets queues run.
    running: bool,
    // The driver said DRIVER_OK.
    active: bool,
    // Queues that are to run and do not.
    held: Vec<Option<QueueState>>,
    // The device goes on from a saved state and was not started since.
    loaded: bool,
}

/// How far a queue that is held has come in its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}

impl Position {
    /// The queue when it has come that far.
    pub(super) fn in_queue(self, queue: QueueState) -> QueueState {
        QueueState { next_avail: self.next_avail, next_used: self.next_used, ..queue }
    }
}

/// Proof that nobody else changes the device's life.
pub(super) struct Turn<'a> {
    device: &'a dyn Virtio,
    supplies: &'a Supplies,
    state: MutexGuard<'a, State>,
}

impl Life {
    pub(super) fn new(supplies: Supplies) -> Self {
        Life { supplies, state: Mutex::default() }
    }

    /// Takes one's turn to change things.
    pub(super) fn turn<'a>(&'a self, device: &'a dyn Virtio) -> Turn<'a> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { device, supplies: &self.supplies, state }
    }
}

impl Turn<'_> {
    /// The driver is ready. Queues start now, or when the board next lets them.
    pub(super) fn activate(
        &mut self,
        features: u64,
        queues: Vec<Option<QueueState>>,
    ) -> Result<(), DeviceError> {
        self.state.active = true;
        self.state.held = queues;
        let activated = self.begin(features);
        if activated.is_err() {
            // What could not be started is not to be tried again on resume.
            self.state.held.fill(None);
        }
        activated
    }

    fn begin(&mut self, features: u64) -> Result<(), DeviceError> {
        self.device.activate(features)?;
        self.record("activated");
        if self.state.running { self.start_held() } else { Ok(()) }
    }

    /// The driver wants a device as after power-on; returns when nothing is outstanding.
    pub(super) fn reset(&mut self) {
        if !std::mem::take(&mut self.state.active) {
            return;
        }
        for index in 0..self.state.held.len() {
            self.device.stop_queue(index);
        }
        self.state.held.clear();
        self.state.loaded = false;
        self.device.reset();
        self.record("reset");
    }

    /// The board lets queues run. Those of a device that has broken down stay where they are until it is reset.
    pub(super) fn start(&mut self) -> Result<(), DeviceError> {
        self.state.running = true;
        if self.supplies.link.status() & status::NEEDS_RESET != 0 {
            return Ok(());
        }
        let loaded = self.state.loaded;
        let started = self.start_held();
        if started.is_err() {
            // None runs then, and it can be tried again.
            self.stop();
            self.state.loaded = loaded;
        }
        started
    }

    /// How far each queue has come; none for those that are not to run.
    pub(super) fn positions(&self) -> Result<Vec<Option<Position>>, DeviceError> {
        if self.state.running {
            let what = format!("device {} was not stopped before it was saved", self.supplies.id);
            return Err(DeviceError { what, source: None });
        }
        let position = |q: &QueueState| Position { next_avail: q.next_avail, next_used: q.next_used };
        // What has broken down does not go on, and its rings may be nonsense.
        let usable = self.supplies.link.status() & status::NEEDS_RESET == 0;
        let queues = 0..self.supplies.doorbells.len();
        Ok(queues.map(|n| self.state.held.get(n)?.as_ref().filter(|_| usable).map(position)).collect())
    }

    /// Goes on where a saved device was active, with the features that its driver accepted. Queues start when the board lets them.
    pub(super) fn resume(
        &mut self,
        features: u64,
        queues: Vec<Option<QueueState>>,
    ) -> Result<(), DeviceError> {
        self.state.active = true;
        self.state.held = queues;
        self.state.loaded = true;
        let activated = self.device.activate(features);
        // One that had broken down, perhaps for that reason, has nothing to lose.
        if self.supplies.link.status() & status::NEEDS_RESET != 0 { Ok(()) } else { activated }
    }

    /// The board wants silence; returns when nothing is outstanding.
    pub(super) fn stop(&mut self) {
        self.state.running = false;
        for (index, held) in self.state.held.iter_mut().enumerate() {
            // One that is held already is not running.
            if held.is_none() {
                *held = self.device.stop_queue(index);
            }
        }
    }

    fn start_held(&mut self) -> Result<(), DeviceError> {
        let supplies = self.supplies;
        let loaded = std::mem::take(&mut self.state.loaded);
        for (index, (held, doorbell)) in self.state.held.iter_mut().zip(&supplies.doorbells).enumerate() {
            let Some(state) = *held else { continue };
            let broken =
                |e: &dyn std::fmt::Display| format!("cannot start queue {index} of {}: {e}", supplies.id);
            let queue = Queue::try_from(state).map_err(|e| {
                // Trying again would be in vain.
                supplies.link.needs_reset();
                DeviceError { what: broken(&e), source: None }
            })?;
            let kick = doorbell
                .try_clone()
                .map_err(|e| DeviceError::new(format!("cannot start queue {index} of {}", supplies.id), e))?;
            let live = LiveQueue::new(queue, supplies.ram.clone(), kick, supplies.link.clone(), index as u16);
            self.device.start_queue(index, live)?;
            *held = None;
            if loaded {
                // An interrupt may have been on its way when the state was taken. One too many does no harm.
                supplies.link.queue_used(index as u16);
            }
        }
        if loaded {
            // Likewise; and what a restore changed (a MAC, say) is looked at again.
            supplies.link.config_changed();
        }
        Ok(())
    }

    fn record(&self, event: &str) {
        self.supplies.events.record("virtio-device", event, &[("id", &self.supplies.id)]);
    }
}
