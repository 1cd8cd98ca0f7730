//! The metadata service of a card: frames of the driver's that are for it do not reach the tap, and its own come to the driver as if from
//! there, in the first pair's queue.
//!
//! Whoever transmits hands a frame over; the thread of the first pair does everything else, when it is told ([`Service::tell`]) or a time is
//! over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metadata::{Endpoint, Head, Pace, Store, is_for_service};
use net_util::VNET_HDR_LEN;
use spec::{RateLimit, Refusal, TokenBucket};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::held::Held;
use crate::buffers::{Gathered, kick_again};
use crate::rate::Limiter;

/// Requests that a card answers: a hundred a second, and as many at once.
const RATE: TokenBucket = TokenBucket { size: 400, one_time_burst: None, refill_time: 4000 };

/// See the module.
pub(super) struct Service {
    endpoint: Mutex<Endpoint>,
    /// Something came or went since the endpoint was last looked at.
    changed: AtomicBool,
    /// A frame waits for the driver.
    waits: AtomicBool,
    /// Told when something is to be looked at.
    pub(super) given: EventFd,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

impl Pace for Limiter {
    fn pause(&self, now: Instant) -> Option<Duration> {
        Limiter::pause(self, now)
    }

    fn count(&self, now: Instant, bytes: u64) {
        Limiter::count(self, now, bytes);
    }
}

impl Service {
    /// The service on a card with this MTU.
    ///
    /// # Errors
    /// The host has no descriptor or no random numbers left.
    pub(super) fn new(store: Arc<Store>, mtu: Option<u16>) -> Result<Self, Refusal> {
        let failed = |e| Refusal::host("Cannot set up the metadata service", e);
        let given = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed)?;
        let pace = Limiter::new(&RateLimit::of_operations(RATE))
            .ok_or_else(|| Refusal::new(spec::Kind::Bug, "the metadata service has no limit"))?;
        let endpoint = Endpoint::new(store, pace, mtu).map_err(failed)?;
        let (changed, waits) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Service { endpoint: Mutex::new(endpoint), changed, waits, given })
    }

    fn endpoint(&self) -> MutexGuard<'_, Endpoint> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what an earlier driver began.
    pub(super) fn clear(&self) {
        self.endpoint().clear();
        self.waits.store(false, Ordering::Release);
    }

    /// Takes a frame of the driver's, with the device's header in front, if it is for the service; tells whether it was. A frame that goes
    /// to the tap costs a look at its first bytes.
    pub(super) fn take(&self, frame: &Gathered<'_>, now: Instant) -> bool {
        let head = Head::read(|at, bytes| frame.read(VNET_HDR_LEN + at, bytes));
        let head = head.bytes();
        if !is_for_service(head) {
            return false;
        }
        // At most the largest frame, which is for as long as it takes to read it. What was looked at is not read again.
        let mut bytes = vec![0; frame.length() - VNET_HDR_LEN];
        frame.read(VNET_HDR_LEN, &mut bytes);
        bytes[..head.len()].copy_from_slice(head);
        let mut endpoint = self.endpoint();
        endpoint.take(&bytes, now);
        self.waits.store(endpoint.has_frame(), Ordering::Release);
        self.changed();
        true
    }

    /// Something came or went.
    pub(super) fn changed(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// Tells the thread of the first pair, if there is something for it to look at.
    pub(super) fn tell(&self) {
        if self.changed.load(Ordering::Acquire) {
            kick_again(&self.given);
        }
    }

    /// Whether a frame waits for the driver.
    pub(super) fn has_frame(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Does what is due if something changed, and tells how long nothing else will be: `Some(None)` is for ever.
    pub(super) fn follow(&self, now: Instant) -> Option<Option<Duration>> {
        self.changed.swap(false, Ordering::AcqRel).then(|| {
            let mut endpoint = self.endpoint();
            let wait = endpoint.poll(now);
            self.waits.store(endpoint.has_frame(), Ordering::Release);
            wait
        })
    }

    /// Gives a frame to the driver, if one waits.
    pub(super) fn give(&self, held: &mut Held, now: Instant) {
        if !self.has_frame() {
            return;
        }
        let mut endpoint = self.endpoint();
        if let Some(frame) = endpoint.next_frame(now) {
            held.put(&frame);
            self.changed();
        }
        self.waits.store(endpoint.has_frame(), Ordering::Release);
    }
}
