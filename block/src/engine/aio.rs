//! The engine for kernels that do not let us use io_uring: Linux AIO, `io_submit(2)`.
//!
//! The kernel carries out a request in the background only if the file is open for direct I/O, or if it makes things durable; others
//! are finished when they are submitted. Holes and zeros have no operation there, and are made at once.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::slot::{Operation, Slot, Slots, Step};
use super::{
    Engine, FileEngine, Files, Ready, Refused, needs_detour, punch_now, transfer_now, transfer_size, zero_now,
};
use crate::vectored::{Direction, Segment};

// From <linux/aio_abi.h>.
const IOCB_CMD_FDSYNC: u16 = 3;
const IOCB_CMD_PREADV: u16 = 7;
const IOCB_CMD_PWRITEV: u16 = 8;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb`, in the order of fields that little-endian machines have.
#[cfg(target_endian = "little")]
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    count: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// Completions fetched by one system call.
const BATCH: usize = 64;

/// `aio_context_t`.
struct Context(libc::c_ulong);

impl Context {
    fn new(depth: u32) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word through the pointer, which is valid for the call.
        check(unsafe { libc::syscall(libc::SYS_io_setup, libc::c_ulong::from(depth), &raw mut context) })?;
        Ok(Context(context))
    }

    /// Submits `blocks`; returns how many the kernel took, from the first on.
    fn submit(&self, blocks: &mut [*mut Iocb]) -> io::Result<usize> {
        let count = libc::c_long::try_from(blocks.len()).map_err(io::Error::other)?;
        // SAFETY: the pointers lead to control blocks of the caller's, which the kernel copies; what those name is vouched for by
        // the caller of `Engine::read` and `write`.
        check(unsafe { libc::syscall(libc::SYS_io_submit, self.0, count, blocks.as_mut_ptr()) })
    }

    /// Fetches completions, waiting until there are `least`.
    fn events(&self, least: usize, events: &mut [Event]) -> io::Result<usize> {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let time = if least == 0 { &raw mut now } else { std::ptr::null_mut() };
        loop {
            // SAFETY: the kernel writes at most as many events as there are, and reads the time.
            let got = check(unsafe {
                let (least, most) = (least as libc::c_long, events.len() as libc::c_long);
                libc::syscall(libc::SYS_io_getevents, self.0, least, most, events.as_mut_ptr(), time)
            });
            match got {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                got => return got,
            }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context was made in `new` and is destroyed once. This waits for requests under way.
        if let Err(error) = check(unsafe { libc::syscall(libc::SYS_io_destroy, self.0) }) {
            log::error!("cannot destroy an AIO context: {error}");
        }
    }
}

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// See the module.
pub(super) struct Aio {
    files: Files,
    context: Context,
    /// Made readable by each completion.
    event: OwnedFd,
    slots: Slots,
    /// A control block for each slot.
    blocks: Vec<Iocb>,
    /// Slots whose control blocks are to be submitted.
    queued: Vec<u32>,
    pointers: Vec<*mut Iocb>,
    ready: Ready,
}

// SAFETY: the pointers are rebuilt for each submission and mean nothing in between.
unsafe impl Send for Aio {}

/// Whether the kernel has AIO for us.
pub(super) fn probe() -> io::Result<()> {
    Context::new(1).map(drop)
}

impl Aio {
    pub(super) fn new(files: &Files, depth: usize) -> io::Result<Self> {
        let count = u32::try_from(depth).map_err(io::Error::other)?;
        // SAFETY: no pointers; a new descriptor or an error comes back.
        let event = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into())?;
        let event = i32::try_from(event).map_err(io::Error::other)?;
        Ok(Aio {
            files: files.clone(),
            context: Context::new(count)?,
            // SAFETY: it was opened just now and belongs to nobody else.
            event: unsafe { OwnedFd::from_raw_fd(event) },
            slots: Slots::new(count),
            blocks: vec![Iocb::default(); depth],
            queued: Vec::with_capacity(depth),
            pointers: Vec::with_capacity(depth),
            ready: Ready::new(),
        })
    }

    fn queue(
        &mut self,
        operation: Operation,
        token: u64,
        offset: u64,
        size: u32,
        segments: &[Segment],
    ) -> Result<(), Refused> {
        let index =
            self.slots.take(operation, token, offset, size, segments.iter().copied()).ok_or(Refused)?;
        if self.slots[index].finished() {
            self.slots.give_back(index);
            return self.done_at_once(token, Ok(size));
        }
        self.queued.push(index);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.in_flight() >= self.slots.len()
    }

    fn done_at_once(&mut self, token: u64, result: io::Result<u32>) -> Result<(), Refused> {
        self.ready.push((token, result));
        Ok(())
    }

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
        if self.is_full() {
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
        self.queue(Operation::Transfer(direction, file), token, offset, size, segments)
    }

    fn block(&self, slot: &Slot, index: u32) -> Iocb {
        let (opcode, segments, file) = match slot.operation {
            Operation::Transfer(Direction::Read, file) => (IOCB_CMD_PREADV, slot.rest(), file),
            Operation::Transfer(Direction::Write, file) => (IOCB_CMD_PWRITEV, slot.rest(), file),
            _ => (IOCB_CMD_FDSYNC, &[][..], 0),
        };
        let memory = if segments.is_empty() { 0 } else { segments.as_ptr() as u64 };
        Iocb {
            data: index.into(),
            opcode,
            fd: self.files.get(file).file().as_raw_fd().cast_unsigned(),
            buffer: memory,
            count: segments.len() as u64,
            // A larger offset than that is one of a file that cannot be; the kernel says so.
            offset: i64::try_from(slot.offset).unwrap_or(i64::MAX),
            flags: IOCB_FLAG_RESFD,
            result_fd: self.event.as_raw_fd().cast_unsigned(),
            ..Iocb::default()
        }
    }

    /// Takes in the result of a step.
    fn step(&mut self, index: u32, result: i64, done: &mut dyn FnMut(u64, io::Result<u32>)) {
        let result = i32::try_from(result).unwrap_or(i32::MIN + 1);
        match self.slots.step(index, result) {
            Step::Done(token, result) => done(token, result),
            Step::Again(_) => self.queued.push(index),
            Step::Unknown => {}
        }
    }

    /// Requests that the kernel has.
    fn submitted(&self) -> usize {
        self.slots.taken() - self.queued.len()
    }

    /// Fetches completions, waiting for one if `wait`.
    fn reap(&mut self, wait: bool, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        let mut events = [Event::default(); BATCH];
        let mut least = usize::from(wait);
        while self.submitted() > 0 {
            let count = self.context.events(least, &mut events)?;
            for event in &events[..count] {
                if let Ok(index) = u32::try_from(event.data) {
                    self.step(index, event.result, done);
                }
            }
            if count < BATCH {
                break;
            }
            least = 0;
        }
        Ok(())
    }
}

impl FileEngine for Aio {
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

impl Engine for Aio {
    unsafe fn read(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Read, 0, offset, segments, token) }
    }

    unsafe fn write(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Write, 0, offset, segments, token) }
    }

    fn flush(&mut self, token: u64) -> Result<(), Refused> {
        if self.is_full() { Err(Refused) } else { self.queue(Operation::Flush, token, 0, 0, &[]) }
    }

    fn discard(&mut self, offset: u64, len: u64, token: u64) -> Result<(), Refused> {
        if self.is_full() {
            return Err(Refused);
        }
        let result = punch_now(self.files.own(), offset, len);
        self.done_at_once(token, result.map(|()| 0))
    }

    fn zero(&mut self, offset: u64, len: u64, may_free: bool, token: u64) -> Result<(), Refused> {
        if self.is_full() {
            return Err(Refused);
        }
        let result = zero_now(self.files.own(), offset, len, may_free);
        self.done_at_once(token, result.map(|()| 0))
    }

    fn submit(&mut self) -> io::Result<()> {
        while !self.queued.is_empty() {
            self.pointers.clear();
            for &index in &self.queued {
                self.blocks[index as usize] = self.block(&self.slots[index], index);
                self.pointers.push(&raw mut self.blocks[index as usize]);
            }
            match self.context.submit(&mut self.pointers) {
                Ok(count) => drop(self.queued.drain(..count.min(self.queued.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No room for now: what comes back makes some, and if nothing is to come back there will be none.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && self.submitted() > 0 => {
                    let mut ready = std::mem::take(&mut self.ready);
                    let reaped = self.reap(true, &mut |token, result| ready.push((token, result)));
                    self.ready = ready;
                    reaped?;
                }
                // The kernel dislikes the first of them; the others are none the worse for it.
                Err(error) => {
                    let index = self.queued.remove(0);
                    let result = match self.slots[index].operation {
                        // Not every file system can do this in the background.
                        Operation::Flush => self.files.own().file().sync_data().map(|()| 0),
                        _ => Err(error),
                    };
                    let code = match result {
                        Ok(moved) => moved,
                        Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EIO)),
                    };
                    let mut ready = std::mem::take(&mut self.ready);
                    self.step(index, code, &mut |token, result| ready.push((token, result)));
                    self.ready = ready;
                }
            }
        }
        Ok(())
    }

    fn completions(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        loop {
            self.ready.drain(..).for_each(|(token, result)| done(token, result));
            if self.submitted() > 0 {
                // First the signal, then what it is for: what comes in between signals anew.
                let mut count = MaybeUninit::<u64>::uninit();
                // SAFETY: the kernel writes at most eight bytes to memory of ours. That there was nothing to read does not matter.
                let _ = unsafe { libc::read(self.event.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
                self.reap(false, done)?;
            }
            if self.queued.is_empty() && self.ready.is_empty() {
                return Ok(());
            }
            self.submit()?;
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.slots.taken() + self.ready.len()
    }

    fn drain(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        loop {
            self.submit()?;
            self.completions(done)?;
            if self.in_flight() == 0 {
                return Ok(());
            }
            self.reap(true, done)?;
        }
    }
}

/// How many requests all contexts of the host may have under way together, and how many they have; for messages.
pub(super) fn host_limit() -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/fs/{name}")).unwrap_or_default();
    format!("fs.aio-nr is {}, fs.aio-max-nr is {}", read("aio-nr").trim(), read("aio-max-nr").trim())
}
