//! One queue of a disk, on a thread of its own.
//!
//! ```text
//!   available ring ─ take ─► slots ─► engine ─ submit (one system call) ─► kernel
//!        used ring ◄─ answer (one interrupt a batch) ◄─ completions ◄─────────┘
//! ```
//!
//! A request holds a slot from when it is taken to when it is answered. Slots are numbered by us: what the driver writes into
//! its rings, the same chain twice for instance, can confuse the driver only.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use block::{Engine, MAX_DEPTH};
use device::ram::RamMap;
use device::{LiveQueue, Task, Watch, guest_warn};
use log::error;
use virtio_queue::{QueueState, QueueT};
use vmm_sys_util::epoll::EventSet;

use super::Shared;
use super::polling::Polling;
use super::request::{Operation, Pieces, Request, StatusByte, fill};
use super::wire::Status;
use crate::rate::Throttle;

/// Batches served in a row before the thread looks after other things, such as being told to stop.
const BUDGET: u32 = 64;

/// Bytes that may be under way at once, and served before the thread looks after other things; what goes past it is the last for now. Buffers may
/// overlap, so that a queue's requests can be for any number of times the guest's memory, and whoever stops the queue waits for those under way.
const MOST_BYTES: u64 = 256 << 20;

const KICK: u32 = 0;
const DONE: u32 = 1;
const LIMIT: u32 = 2;

/// What a request under way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// Changes the disk without being counted: zeroing.
    Change,
    Other,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Slot {
    head: u16,
    status: StatusByte,
    kind: Kind,
    length: u32,
    /// Bytes that are moved or zeroed.
    weight: u64,
    start: Instant,
    /// The request itself is done; what is under way is the flush that follows it.
    flushing: bool,
}

/// See the module.
pub(super) struct DiskQueue {
    live: LiveQueue,
    engine: Box<dyn Engine>,
    shared: Arc<Shared>,
    /// The way to wait when a limit is reached, if there is one.
    throttle: Option<Throttle>,
    polling: Polling,
    pieces: Pieces,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    /// The memory maps that requests under way were parsed with; the last one is the present one.
    maps: Vec<Arc<RamMap>>,
    /// Bytes of requests under way,
    under_way: u64,
    /// and of those taken since the thread looked after other things.
    served: u64,
    /// Slots whose write is done and must be flushed before it is answered.
    unflushed: Vec<u16>,
    /// Completions on their way from the engine to their slots; empty in between.
    done: Vec<(u64, io::Result<u32>)>,
    /// Requests answered of which the driver has not been told.
    answered: u32,
    /// The driver or the engine broke something; nothing is taken any more until the device is reset.
    broken: bool,
}

impl DiskQueue {
    pub(super) fn new(
        live: LiveQueue,
        engine: Box<dyn Engine>,
        shared: Arc<Shared>,
        throttle: Option<Throttle>,
        polling: Polling,
    ) -> Self {
        let depth = depth(live.queue.size());
        let maps = vec![live.ram.map()];
        DiskQueue {
            live,
            engine,
            shared,
            throttle,
            polling,
            pieces: Pieces::new(),
            slots: vec![None; usize::from(depth)],
            free: (0..depth).rev().collect(),
            maps,
            under_way: 0,
            served: 0,
            unflushed: Vec::with_capacity(usize::from(depth)),
            done: Vec::with_capacity(usize::from(depth)),
            answered: 0,
            broken: false,
        }
    }

    pub(super) fn state(&self) -> QueueState {
        self.live.state()
    }

    /// Takes and answers requests until there is nothing to do but to wait.
    fn serve(&mut self) {
        let mut promised = false;
        self.served = 0;
        self.update_map();
        let map = self.map();
        self.live.quiet(&*map);
        for _ in 0..BUDGET {
            let taken = self.take(&map);
            if promised && taken == 0 && self.can_take() {
                // The ring says that there is something, and it is not to be had.
                self.give_up("its available ring cannot be read");
            }
            let answered = self.collect(&map, false);
            if self.served >= MOST_BYTES {
                break;
            }
            if taken > 0 || answered > 0 {
                promised = false;
                continue;
            }
            if !promised && self.look(&map) {
                continue;
            }
            // With all slots taken there is no point in a kick: the next completion leads here as well.
            // So does the timer of a limit.
            promised = self.can_take() && self.live.listen(&*map);
            if !promised {
                return;
            }
        }
        if let Err(error) = self.live.kick.write(1) {
            error!("disk {}: cannot wake its own thread: {error}", self.shared.id);
        }
    }

    /// Looks for requests for a while, with kicks switched off, where that may pay. Tells whether there is one.
    ///
    /// Not while the kernel has something under way: that may need this processor, in a thread of the kernel's, and wakes us when it is done.
    fn look(&mut self, map: &RamMap) -> bool {
        if self.engine.in_flight() > 0 || !self.can_take() {
            return false;
        }
        let Some(until) = self.polling.begin(Instant::now) else { return false };
        loop {
            // A ring that cannot be read is for `take` to complain of.
            let offered = self.live.queue.avail_idx(map, Ordering::Acquire);
            if offered.is_ok_and(|next| next.0 != self.live.queue.next_avail()) {
                self.polling.found();
                return true;
            }
            if Instant::now() >= until {
                self.polling.in_vain();
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Whether a request could be served if there was one.
    fn can_take(&self) -> bool {
        self.has_room() && !self.broken && !self.throttle.as_ref().is_some_and(Throttle::is_waiting)
    }

    /// Whether one more request may be under way.
    fn has_room(&self) -> bool {
        !self.free.is_empty() && self.under_way < MOST_BYTES
    }

    fn map(&self) -> Arc<RamMap> {
        // There is always one: see `new` and `update_map`.
        self.maps.last().cloned().unwrap_or_else(|| self.live.ram.map())
    }

    /// Looks whether memory came or went. Maps are held as long as requests under way may point into them.
    fn update_map(&mut self) {
        let now = self.live.ram.map();
        if self.free.len() == self.slots.len() {
            self.maps.clear();
        }
        if !self.maps.last().is_some_and(|last| Arc::ptr_eq(last, &now)) {
            self.maps.push(now);
        }
    }

    /// Takes what is available and hands it to the kernel. Returns how many requests that were.
    fn take(&mut self, map: &RamMap) -> u32 {
        if !self.can_take() {
            return 0;
        }
        let start = Instant::now();
        let mut taken = 0;
        // Some are answered at once, and a driver on another processor may offer such faster than that.
        let most = u32::from(self.live.queue.size());
        while self.has_room() && self.served < MOST_BYTES && taken < most {
            if let Some(throttle) = &mut self.throttle
                && !throttle.may_go(start)
            {
                break;
            }
            let chain = match self.live.take(map) {
                Ok(chain) => chain,
                Err(error) => {
                    self.give_up(&error.to_string());
                    break;
                }
            };
            let Some(chain) = chain else { break };
            let head = chain.head_index();
            match self.pieces.parse(map, chain) {
                Ok(request) => self.begin(map, head, request, start),
                Err(error) => self.give_up(&error.to_string()),
            }
            taken += 1;
            if self.broken {
                break;
            }
        }
        if taken > 0 {
            self.submit();
        }
        taken
    }

    /// Gives a request to the engine, or answers it at once.
    fn begin(&mut self, map: &RamMap, head: u16, request: Request, start: Instant) {
        let Request { operation, status, length } = request;
        if let Some(throttle) = &self.throttle {
            let moves = matches!(operation, Operation::Read { .. } | Operation::Write { .. });
            throttle.count(start, if moves { length } else { 0 });
        }
        let kind = match self.admit(operation, length) {
            Ok(kind) => kind,
            Err(why) => return self.answer(map, head, status, why, failed_length(operation)),
        };
        if operation == Operation::Identify {
            // SAFETY: `map` is the one that the request was parsed with.
            let written = unsafe { fill(self.pieces.data(operation), &self.shared.known().serial) };
            // The status comes after the data; it counts only if there is no gap.
            let used = written + u32::from(u64::from(written) == length);
            return self.answer(map, head, status, Status::Ok, used);
        }
        let Some(index) = self.free.pop() else {
            return self.answer(map, head, status, Status::Error, failed_length(operation));
        };
        let weight = operation.zeroed().unwrap_or(length);
        self.under_way += weight;
        self.served += weight;
        // The chain's iterator keeps the sum below 4 GiB.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.slots[usize::from(index)] =
            Some(Slot { head, status, kind, length, weight, start, flushing: false });
        let token = u64::from(index);
        let data = self.pieces.data(operation);
        // SAFETY: the memory belongs to a map in `maps`, which stays there until the slot is free again.
        let queued = unsafe {
            match operation {
                Operation::Read { offset } => self.engine.read(offset, data, token),
                Operation::Write { offset } => self.engine.write(offset, data, token),
                Operation::Discard { offset, length } => self.engine.discard(offset, length, token),
                Operation::Zero { offset, length, may_free } => {
                    self.engine.zero(offset, length, may_free && self.shared.discard, token)
                }
                _ => self.engine.flush(token),
            }
        };
        if queued.is_err() {
            // Cannot be: the engine has as many places as there are slots.
            self.complete(map, token, Err(io::Error::from_raw_os_error(libc::EBUSY)));
        }
    }

    /// Whether a request may go on, and as what it counts.
    fn admit(&self, operation: Operation, length: u64) -> Result<Kind, Status> {
        let image = &self.shared.image;
        let (kind, allowed) = match operation {
            Operation::Read { offset } => (Kind::Read, image.may_read(offset, length)),
            Operation::Write { offset } => (Kind::Write, image.may_write(offset, length)),
            // What was not offered cannot be asked for, nor more at once than was said.
            Operation::Discard { length, .. } | Operation::Zero { length, .. }
                if image.most_zeroed().is_some_and(|most| length > most) =>
            {
                return Err(Status::Unsupported);
            }
            Operation::Discard { .. } if !self.shared.discard => return Err(Status::Unsupported),
            Operation::Zero { .. } if !self.shared.zeroes => return Err(Status::Unsupported),
            Operation::Discard { offset, length } => (Kind::Other, image.may_write(offset, length)),
            Operation::Zero { offset, length, .. } => (Kind::Change, image.may_write(offset, length)),
            Operation::Flush | Operation::Identify => (Kind::Other, Ok(())),
            Operation::Fail(why) => return Err(why),
        };
        allowed.map(|()| kind).map_err(|reason| {
            let Shared { id, limit, .. } = &*self.shared;
            guest_warn!(limit, "disk {id}: refused a request of the guest: {reason:?}");
            Status::Error
        })
    }

    fn submit(&mut self) {
        if let Err(error) = self.engine.submit() {
            self.engine_failed(&error);
        }
    }

    /// Collects completions, waiting for all of them if `wait`, and interrupts the driver if it wants that. Returns how many
    /// requests were answered since the last time.
    fn collect(&mut self, map: &RamMap, wait: bool) -> u32 {
        loop {
            // The engine reports to a closure, which cannot have the rest of us; results wait here in between.
            let mut done = std::mem::take(&mut self.done);
            let mut report = |token, result| done.push((token, result));
            let outcome =
                if wait { self.engine.drain(&mut report) } else { self.engine.completions(&mut report) };
            for (token, result) in done.drain(..) {
                self.complete(map, token, result);
            }
            self.done = done;
            if let Err(error) = outcome {
                self.engine_failed(&error);
                break;
            }
            if self.unflushed.is_empty() {
                break;
            }
            self.flush_writes(map);
        }
        let answered = std::mem::take(&mut self.answered);
        if answered > 0 && !self.broken {
            self.live.signal(map);
        }
        answered
    }

    /// Takes in the result of a request: answers it, or makes it durable first.
    fn complete(&mut self, map: &RamMap, token: u64, result: io::Result<u32>) {
        let Ok(index) = u16::try_from(token) else { return };
        let Some(place) = self.slots.get_mut(usize::from(index)) else { return };
        let Some(slot) = place else { return };
        let changes = matches!(slot.kind, Kind::Write | Kind::Change);
        if changes && !slot.flushing && result.is_ok() && self.shared.writes_through() {
            slot.flushing = true;
            self.unflushed.push(index);
            return;
        }
        let slot = *slot;
        *place = None;
        self.free.push(index);
        self.under_way -= slot.weight;
        let (status, used) = match result {
            Ok(_) => {
                let stats = &self.shared.stats[usize::from(self.live.index)];
                match slot.kind {
                    Kind::Read => stats.read.add(u64::from(slot.length), slot.start.elapsed()),
                    Kind::Write => stats.write.add(u64::from(slot.length), slot.start.elapsed()),
                    Kind::Change | Kind::Other => {}
                }
                (Status::Ok, if slot.kind == Kind::Read { slot.length.saturating_add(1) } else { 1 })
            }
            Err(error) => {
                let Shared { id, limit, image, .. } = &*self.shared;
                guest_warn!(limit, "disk {id}: I/O error on {}: {error}", image.path().display());
                let unsupported = error.raw_os_error() == Some(libc::EOPNOTSUPP);
                let status = if unsupported { Status::Unsupported } else { Status::Error };
                (status, u32::from(slot.kind != Kind::Read))
            }
        };
        self.answer(map, slot.head, slot.status, status, used);
    }

    /// Has the writes flushed that must be durable before they are answered (§5.2.6.2).
    fn flush_writes(&mut self, map: &RamMap) {
        while let Some(index) = self.unflushed.pop() {
            if self.engine.flush(u64::from(index)).is_err() {
                // Cannot be: its write has just made room.
                self.complete(map, u64::from(index), Err(io::Error::from_raw_os_error(libc::EBUSY)));
            }
        }
        self.submit();
    }

    /// Writes the status and hands the chain back. `used` is how many bytes were written from its start on without a gap.
    fn answer(&mut self, map: &RamMap, head: u16, byte: StatusByte, status: Status, used: u32) {
        // SAFETY: the map that the request was parsed with is in `maps` until no request is under way.
        unsafe { byte.set(status) };
        self.answered += 1;
        if self.broken {
            return;
        }
        if let Err(error) = self.live.give_back(map, head, used) {
            self.give_up(&error.to_string());
        }
    }

    /// The driver broke the rules: nothing more is taken until the device is reset.
    fn give_up(&mut self, why: &str) {
        guest_warn!(
            self.shared.limit,
            "disk {}: queue {} needs a reset: {why}",
            self.shared.id,
            self.live.index
        );
        self.broken = true;
        self.live.link.needs_reset();
    }

    fn engine_failed(&mut self, error: &io::Error) {
        error!(
            "disk {}: I/O on {} has broken down: {error}",
            self.shared.id,
            self.shared.image.path().display()
        );
        self.broken = true;
        self.live.link.needs_reset();
    }
}

/// Requests that a queue of this size may have under way.
pub(super) fn depth(queue_size: u16) -> u16 {
    queue_size.clamp(1, MAX_DEPTH as u16)
}

/// What is said to be written of a request that failed: the status byte, if nothing was to come before it.
fn failed_length(operation: Operation) -> u32 {
    let data_first = matches!(operation, Operation::Read { .. } | Operation::Identify | Operation::Fail(_));
    u32::from(!data_first)
}

impl Task for DiskQueue {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        // Edge-triggered: the kick's counter need not be read back.
        watch.add(self.live.kick.as_raw_fd(), KICK, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        if let Some(fd) = self.engine.event_fd() {
            watch.add(fd.as_raw_fd(), DONE, EventSet::IN)?;
        }
        if let Some(throttle) = &self.throttle {
            throttle.watch(watch, LIMIT)?;
        }
        self.serve();
        Ok(())
    }

    fn ready(&mut self, token: u32, _events: EventSet, _watch: &mut Watch<'_>) {
        if token == LIMIT
            && let Some(throttle) = &mut self.throttle
        {
            throttle.woken();
        }
        self.serve();
    }

    fn stop(&mut self) {
        let map = self.map();
        self.collect(&map, true);
    }
}
