//! What the device, whoever watches its back end, and whoever looks for the next one have in common.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use device::limit::LogLimit;
use device::ram::RamMap;
use device::virtio::feature;
use device::{DeviceError, DriverLink, VirtioGrant, guest_warn};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::client::Client;
use super::dial::{self, Knows, Offer, Told, Wish, config_body};
use super::rings::{Driver, Progress, Ring, in_order, progress};
use super::trials::Trials;
use crate::BackError;
use crate::wire::{protocol, request};

/// The conversation with a back end.
pub(super) struct Talk {
    /// None while there is no back end.
    pub(super) client: Option<Client>,
    /// Protocol features.
    pub(super) agreed: u64,
    /// Where the back end asks us, until somebody listens there.
    pub(super) back: Option<UnixStream>,
    pub(super) driver: Driver,
    /// A ring was stopped without the back end, which had taken chains from it.
    pub(super) unsure: bool,
    /// The back end was told what another one knew of a driver that is about to go on,
    pub(super) told: bool,
    /// and is not there any more.
    pub(super) forgot: bool,
}

/// The configuration space.
pub(super) struct Shown {
    pub(super) bytes: Vec<u8>,
    /// What the driver wrote.
    pub(super) written: BTreeMap<usize, u8>,
}

impl Shown {
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.written.get(&at).or_else(|| self.bytes.get(at)).copied().unwrap_or(0)
    }
}

pub(super) struct Shared {
    pub(super) wish: Wish,
    pub(super) offered: u64,
    /// The device is being dropped.
    pub(super) gone: Arc<AtomicBool>,
    pub(super) grant: OnceLock<VirtioGrant>,
    pub(super) talk: Mutex<Talk>,
    pub(super) shown: Mutex<Shown>,
    /// Rung in place of interrupts that have no vector.
    pub(super) bell: EventFd,
    /// Rung when a back end gives a ring up.
    pub(super) error: EventFd,
    /// Rung when there is a back end again.
    pub(super) wake: EventFd,
    pub(super) limit: LogLimit,
    pub(super) trials: Mutex<Trials>,
}

impl Shared {
    pub(super) fn talk(&self) -> MutexGuard<'_, Talk> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trials(&self) -> MutexGuard<'_, Trials> {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn link(&self) -> Option<&dyn DriverLink> {
        self.grant.get().map(|grant| &*grant.link)
    }

    pub(super) fn error(&self, what: String) -> DeviceError {
        DeviceError { what: format!("\"{}\": {what}", self.wish.id), source: None }
    }

    /// A record for the event monitor.
    fn record(&self, event: &str) {
        if let Some(grant) = self.grant.get() {
            grant.events.record("vhost-user", event, &[("id", &self.wish.id)]);
        }
    }

    /// Ends the conversation.
    pub(super) fn lose(&self, talk: &mut Talk, why: &BackError) {
        let Some(client) = talk.client.take() else { return };
        client.hang_up();
        self.record("back-end-lost");
        talk.forgot |= std::mem::take(&mut talk.told);
        if self.wish.knows == Knows::Vital && talk.driver.features.is_some() {
            guest_warn!(
                self.limit,
                "{}: the back end at {} went away: {}; the driver has to begin anew",
                self.wish.id,
                self.wish.way,
                why.line()
            );
            self.link().inspect(|link| link.needs_reset());
            return;
        }
        guest_warn!(
            self.limit,
            "{}: lost the back end at {}: {}; requests wait until it is back",
            self.wish.id,
            self.wish.way,
            why.line()
        );
    }

    /// Says something to the back end, if there is one. One that went is no error.
    pub(super) fn say<R>(
        &self,
        talk: &mut Talk,
        work: impl FnOnce(&mut Client, &mut Driver) -> Result<R, BackError>,
    ) -> Result<Option<R>, BackError> {
        let Some(client) = &mut talk.client else { return Ok(None) };
        match work(client, &mut talk.driver) {
            Ok(answer) => Ok(Some(answer)),
            Err(why) => {
                self.lose(talk, &why);
                if why.is_loss() { Ok(None) } else { Err(why) }
            }
        }
    }

    /// The same where nobody can be told of an error but the driver.
    pub(super) fn say_or_break<R>(
        &self,
        talk: &mut Talk,
        work: impl FnOnce(&mut Client, &mut Driver) -> Result<R, BackError>,
    ) -> Option<R> {
        self.say(talk, work).unwrap_or_else(|_| {
            self.link().inspect(|link| link.needs_reset());
            None
        })
    }

    /// What interrupts for a queue.
    pub(super) fn call(&self, index: usize) -> Result<EventFd, BackError> {
        let event = self.link().and_then(|link| link.queue_event(index as u16));
        event
            .map_or_else(|| self.bell.try_clone(), Ok)
            .map_err(|source| BackError::Host { what: "pass an interrupt on", source })
    }

    /// Where a ring that ran goes on with a new back end, if that can be known.
    pub(super) fn base(&self, driver: &Driver, ring: &Ring) -> Option<u16> {
        if ring.base.is_some() {
            return ring.base;
        }
        let Progress { available, used } = progress(&ring.live.ram.map(), &ring.live.queue.state())?;
        let known = driver.inflight.is_some()
            || available == used
            || self.in_order(&ring.live.ram.map(), &ring.live.queue.state());
        known.then_some(used)
    }

    /// Whether chains of a ring came back in the order in which they were taken.
    pub(super) fn in_order(&self, map: &RamMap, queue: &QueueState) -> bool {
        self.wish.in_order || self.wish.knows == Knows::Missed && in_order(map, queue)
    }

    /// Goes on with a new back end.
    pub(super) fn adopt(&self, mut client: Client, offer: Offer) -> Result<(), BackError> {
        let Offer { theirs, features, protocol: agreed, config, back } = offer;
        let missing = self.offered & !features;
        if missing != 0 {
            let names = dial::names(missing, &[self.wish.names, feature::NAMES].concat());
            return Err(BackError::Lacks(format!("{names} any more")));
        }
        let mut talk = self.talk();
        if self.gone.load(Ordering::Relaxed) {
            return Err(BackError::Gone);
        }
        if talk.driver.inflight.is_some() && agreed & protocol::INFLIGHT_SHMFD == 0 {
            return Err(BackError::Lacks(dial::names(protocol::INFLIGHT_SHMFD, protocol::NAMES)));
        }
        let mut lost = Vec::new();
        talk.driver.theirs = theirs;
        if self.wish.knows == Knows::Vital && talk.driver.features.is_some() {
            // This one knows nothing of the driver, and has none of its rings.
            for ring in talk.driver.rings.iter_mut().flatten() {
                let used = progress(&ring.live.ram.map(), &ring.live.queue.state()).map(|p| p.used);
                ring.base = ring.base.or(used);
            }
        } else if let Some(grant) = self.grant.get() {
            talk.driver.begin(&mut client, agreed, &self.wish.sizes, &grant.ram.map())?;
            self.tell_written(&talk, &mut client)?;
            for index in 0..self.wish.sizes.len() {
                let driver = &mut talk.driver;
                let Some(ring) = driver.rings.get(index).and_then(Option::as_ref) else { continue };
                let Some(base) = self.base(driver, ring) else {
                    lost.push(index);
                    continue;
                };
                driver.serve(&mut client, index, base, &self.call(index)?, &self.error)?;
            }
        }
        (talk.client, talk.agreed, talk.back) = (Some(client), agreed, back);
        let running: Vec<_> =
            talk.driver.rings.iter().enumerate().filter(|(_, ring)| ring.is_some()).map(|(n, _)| n).collect();
        drop(talk);
        log::info!("{}: the back end at {} is back", self.wish.id, self.wish.way);
        self.record("back-end-back");
        let Some(link) = self.link() else { return Ok(()) };
        if !lost.is_empty() {
            guest_warn!(
                self.limit,
                "{}: queues {lost:?} had requests under way, and the back end does not offer {}: what became of them is not known",
                self.wish.id,
                dial::names(protocol::INFLIGHT_SHMFD, protocol::NAMES)
            );
            link.needs_reset();
        }
        for index in running {
            // An interrupt may have died with the other one. One too many does no harm.
            link.queue_used(index as u16);
        }
        self.show(&config);
        Ok(())
    }

    /// Tells a new back end what the driver wrote into the configuration space.
    pub(super) fn tell_written(&self, talk: &Talk, client: &mut Client) -> Result<(), BackError> {
        if talk.driver.features.is_none() {
            return Ok(());
        }
        let written = self.shown().written.clone();
        for (at, byte) in written {
            client.tell(request::SET_CONFIG, &config_body(at as u32, &[byte]), &[])?;
        }
        Ok(())
    }

    /// Shows the driver what changed of the configuration space.
    pub(super) fn show(&self, config: &[u8]) {
        if self.wish.config.told == Told::Live {
            self.link().inspect(|link| link.config_changed());
            return;
        }
        let changes = self.wish.config.changes.clone();
        let mut shown = self.shown();
        let Some((now, then)) = config.get(changes.clone()).zip(shown.bytes.get_mut(changes)) else { return };
        if now == then {
            return;
        }
        then.copy_from_slice(now);
        drop(shown);
        self.link().inspect(|link| link.config_changed());
    }
}
