//! A virtio device that another process serves (vhost-user): this side has the driver, the other one has the rings.
//!
//! Nothing of ours is on the way of data: the driver's kicks and the other side's interrupts are eventfds which both sides of the
//! kernel know. A task on the thread of quiet devices watches the connection ([`watch`]). When it ends, the guest goes on; its
//! requests wait in the rings until somebody serves the socket again and is told all of it anew ([`rings`]), by a thread that is
//! there only meanwhile.
//!
//! ```text
//!   dial ─► negotiate ─► [ activate: features, memory ─ start_queue ⇄ stop_queue ] ─► hang-up ─► dial again, and tell all of it ─┐
//!                         ▲                                                                                                      │
//!                         └──────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The other side is not trusted with anything but guest memory: each answer is waited for within a time and checked. One that goes
//! away is waited for; one that does what it must not is hung up on, and the driver finds a device that needs a reset.
//!
//! Locks, in order: `talk` (one conversation at a time), then `shown`, which is a leaf: reading the configuration space never waits
//! for the other side.

pub mod calls;
mod client;
mod dial;
mod error;
mod handover;
mod rings;
mod shared;
mod state;
mod trials;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use device::limit::LogLimit;
use device::state::{self as saved, Node, StateError};
use device::{Attached, DeviceError, LiveQueue, Virtio, VirtioGrant, VirtioKind, guest_warn};
use sandbox::Set;
use virtio_queue::{QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use dial::{Offer, config_body};
use rings::{Driver, Progress, Ring, progress, tell_event};
use shared::{Shared, Shown, Talk};
use watch::Watching;

pub use dial::{Adjust, ConfigWish, Knows, Parked, Program, Told, Way, Wish};
pub use error::BackError;

use crate::wire::{protocol, request};

/// See the module.
pub struct Remote {
    shared: Arc<Shared>,
    watching: OnceLock<Attached<Watching>>,
}

impl Remote {
    /// Finds the back end, waiting so long for it to come.
    ///
    /// # Errors
    /// Nobody answers at the socket, or nobody that can be worked with.
    pub fn find(wish: Wish, patience: Duration) -> Result<Self, BackError> {
        let gone = Arc::new(AtomicBool::new(false));
        let (client, offer) = match dial::again(&wish, &gone) {
            Some(found) => found,
            None => dial::wait(&wish, &gone, patience)?,
        };
        let Offer { theirs, features: offered, protocol: agreed, config, back } = offer;
        let event = || {
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map_err(|source| BackError::Host { what: "make an eventfd", source })
        };
        let rings = wish.sizes.iter().map(|_| None).collect();
        let driver = Driver { theirs, rings, ..Driver::default() };
        let shared = Shared {
            wish,
            offered,
            gone,
            grant: OnceLock::new(),
            talk: Mutex::new(Talk {
                client: Some(client),
                agreed,
                back,
                driver,
                unsure: false,
                told: false,
                forgot: false,
            }),
            shown: Mutex::new(Shown { bytes: config, written: BTreeMap::new() }),
            bell: event()?,
            error: event()?,
            wake: event()?,
            limit: LogLimit::new(),
            trials: Mutex::default(),
        };
        Ok(Remote { shared: Arc::new(shared), watching: OnceLock::new() })
    }
}

impl Remote {
    fn is_live(&self) -> bool {
        self.shared.wish.config.told == Told::Live
    }

    /// Takes what the board granted, as [`Virtio::connect`].
    pub fn join(&self, grant: VirtioGrant) {
        let id = &self.shared.wish.id;
        let worker = grant.workers.shared();
        if self.shared.grant.set(grant).is_err() {
            log::warn!("{id}: connected twice");
            return;
        }
        let task = Watching::new(self.shared.clone());
        match worker.map_err(std::io::Error::other).and_then(|worker| worker.attach(task)) {
            // Only the first call comes this far.
            Ok(attached) => drop(self.watching.set(attached)),
            Err(e) => log::error!("{id}: cannot watch its back end: {e}"),
        }
    }

    /// Tells the back end whether the driver uses a queue now; it does unless told otherwise.
    pub fn use_queue(&self, index: usize, used: bool) {
        let mut talk = self.shared.talk();
        let unused = &mut talk.driver.unused;
        unused.retain(|other| *other != index);
        if !used {
            unused.push(index);
        }
        if talk.driver.rings.get(index).is_some_and(Option::is_some) {
            self.shared.say_or_break(&mut talk, |client, _| {
                client.tell_ring(request::SET_VRING_ENABLE, index, used.into())
            });
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Its rings were brought to rest before.
        if let Some(parked) = &self.shared.wish.parked
            && let Some(client) = self.shared.talk().client.take()
        {
            parked.put(client);
        }
        self.shared.gone.store(true, Ordering::Relaxed);
        // What the task has in common with us is dropped on this thread, a listening socket's file for one.
        drop(self.watching.take().and_then(Attached::stop));
    }
}

impl Virtio for Remote {
    fn kind(&self) -> VirtioKind {
        VirtioKind::of(self.type_number())
    }

    fn type_number(&self) -> u16 {
        self.shared.wish.number
    }

    fn binding_features(&self) -> u64 {
        self.shared.wish.binding
    }

    fn calls(&self) -> Vec<Set> {
        let mut all = vec![calls::TALK, calls::DIAL, calls::SEARCH];
        all.extend(matches!(self.shared.wish.way, Way::Accept(_)).then_some(calls::ACCEPT));
        all
    }

    fn features(&self) -> u64 {
        self.shared.offered
    }

    fn feature_names(&self) -> &'static [(u64, &'static str)] {
        self.shared.wish.names
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.shared.wish.sizes.clone()
    }

    fn config_length(&self) -> usize {
        // Asked for once: which it is does not change.
        let none = self.is_live() && self.shared.talk().agreed & protocol::CONFIG == 0;
        if none { 0 } else { self.shared.wish.config.bytes.len() }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let shared = &*self.shared;
        if self.is_live() {
            data.fill(0);
            let read = shared.say_or_break(&mut shared.talk(), |client, _| {
                dial::config_part(client, offset as u32, data.len())
            });
            for (to, from) in data.iter_mut().zip(read.into_iter().flatten()) {
                *to = from;
            }
            return;
        }
        let shown = shared.shown();
        for (at, byte) in (offset..).zip(data) {
            *byte = shown.byte(at);
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let shared = &*self.shared;
        let config = &shared.wish.config;
        let mut talk = shared.talk();
        if self.is_live() {
            let body = config_body(offset as u32, data);
            shared.say_or_break(&mut talk, |client, _| client.tell(request::SET_CONFIG, &body, &[]));
            return;
        }
        if talk.driver.features.is_none_or(|f| f & config.writable_with != config.writable_with) {
            return;
        }
        for (at, byte) in (offset..).zip(data).filter(|(at, _)| config.writable.contains(at)) {
            shared.shown().written.insert(at, *byte);
            let body = config_body(at as u32, &[*byte]);
            shared.say_or_break(&mut talk, |client, _| client.tell(request::SET_CONFIG, &body, &[]));
        }
    }

    fn connect(&mut self, grant: VirtioGrant) {
        self.join(grant);
    }

    fn activate(&self, features: u64) -> Result<(), DeviceError> {
        let shared = &*self.shared;
        let Some(grant) = shared.grant.get().filter(|_| self.watching.get().is_some()) else {
            return Err(shared.error("not connected".to_owned()));
        };
        let mut talk = shared.talk();
        if talk.forgot || shared.wish.knows == Knows::Vital && talk.client.is_none() {
            // The next one would know nothing of this driver.
            return Err(shared.error(format!("the back end at {} is away", shared.wish.way)));
        }
        talk.told = false;
        // All rings rest: what was said of them concerns the driver before.
        watch::drain(&shared.error);
        talk.driver.features = Some(features);
        talk.driver.inflight = None;
        talk.unsure = false;
        let agreed = talk.agreed;
        let begun = shared.say(&mut talk, |client, driver| {
            driver.begin(client, agreed, &shared.wish.sizes, &grant.ram.map())
        });
        let begun = begun.and_then(|_| {
            let Some(mut client) = talk.client.take() else { return Ok(()) };
            let told = shared.tell_written(&talk, &mut client);
            talk.client = Some(client);
            shared.say(&mut talk, |_, _| told).map(|_| ())
        });
        begun.map_err(|e| shared.error(format!("the back end at {}: {}", shared.wish.way, e.line())))
    }

    fn start_queue(&self, index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        let shared = &*self.shared;
        let mut talk = shared.talk();
        let Some(place) = talk.driver.rings.get_mut(index) else {
            return Err(shared.error(format!("there is no queue {index}")));
        };
        if place.is_some() {
            return Err(shared.error(format!("queue {index} is started already")));
        }
        let base = queue.queue.next_avail();
        *place = Some(Ring { live: queue, base: Some(base) });
        shared.say_or_break(&mut talk, |client, driver| {
            driver.serve(client, index, base, &shared.call(index)?, &shared.error)
        });
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let shared = &*self.shared;
        let mut talk = shared.talk();
        let ring = talk.driver.rings.get_mut(index)?.take()?;
        let queue = ring.live.queue.state();
        let Some(Progress { available, used }) = progress(&ring.live.ram.map(), &queue) else {
            // Its place was in memory when it was enabled, and memory stays.
            log::error!("{}: queue {index} is no longer in memory", shared.wish.id);
            return None;
        };
        let rested = ring.base.or_else(|| {
            let rested = shared.say(&mut talk, |client, _| {
                if shared.wish.empties {
                    client.wait_for_empty(|| is_empty(&ring));
                }
                let base = client.rest(index)?;
                let taken = base.wrapping_sub(used_now(&ring).unwrap_or(used));
                if taken > queue.size {
                    let what = format!("ring {index} of {} goes on {taken} chains ahead", queue.size);
                    return Err(BackError::Answer { request: request::GET_VRING_BASE, what });
                }
                Ok(base)
            });
            rested.ok().flatten()
        });
        if rested.is_none()
            && available != used
            && shared.wish.knows != Knows::Vital
            && !shared.in_order(&ring.live.ram.map(), &queue)
        {
            talk.unsure = true;
            if talk.driver.inflight.is_none() {
                guest_warn!(
                    shared.limit,
                    "{}: queue {index} had requests under way when the back end went: what became of them is not known",
                    shared.wish.id
                );
                ring.live.link.needs_reset();
            }
        }
        let used = used_now(&ring).unwrap_or(used);
        Some(QueueState { next_avail: rested.unwrap_or(used), next_used: used, ..queue })
    }

    fn vector_changed(&self, index: usize) {
        let shared = &*self.shared;
        let mut talk = shared.talk();
        if talk.driver.rings.get(index).is_some_and(Option::is_some) {
            shared.say_or_break(&mut talk, |client, _| {
                tell_event(client, request::SET_VRING_CALL, index, &shared.call(index)?)
            });
        }
    }

    fn reset(&self) {
        let shared = &*self.shared;
        let mut talk = shared.talk();
        talk.driver.features = None;
        talk.driver.inflight = None;
        (talk.unsure, talk.told, talk.forgot) = (false, false, false);
        let mut shown = shared.shown();
        let written = std::mem::take(&mut shown.written);
        let before: Vec<_> = written.into_keys().map(|at| (at, shown.byte(at))).collect();
        drop(shown);
        let agreed = talk.agreed;
        shared.say_or_break(&mut talk, |client, _| {
            for (at, byte) in before {
                client.tell(request::SET_CONFIG, &config_body(at as u32, &[byte]), &[])?;
            }
            if agreed & protocol::RESET_DEVICE != 0 {
                client.tell(request::RESET_DEVICE, &[], &[])?;
            }
            Ok(())
        });
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        self.shared.save().map(Some)
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        self.shared.load(saved::some(node)?)
    }
}

/// How many chains of a ring were given back by now.
fn used_now(ring: &Ring) -> Option<u16> {
    progress(&ring.live.ram.map(), &ring.live.queue.state()).map(|progress| progress.used)
}

/// Whether all that was made available was given back.
fn is_empty(ring: &Ring) -> bool {
    progress(&ring.live.ram.map(), &ring.live.queue.state())
        .is_none_or(|Progress { available, used }| available == used)
}

#[cfg(test)]
mod tests;
