//! Limits of bandwidth and operations.
//!
//! A [`Limiter`] belongs to one device or to several and is asked by every thread that serves a queue; a [`Throttle`] is such a
//! thread's way to wait for it. A bucket is one number, the moment up to which everything taken from it is paid for, so that threads
//! share it without a lock:
//!
//! ```text
//!        credit, at most a quarter of `size`          debt: nothing is served
//!   ─────────┬────────── paid ──────────┬─ now ─┬────────── paid ──────────►  time
//! ```
//!
//! A request is served while there is no debt, and then costs what it costs, however large it is: the size of a request is known
//! only when it has been taken, and a request larger than the bucket must not wait for ever. In the long run the rate is exact.
//!
//! Nothing here allocates, blocks, or knows what a token buys.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use device::build::Kept;
use device::{DeviceError, Watch};
use log::error;
use sandbox::{Call, Set};
use spec::{Facts, RateLimit, TokenBucket};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

/// Parts of a nanosecond in which time is counted, so that the price of a small request is not rounded away.
const TICKS: u64 = 16;

const TICKS_PER_MILLISECOND: u64 = 1_000_000 * TICKS;

/// A device that waits does so for at least this long, and then serves what has become possible in one go.
const SLICE: u64 = TICKS_PER_MILLISECOND;

/// The part of a bucket that a device may have saved up while it was idle. All of it would make the rate wrong by a tenth over ten
/// seconds for a bucket of one second.
const SAVED: u64 = 4;

/// Longest time to wait before looking again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// One bucket.
#[derive(Debug)]
struct Bucket {
    /// Tokens that come only once.
    burst: AtomicU64,
    /// Everything taken is paid for at this moment.
    paid: AtomicU64,
    size: u64,
    /// Time that `size` tokens take to come.
    refill: u64,
}

impl Bucket {
    fn new(limit: TokenBucket) -> Self {
        // A longer time than a century is as good as for ever.
        let refill = limit.refill_time.saturating_mul(TICKS_PER_MILLISECOND).min(u64::MAX / 4);
        let burst = AtomicU64::new(limit.one_time_burst.unwrap_or(0));
        Bucket { burst, paid: AtomicU64::new(0), size: limit.size.max(1), refill }
    }

    fn credit(&self) -> u64 {
        self.refill / SAVED
    }

    /// How long there will be debt; 0 if there is none.
    fn debt(&self, now: u64) -> u64 {
        if self.burst.load(Relaxed) > 0 { 0 } else { self.paid.load(Relaxed).saturating_sub(now) }
    }

    fn take(&self, now: u64, tokens: u64) {
        let mut rest = tokens;
        if self.burst.load(Relaxed) > 0 {
            let before = self.burst.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(tokens)));
            rest -= before.unwrap_or(0).min(rest);
        }
        if rest > 0 {
            let price = u128::from(rest) * u128::from(self.refill) / u128::from(self.size);
            let price = u64::try_from(price).unwrap_or(u64::MAX);
            let oldest = now.saturating_sub(self.credit());
            // The closure never refuses.
            let _ =
                self.paid.fetch_update(Relaxed, Relaxed, |paid| Some(paid.max(oldest).saturating_add(price)));
        }
    }

    /// How long to wait beyond the end of the debt, so that a batch is worth waking up for.
    fn slice(&self) -> u64 {
        SLICE.min(self.credit() / 2)
    }
}

/// Limits of bandwidth and operations.
#[derive(Debug)]
pub(crate) struct Limiter {
    begin: Instant,
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// The limiter that keeps these limits; `None` if there are none.
    pub(crate) fn new(limits: &RateLimit) -> Option<Arc<Self>> {
        let bandwidth = limits.bandwidth().map(Bucket::new);
        let operations = limits.operations().map(Bucket::new);
        let any = bandwidth.is_some() || operations.is_some();
        any.then(|| Arc::new(Limiter { begin: Instant::now(), bandwidth, operations }))
    }

    /// The limiter of a device that has limits of its own or shares those of a group. A group's is kept, for the group's devices
    /// to share it.
    pub(crate) fn find(
        own: &RateLimit,
        group: Option<&str>,
        facts: &Facts,
        kept: &Kept,
    ) -> Option<Arc<Self>> {
        let Some(id) = group else { return Limiter::new(own) };
        let group = facts.rate_limit_groups.iter().find(|group| group.id == id)?;
        // No device has such a name.
        kept.keep(&format!("__rate_limit_group {id}"), || Limiter::new(&group.limits).ok_or(())).ok()
    }

    /// The present, counted from a moment at which the buckets have had the time to fill.
    fn ticks(&self, now: Instant) -> u64 {
        let credit = self.buckets().map(Bucket::credit).max().unwrap_or(0);
        let since = now.saturating_duration_since(self.begin).as_nanos().saturating_mul(u128::from(TICKS));
        u64::try_from(since).unwrap_or(u64::MAX).saturating_add(credit)
    }

    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.bandwidth.iter().chain(&self.operations)
    }

    /// How long nothing may be served; `None` if something may be at once.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        let now = self.ticks(now);
        let wait = |bucket: &Bucket| match bucket.debt(now) {
            0 => 0,
            debt => debt.saturating_add(bucket.slice()),
        };
        let ticks = self.buckets().map(wait).max().unwrap_or(0);
        (ticks > 0).then(|| Duration::from_nanos(ticks / TICKS + 1).min(LONGEST_WAIT))
    }

    /// Counts one operation that moves so many bytes.
    pub(crate) fn count(&self, now: Instant, bytes: u64) {
        let now = self.ticks(now);
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.take(now, bytes);
        }
        if let Some(operations) = &self.operations {
            operations.take(now, 1);
        }
    }
}

/// The system call by which a [`Throttle`] is made.
pub(crate) const MAKE: Set = &[Call::any(libc::SYS_timerfd_create)];

/// The one by which it waits.
pub(crate) const WAIT: Set = &[Call::any(libc::SYS_timerfd_settime)];

/// One thread's way to wait for a [`Limiter`].
pub(crate) struct Throttle {
    limiter: Arc<Limiter>,
    timer: TimerFd,
    waiting: bool,
}

impl Throttle {
    /// # Errors
    /// No timer could be had.
    pub(crate) fn new(limiter: Arc<Limiter>) -> Result<Self, DeviceError> {
        let timer =
            TimerFd::new().map_err(|e| DeviceError::new("cannot make a timer", io::Error::from(e)))?;
        Ok(Throttle { limiter, timer, waiting: false })
    }

    /// Has the task told when it may go on.
    ///
    /// # Errors
    /// What epoll answered.
    pub(crate) fn watch(&self, watch: &mut Watch<'_>, token: u32) -> io::Result<()> {
        // Edge-triggered: the timer need not be read.
        watch.add(self.timer.as_raw_fd(), token, EventSet::IN | EventSet::EDGE_TRIGGERED)
    }

    /// Whether nothing may be served before the timer has gone off.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether something may be served. If not, the timer is set.
    pub(crate) fn may_go(&mut self, now: Instant) -> bool {
        if !self.waiting
            && let Some(pause) = self.limiter.pause(now)
        {
            match self.timer.reset(pause, None) {
                Ok(()) => self.waiting = true,
                // Rather no limit than a queue that nobody serves any more.
                Err(e) => error!("cannot set a timer: {e}"),
            }
        }
        !self.waiting
    }

    /// The timer has gone off.
    pub(crate) fn woken(&mut self) {
        self.waiting = false;
    }

    /// Counts an operation: see [`Limiter::count`].
    pub(crate) fn count(&self, now: Instant, bytes: u64) {
        self.limiter.count(now, bytes);
    }
}

#[cfg(test)]
mod tests;
