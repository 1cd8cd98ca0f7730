//! Which writes are done at once, on the thread that submits them.
//!
//! Not every file system can take a write to the page cache without waiting, for a lock or its journal: ext4 cannot. A ring hands each such
//! write to a thread of the kernel's, and whoever waits for it is woken when it is done. For one write that costs more than the write
//! does, and for many hardly anything, since that thread works while ours looks after the queue. So a few writes are done at once, and
//! so are many of which one begins where the other ends, for they become one; the ring gets the others. It also gets all while the kernel
//! holds writers up, because too much is unwritten or the disk is slow: our thread has reads to serve.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::is_unsupported;
use super::slot::{Slot, Slots};
use crate::storage::Storage;
use crate::vectored::{self, Direction, Segment};

/// The most writes that are done at once, those that become one counted as one.
const FEW: usize = 4;

/// The most bytes of them together: this many for each, but at least and at most so many. To copy more takes longer than to wake another
/// thread, which may as well do it.
const BYTES: u64 = 8 << 10;
const BYTES_TOGETHER: (u64, u64) = (64 << 10, 1 << 20);

/// What takes longer has been held up.
const SLOW: Duration = Duration::from_millis(2);

/// How many times the ring gets what there is after a time that was slow, at least and at most.
const REST: (u32, u32) = (16, 4096);

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    /// Nothing yet.
    Unknown,
    /// A ring needs no thread for them, or they wait for the disk anyway.
    Ring,
    /// They cannot be done without waiting.
    Wait,
}

/// See the module.
pub(super) struct Prompt {
    writes: Writes,
    pace: Pace,
    /// Slots of writes that are to be submitted.
    held: Vec<u32>,
    /// The memory of the writes that are done as one.
    segments: Vec<Segment>,
}

impl Prompt {
    pub(super) fn new(storage: &Storage) -> Self {
        // Past the page cache a write waits for the disk.
        let writes = if storage.direct().is_some() { Writes::Ring } else { Writes::Unknown };
        Prompt { writes, pace: Pace::default(), held: Vec::new(), segments: Vec::new() }
    }

    /// Keeps a write until all are to be submitted; `false` if it is the ring's.
    pub(super) fn hold(&mut self, index: u32) -> bool {
        let holds = self.writes != Writes::Ring;
        if holds {
            self.held.push(index);
        }
        holds
    }

    /// Gives up the writes that are held.
    pub(super) fn release(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.held.drain(..)
    }

    /// Does the writes that are held, if that is to be done at once, and reports them. Those that stay held are the ring's, and so are those
    /// that fail, so that each has an error of its own.
    ///
    /// # Safety
    /// The memory that the slots name must be valid.
    pub(super) unsafe fn run(
        &mut self,
        storage: &Storage,
        slots: &mut Slots,
        done: &mut dyn FnMut(u64, io::Result<u32>),
    ) {
        let Some(first) = self.held.first() else { return };
        if self.writes == Writes::Unknown {
            // SAFETY: the caller's promise is the same.
            self.writes = unsafe { ask(storage.file(), &slots[*first]) };
        }
        // Who comes between the ring's writes waits for them.
        let busy = slots.writes() > self.held.len();
        if self.writes != Writes::Wait || busy || !self.pace.may() {
            return;
        }
        self.held.sort_unstable_by_key(|index| slots[*index].offset);
        if !are_few(&self.held, slots) {
            return;
        }
        let begun = Instant::now();
        let mut count = 0;
        while let Some(first) = self.held.get(count) {
            let offset = slots[*first].offset;
            let one = count + adjacent(&self.held[count..], slots);
            self.segments.clear();
            for index in &self.held[count..one] {
                self.segments.extend(slots[*index].memory());
            }
            // SAFETY: the caller's promise is the same.
            let result =
                unsafe { vectored::transfer(storage.file(), Direction::Write, offset, &mut self.segments) };
            if result.is_err() {
                break;
            }
            self.held[count..one].iter().for_each(|index| slots.succeed(*index, done));
            count = one;
        }
        self.held.drain(..count);
        self.pace.took(begun.elapsed());
    }
}

/// Whether these writes, in the order of their places, are few or become few.
fn are_few(held: &[u32], slots: &Slots) -> bool {
    let bytes: u64 = held.iter().map(|index| u64::from(slots[*index].size)).sum();
    let (mut rest, mut count) = (held, 0);
    while !rest.is_empty() && count <= FEW {
        rest = &rest[adjacent(rest, slots)..];
        count += 1;
    }
    let most = (BYTES * held.len() as u64).clamp(BYTES_TOGETHER.0, BYTES_TOGETHER.1);
    count <= FEW && bytes <= most
}

/// How many of these writes, from the first on, begin where the one before ends, the first included.
fn adjacent(held: &[u32], slots: &Slots) -> usize {
    let follows = |pair: &&[u32]| {
        let (one, next) = (&slots[pair[0]], &slots[pair[1]]);
        one.offset.checked_add(one.size.into()) == Some(next.offset)
    };
    1 + held.windows(2).take_while(follows).count()
}

/// Finds out whether a file takes writes without waiting, by one, which may or may not be done thereby.
///
/// # Safety
/// The memory that the slot names must be valid.
unsafe fn ask(file: &File, slot: &Slot) -> Writes {
    let Ok(position) = libc::off_t::try_from(slot.offset) else { return Writes::Ring };
    let segments = slot.rest();
    let (fd, vector) = (file.as_raw_fd(), segments.as_ptr().cast::<libc::iovec>());
    // SAFETY: `vector` points to so many iovecs (Segment is transparent), and the caller vouches for what they name.
    let moved =
        unsafe { libc::pwritev2(fd, vector, segments.len() as libc::c_int, position, libc::RWF_NOWAIT) };
    let refused = moved < 0 && is_unsupported(&io::Error::last_os_error());
    if refused { Writes::Wait } else { Writes::Ring }
}

/// How often writes are done at once: always while they are quick, and less and less often where they are not.
#[derive(Debug, Default)]
struct Pace {
    /// Times left that they are not.
    rest: u32,
    /// How many they were the last time: twice as many the next time, fewer again each time that writes are quick.
    rested: u32,
}

impl Pace {
    fn may(&mut self) -> bool {
        let may = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        may
    }

    fn took(&mut self, time: Duration) {
        if time < SLOW {
            self.rested = self.rested.saturating_sub(1 + self.rested / 8);
        } else {
            self.rested = (2 * self.rested).clamp(REST.0, REST.1);
            self.rest = self.rested;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::Operation;
    use super::*;

    /// How many of so many times writes are done at once, where `slow` says which take long.
    fn at_once(pace: &mut Pace, times: u32, slow: impl Fn(u32) -> bool) -> u32 {
        let one = |n| {
            let may = pace.may();
            if may {
                pace.took(if slow(n) { SLOW } else { SLOW / 100 });
            }
            u32::from(may)
        };
        (0..times).map(one).sum()
    }

    #[test]
    fn quick_writes_are_all_done_at_once() {
        assert_eq!(at_once(&mut Pace::default(), 1000, |_| false), 1000);
    }

    #[test]
    fn one_that_is_slow_now_and_then_changes_little() {
        assert!(at_once(&mut Pace::default(), 100_000, |n| n % 500 == 0) > 95_000);
    }

    #[test]
    fn where_writes_are_held_up_hardly_one_is_done_at_once() {
        let mut pace = Pace::default();
        assert!(at_once(&mut pace, 100_000, |_| true) < 40);
        // And when it is over, all are soon again.
        at_once(&mut pace, 5000, |_| false);
        assert_eq!(at_once(&mut pace, 1000, |_| false), 1000);
    }

    #[test]
    fn writes_that_follow_each_other_count_as_one() {
        let mut slots = Slots::new(16);
        let mut memory = vec![0; 8192];
        let mut taken = |offset: u64, size: u32| {
            let segment = Segment::new(memory.as_mut_ptr(), size as usize);
            let operation = Operation::Transfer(Direction::Write, 0);
            slots.take(operation, offset, offset, size, std::iter::once(segment)).unwrap()
        };
        let row: Vec<u32> = (0..8).map(|n| taken(n * 4096, 4096)).collect();
        let others = [taken(1 << 20, 8192), taken((1 << 20) + 8192, 512), taken(2 << 20, 512)];
        let (far, last) = (taken(3 << 20, 512), taken(u64::MAX - 511, 512));
        assert_eq!((adjacent(&row, &slots), adjacent(&others, &slots)), (8, 2));
        assert_eq!(adjacent(&[last, row[0]], &slots), 1);
        assert!(are_few(&[&row[..], &others, &[far]].concat(), &slots));
        assert!(!are_few(&[&row[..], &others, &[far, last]].concat(), &slots));
        assert_eq!(slots.writes(), 13);
    }
}
