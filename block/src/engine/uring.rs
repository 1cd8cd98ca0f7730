//! The io_uring engine: one ring per queue, one system call per batch, but for writes that a ring cannot do well (`prompt`).
//!
//! A request holds a slot from when it is queued until it is reported, and has at most one entry in the ring at any
//! time; so neither queue of the ring can overflow. What comes back short is continued from where it stopped.
//!
//! The ring is made disabled and enabled by the first `submit`: from then on it belongs to that thread (single issuer), and
//! the kernel does completion work only when that thread makes a system call anyway (cooperative task run) instead of
//! interrupting it. Putting it off further (deferred task run) would spare little and cost the poller: nobody who polls
//! the ring's descriptor is woken for work that is put off, so an eventfd would be needed, with a read per wake-up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::prompt::Prompt;
use super::slot::{Operation, Slot, Slots, Step};
use super::{
    Engine, FileEngine, Files, Ready, Refused, needs_detour, transfer_now, transfer_size, zero_modes,
};
use crate::geometry::PUNCH;
use crate::vectored::{Direction, Segment};

/// How often, and after what pause, a submission that the kernel has no memory for is repeated.
const SUBMIT_RETRIES: u32 = 1000;
const SUBMIT_PAUSE: Duration = Duration::from_millis(1);

/// The operations that are needed.
const OPERATIONS: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// The place of the image's own file in the table of registered files.
const FILE: types::Fixed = types::Fixed(0);

/// See the module.
pub(super) struct Uring {
    files: Files,
    ring: IoUring,
    enabled: bool,
    slots: Slots,
    ready: Ready,
    prompt: Prompt,
}

/// Tries to make a ring and looks whether it knows the operations that are needed.
pub(super) fn probe() -> io::Result<()> {
    let ring = make_ring(1)?;
    if !ring.params().is_feature_nodrop() || !ring.params().is_feature_submit_stable() {
        return Err(io::Error::other("the kernel is too old"));
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    match OPERATIONS.iter().find(|code| !probe.is_supported(**code)) {
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

/// Has a ring refuse all but the operations that are needed, on these files. No filter of system calls sees what a ring is asked.
fn restrict(ring: &IoUring, files: &[RawFd]) -> io::Result<()> {
    ring.submitter().register_files(files)?;
    let mut allowed = Vec::from(OPERATIONS.map(Restriction::sqe_op));
    allowed.push(Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()));
    allowed.push(Restriction::sqe_flags_allowed(squeue::Flags::FIXED_FILE.bits()));
    ring.submitter().register_restrictions(&mut allowed)
}

impl Uring {
    pub(super) fn new(files: &Files, depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth).map_err(io::Error::other)?;
        let ring = make_ring(entries.next_power_of_two())?;
        let descriptors: Vec<_> = files.iter().map(|storage| storage.file().as_raw_fd()).collect();
        restrict(&ring, &descriptors)?;
        Ok(Uring {
            files: files.clone(),
            ring,
            enabled: false,
            slots: Slots::new(entries),
            ready: Vec::new(),
            prompt: Prompt::new(files.own()),
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
        let index = self.slots.take(operation, token, offset, size, segments).ok_or(Refused)?;
        let slot = &self.slots[index];
        if slot.finished() {
            self.slots.give_back(index);
            return self.done_at_once(token, Ok(size));
        }
        // What an image builds upon is never written.
        if matches!(operation, Operation::Transfer(Direction::Write, _)) && self.prompt.hold(index) {
            return Ok(());
        }
        let entry = entry(slot, index);
        push(&mut self.ring.submission(), &entry);
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
        file: u32,
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
        if needs_detour(self.files.get(file), offset, segments) {
            // SAFETY: the caller's promise covers this call.
            let result = unsafe { transfer_now(self.files.get(file), direction, offset, segments) };
            return self.done_at_once(token, result);
        }
        self.queue(Operation::Transfer(direction, file), token, offset, size, segments.iter().copied())
    }

    /// The first use makes this thread the owner of the ring.
    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Does the writes that are done at once, and puts the others into the ring.
    fn settle_writes(&mut self) {
        let Uring { files, slots, ready, prompt, ring, .. } = self;
        // SAFETY: whoever queued the writes vouches for their memory until they are reported.
        unsafe { prompt.run(files.own(), slots, &mut |token, result| ready.push((token, result))) };
        for index in prompt.release() {
            push(&mut ring.submission(), &entry(&slots[index], index));
        }
    }

    /// Submits all that is in the ring and waits until at least `wait` requests are finished.
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
            match self.slots.step(index, entry.result()) {
                Step::Done(token, result) => done(token, result),
                Step::Again(slot) => {
                    push(&mut submission, &self::entry(slot, index));
                    more = true;
                }
                Step::Unknown => {}
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

/// The next step of a request as the kernel wants it.
fn entry(slot: &Slot, index: u32) -> squeue::Entry {
    let entry = match slot.operation {
        Operation::Transfer(direction, file) => transfer_entry(slot, direction, types::Fixed(file)),
        Operation::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Discard { len } => {
            opcode::Fallocate::new(FILE, len).offset(slot.offset).mode(PUNCH).build()
        }
        Operation::Zero { len, mode, .. } => {
            opcode::Fallocate::new(FILE, len).offset(slot.offset).mode(mode).build()
        }
    };
    entry.user_data(u64::from(index))
}

fn transfer_entry(slot: &Slot, direction: Direction, file: types::Fixed) -> squeue::Entry {
    let rest = slot.rest();
    // A single segment spares the kernel the import of a vector.
    if let [only] = rest
        && let Ok(len) = u32::try_from(only.len())
    {
        return match direction {
            Direction::Read => opcode::Read::new(file, only.base(), len).offset(slot.offset).build(),
            Direction::Write => opcode::Write::new(file, only.base(), len).offset(slot.offset).build(),
        };
    }
    let vector = rest.as_ptr().cast::<libc::iovec>();
    match direction {
        Direction::Read => opcode::Readv::new(file, vector, rest.len() as u32).offset(slot.offset).build(),
        Direction::Write => opcode::Writev::new(file, vector, rest.len() as u32).offset(slot.offset).build(),
    }
}

impl FileEngine for Uring {
    unsafe fn read_from(
        &mut self,
        file: u32,
        offset: u64,
        segments: &[Segment],
        token: u64,
    ) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Read, file, offset, segments, token) }
    }
}

impl Engine for Uring {
    unsafe fn read(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Read, 0, offset, segments, token) }
    }

    unsafe fn write(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Write, 0, offset, segments, token) }
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
        self.settle_writes();
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
        self.slots.taken() + self.ready.len()
    }

    fn drain(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        self.settle_writes();
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
            log::error!("cannot wait for I/O on {}: {error}", self.files.own().path().display());
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_refuses_what_disks_have_no_need_of() {
        if !super::super::io_uring_available() {
            eprintln!("SKIPPED: restrictions of rings: this kernel has no io_uring for us");
            return;
        }
        let file = std::fs::File::open("/dev/zero").unwrap();
        let other = types::Fd(file.as_raw_fd());
        let mut ring = make_ring(4).unwrap();
        restrict(&ring, &[file.as_raw_fd()]).unwrap();
        ring.submitter().register_enable_rings().unwrap();
        let mut bytes = [1u8; 8];
        let here = bytes.as_mut_ptr();
        for (entry, answer) in [
            (opcode::Read::new(FILE, here, 8).build(), 8),
            // A file that was not registered, and operations that bring others.
            (opcode::Read::new(other, here, 8).build(), -libc::EACCES),
            (opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build(), -libc::EACCES),
            (opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(), -libc::EACCES),
            (opcode::Nop::new().build(), -libc::EACCES),
        ] {
            push(&mut ring.submission(), &entry);
            ring.submit_and_wait(1).unwrap();
            let result = ring.completion().next().map(|done| done.result());
            assert_eq!(result, Some(answer), "{entry:?}");
        }
        assert_eq!(bytes, [0; 8]);
        // Nor does it take other files.
        let taken = ring.submitter().register_files_update(0, &[file.as_raw_fd()]);
        assert_eq!(taken.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
