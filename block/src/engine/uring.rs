//! The io_uring engine: one ring per queue, one system call per batch.
//!
//! A request holds a slot from when it is queued until it is reported, and has at most one entry in the ring at any
//! time; so neither queue of the ring can overflow. What comes back short is continued from where it stopped.
//!
//! The ring is made disabled and enabled by the first `submit`: from then on it belongs to that thread (single issuer), and
//! the kernel does completion work only when that thread makes a system call anyway (cooperative task run) instead of
//! interrupting it. Putting it off further (deferred task run) would spare little and cost the poller: nobody who polls
//! the ring's descriptor is woken for work that is put off, so an eventfd would be needed, with a read per wake-up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::{Engine, Ready, Refused, is_unsupported, needs_detour, transfer_now, transfer_size, zero_modes};
use crate::Image;
use crate::geometry::PUNCH;
use crate::vectored::{self, Direction, MAX_SEGMENTS, Segment};

/// How often a request that the kernel sends back as "try again" is resubmitted before it fails.
const MAX_RETRIES: u8 = 100;

/// How often, and after what pause, a submission that the kernel has no memory for is repeated.
const SUBMIT_RETRIES: u32 = 1000;
const SUBMIT_PAUSE: Duration = Duration::from_millis(1);

/// The image's place in the table of registered files.
const FILE: types::Fixed = types::Fixed(0);

/// What a slot is doing.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Transfer(Direction),
    Flush,
    Discard {
        len: u64,
    },
    /// Zero a range, with the named `fallocate` mode, or else the other one.
    Zero {
        len: u64,
        mode: i32,
        other: Option<i32>,
    },
}

/// One request.
struct Slot {
    operation: Operation,
    token: u64,
    /// Where the rest begins.
    offset: u64,
    /// Bytes of the whole request, for the report.
    size: u32,
    /// The memory; those before `first` are used up. Kept for the next request, so that there is nothing to allocate.
    segments: Vec<Segment>,
    first: usize,
    retries: u8,
}

/// See the module.
pub(super) struct Uring {
    image: Arc<Image>,
    ring: IoUring,
    enabled: bool,
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: Ready,
}

/// Tries to make a ring and looks whether it knows the operations that are needed.
pub(super) fn probe() -> io::Result<()> {
    let ring = make_ring(1)?;
    if !ring.params().is_feature_nodrop() || !ring.params().is_feature_submit_stable() {
        return Err(io::Error::other("the kernel is too old"));
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let codes = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    match codes.iter().find(|code| !probe.is_supported(**code)) {
        Some(code) => Err(io::Error::other(format!("the kernel lacks operation {code}"))),
        None => Ok(()),
    }
}

/// A disabled ring, with the best flags that the kernel takes.
fn make_ring(entries: u32) -> io::Result<IoUring> {
    let mut best = IoUring::builder();
    // Linux 6.0
    best.setup_submit_all().setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    let mut plain = IoUring::builder();
    // Linux 5.10
    let attempts =
        [&mut best, &mut plain].map(|builder| builder.setup_r_disabled().dontfork().build(entries));
    let mut last = Err(io::Error::from(io::ErrorKind::Unsupported));
    for attempt in attempts {
        match attempt {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Err(error),
            result => return result,
        }
    }
    last
}

impl Uring {
    pub(super) fn new(image: &Arc<Image>, depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth).map_err(io::Error::other)?;
        let ring = make_ring(entries.next_power_of_two())?;
        ring.submitter().register_files(&[image.file().as_raw_fd()])?;
        let slot = || Slot {
            operation: Operation::Flush,
            token: 0,
            offset: 0,
            size: 0,
            segments: Vec::new(),
            first: 0,
            retries: 0,
        };
        Ok(Uring {
            image: image.clone(),
            ring,
            enabled: false,
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..entries).rev().collect(),
            ready: Vec::new(),
        })
    }

    /// Takes a slot and queues its first step.
    fn queue(
        &mut self,
        operation: Operation,
        token: u64,
        offset: u64,
        size: u32,
        segments: impl Iterator<Item = Segment>,
    ) -> Result<(), Refused> {
        if self.in_flight() >= self.slots.len() {
            return Err(Refused);
        }
        let index = self.free.pop().ok_or(Refused)?;
        let slot = &mut self.slots[index as usize];
        slot.segments.clear();
        slot.segments.extend(segments.filter(|segment| !segment.is_empty()));
        (slot.operation, slot.token, slot.offset, slot.size) = (operation, token, offset, size);
        (slot.first, slot.retries) = (0, 0);
        if slot.finished() {
            return self.finish_now(index, Ok(size));
        }
        let entry = slot.entry(index);
        push(&mut self.ring.submission(), &entry);
        Ok(())
    }

    /// Gives a slot back and keeps its result until it is asked for.
    fn finish_now(&mut self, index: u32, result: io::Result<u32>) -> Result<(), Refused> {
        self.ready.push((self.slots[index as usize].token, result));
        self.free.push(index);
        Ok(())
    }

    /// Keeps a result for a request that never took a slot.
    fn done_at_once(&mut self, token: u64, result: io::Result<u32>) -> Result<(), Refused> {
        self.ready.push((token, result));
        Ok(())
    }

    /// Queues a transfer, or does it at once if it must make the detour.
    ///
    /// # Safety
    /// As for [`Engine::read`] and [`Engine::write`].
    unsafe fn transfer(
        &mut self,
        direction: Direction,
        offset: u64,
        segments: &[Segment],
        token: u64,
    ) -> Result<(), Refused> {
        if self.in_flight() >= self.slots.len() {
            return Err(Refused);
        }
        let size = match transfer_size(segments) {
            Ok(size) => size,
            Err(error) => return self.done_at_once(token, Err(error)),
        };
        if needs_detour(&self.image, offset, segments) {
            // SAFETY: the caller's promise covers this call.
            let result = unsafe { transfer_now(&self.image, direction, offset, segments) };
            return self.done_at_once(token, result);
        }
        self.queue(Operation::Transfer(direction), token, offset, size, segments.iter().copied())
    }

    /// The first use makes this thread the owner of the ring.
    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Submits all that is queued and waits until at least `wait` requests are finished.
    fn enter(&mut self, wait: usize) -> io::Result<()> {
        self.enable()?;
        let mut pauses = 0;
        loop {
            match self.ring.submit_and_wait(wait) {
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
                        && pauses < SUBMIT_RETRIES =>
                {
                    pauses += 1;
                    std::thread::sleep(SUBMIT_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes finished entries from the ring, reports those whose requests are complete, and queues the rest of the others.
    /// Returns whether there are any of those.
    fn reap(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> bool {
        let (_, mut submission, completion) = self.ring.split();
        let mut more = false;
        for entry in completion {
            let Ok(index) = u32::try_from(entry.user_data()) else { continue };
            let Some(slot) = self.slots.get_mut(index as usize) else { continue };
            match slot.step(entry.result()) {
                Some(result) => {
                    let token = slot.token;
                    self.free.push(index);
                    done(token, result);
                }
                None => {
                    push(&mut submission, &slot.entry(index));
                    more = true;
                }
            }
        }
        more
    }
}

/// Puts an entry into the submission queue.
fn push(queue: &mut squeue::SubmissionQueue<'_>, entry: &squeue::Entry) {
    // SAFETY: the memory that the entry names is the slot's vector of segments, which is not touched while the entry is in
    // the ring, and what those name, for which the caller of `read` or `write` vouches.
    let pushed = unsafe { queue.push(entry) };
    // There are as many slots as the ring has room, and a slot has one entry at most.
    debug_assert!(pushed.is_ok());
}

impl Slot {
    /// Whether nothing is left to be done.
    fn finished(&self) -> bool {
        match self.operation {
            Operation::Transfer(_) => self.first >= self.segments.len(),
            Operation::Flush => false,
            Operation::Discard { len } | Operation::Zero { len, .. } => len == 0,
        }
    }

    /// The next step as the kernel wants it.
    fn entry(&self, index: u32) -> squeue::Entry {
        let entry = match self.operation {
            Operation::Transfer(direction) => self.transfer_entry(direction),
            Operation::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::Discard { len } => {
                opcode::Fallocate::new(FILE, len).offset(self.offset).mode(PUNCH).build()
            }
            Operation::Zero { len, mode, .. } => {
                opcode::Fallocate::new(FILE, len).offset(self.offset).mode(mode).build()
            }
        };
        entry.user_data(u64::from(index))
    }

    fn transfer_entry(&self, direction: Direction) -> squeue::Entry {
        let rest = &self.segments[self.first..];
        // A single segment spares the kernel the import of a vector.
        if let [only] = rest
            && let Ok(len) = u32::try_from(only.len())
        {
            return match direction {
                Direction::Read => opcode::Read::new(FILE, only.base(), len).offset(self.offset).build(),
                Direction::Write => opcode::Write::new(FILE, only.base(), len).offset(self.offset).build(),
            };
        }
        let count = rest.len().min(MAX_SEGMENTS) as u32;
        let vector = rest.as_ptr().cast::<libc::iovec>();
        match direction {
            Direction::Read => opcode::Readv::new(FILE, vector, count).offset(self.offset).build(),
            Direction::Write => opcode::Writev::new(FILE, vector, count).offset(self.offset).build(),
        }
    }

    /// Takes in the result of a step. Returns that of the whole request, or `None` if another step is needed.
    fn step(&mut self, result: i32) -> Option<io::Result<u32>> {
        let moved = match usize::try_from(result) {
            Ok(moved) => moved,
            Err(_) => return self.failed(io::Error::from_raw_os_error(-result)),
        };
        let Operation::Transfer(direction) = self.operation else {
            return Some(Ok(0));
        };
        if moved == 0 {
            return Some(Err(vectored::short(direction)));
        }
        self.retries = 0;
        self.offset += moved as u64;
        self.first = vectored::advance(&mut self.segments, self.first, moved);
        self.finished().then_some(Ok(self.size))
    }

    /// Takes in a failure: tries again, or by other means, or gives up.
    fn failed(&mut self, error: io::Error) -> Option<io::Result<u32>> {
        match (self.operation, error.raw_os_error()) {
            (_, Some(libc::EAGAIN | libc::EINTR)) if self.retries < MAX_RETRIES => {
                self.retries += 1;
                None
            }
            (Operation::Zero { len, other: Some(mode), .. }, _) if is_unsupported(&error) => {
                self.operation = Operation::Zero { len, mode, other: None };
                None
            }
            _ => Some(Err(error)),
        }
    }
}

impl Engine for Uring {
    unsafe fn read(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Read, offset, segments, token) }
    }

    unsafe fn write(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Write, offset, segments, token) }
    }

    fn flush(&mut self, token: u64) -> Result<(), Refused> {
        self.queue(Operation::Flush, token, 0, 0, std::iter::empty())
    }

    fn discard(&mut self, offset: u64, len: u64, token: u64) -> Result<(), Refused> {
        self.queue(Operation::Discard { len }, token, offset, 0, std::iter::empty())
    }

    fn zero(&mut self, offset: u64, len: u64, may_free: bool, token: u64) -> Result<(), Refused> {
        let [mode, other] = zero_modes(may_free);
        self.queue(Operation::Zero { len, mode, other: Some(other) }, token, offset, 0, std::iter::empty())
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() { Ok(()) } else { self.enter(0) }
    }

    fn completions(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        self.ready.drain(..).for_each(|(token, result)| done(token, result));
        loop {
            // Completion work that the kernel has put off is done inside a system call.
            if self.enabled && self.ring.submission().taskrun() {
                self.enter(0)?;
            }
            if !self.reap(done) {
                return Ok(());
            }
            self.enter(0)?;
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring's descriptor is open as long as the ring, which the result borrows.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.ready.len()
    }

    fn drain(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        loop {
            self.completions(done)?;
            if self.in_flight() == 0 {
                return Ok(());
            }
            self.enter(1)?;
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.in_flight() == 0 {
            return;
        }
        if let Err(error) = self.drain(&mut |_, _| {}) {
            // The kernel may still write to memory that is about to be freed, and there is no way to wait for it.
            log::error!("cannot wait for I/O on {}: {error}", self.image.path().display());
            std::process::abort();
        }
    }
}
