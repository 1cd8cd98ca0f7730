//! Requests that a kernel interface has in its hands, one step at a time.
//!
//! A step may move less than was asked for, or be sent back; then another one follows. Nothing here makes a system call.

use std::io;
use std::ops::Index;

use super::is_unsupported;
use crate::vectored::{self, Direction, MAX_SEGMENTS, Segment};

/// How often a request that the kernel sends back as "try again" is resubmitted before it fails.
const MAX_RETRIES: u8 = 100;

/// What a slot is doing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    /// With the number of the file.
    Transfer(Direction, u32),
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
pub(super) struct Slot {
    pub(super) operation: Operation,
    token: u64,
    /// Where the rest begins.
    pub(super) offset: u64,
    /// Bytes of the whole request, for the report.
    pub(super) size: u32,
    /// The memory; those before `first` are used up. Kept for the next request, so that there is nothing to allocate.
    segments: Vec<Segment>,
    first: usize,
    retries: u8,
}

/// What follows a step.
pub(super) enum Step<'a> {
    /// The request is finished, and its slot free: its token and result.
    Done(u64, io::Result<u32>),
    /// Another step of this slot.
    Again(&'a Slot),
    /// There is no such slot.
    Unknown,
}

/// The slots of one engine.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Those in use for writes.
    writes: usize,
}

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        let slot = || Slot {
            operation: Operation::Flush,
            token: 0,
            offset: 0,
            size: 0,
            segments: Vec::new(),
            first: 0,
            retries: 0,
        };
        Slots { slots: (0..count).map(|_| slot()).collect(), free: (0..count).rev().collect(), writes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many are not free.
    pub(super) fn taken(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many of those are writes.
    pub(super) fn writes(&self) -> usize {
        self.writes
    }

    /// Takes a free slot for a request.
    pub(super) fn take(
        &mut self,
        operation: Operation,
        token: u64,
        offset: u64,
        size: u32,
        segments: impl Iterator<Item = Segment>,
    ) -> Option<u32> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[index as usize];
        slot.segments.clear();
        slot.segments.extend(segments.filter(|segment| !segment.is_empty()));
        (slot.operation, slot.token, slot.offset, slot.size) = (operation, token, offset, size);
        (slot.first, slot.retries) = (0, 0);
        self.writes += usize::from(slot.is_write());
        Some(index)
    }

    /// Frees a slot.
    pub(super) fn give_back(&mut self, index: u32) {
        self.writes -= usize::from(self[index].is_write());
        self.free.push(index);
    }

    /// Frees the slot of a request that has been carried out by others, and reports it.
    pub(super) fn succeed(&mut self, index: u32, done: &mut dyn FnMut(u64, io::Result<u32>)) {
        let Slot { token, size, .. } = self[index];
        self.give_back(index);
        done(token, Ok(size));
    }

    /// Takes in what the kernel says of a slot's step: a length, or an error number below zero.
    pub(super) fn step(&mut self, index: u32, result: i32) -> Step<'_> {
        let Some(slot) = self.slots.get_mut(index as usize) else { return Step::Unknown };
        let token = slot.token;
        match slot.step(result) {
            Some(result) => {
                self.give_back(index);
                Step::Done(token, result)
            }
            None => Step::Again(&self[index]),
        }
    }
}

impl Index<u32> for Slots {
    type Output = Slot;

    fn index(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }
}

impl Slot {
    /// Whether nothing is left to be done.
    pub(super) fn finished(&self) -> bool {
        match self.operation {
            Operation::Transfer(..) => self.first >= self.segments.len(),
            Operation::Flush => false,
            Operation::Discard { len } | Operation::Zero { len, .. } => len == 0,
        }
    }

    fn is_write(&self) -> bool {
        matches!(self.operation, Operation::Transfer(Direction::Write, _))
    }

    /// All memory that is left.
    pub(super) fn memory(&self) -> &[Segment] {
        &self.segments[self.first..]
    }

    /// The memory of the next step.
    pub(super) fn rest(&self) -> &[Segment] {
        let rest = self.memory();
        &rest[..rest.len().min(MAX_SEGMENTS)]
    }

    /// Takes in the result of a step. Returns that of the whole request, or `None` if another step is needed.
    fn step(&mut self, result: i32) -> Option<io::Result<u32>> {
        let moved = match usize::try_from(result) {
            Ok(moved) => moved,
            Err(_) => return self.failed(io::Error::from_raw_os_error(-result)),
        };
        let Operation::Transfer(direction, _) = self.operation else {
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
