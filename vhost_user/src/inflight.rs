//! The area in which it is written down which requests are under way (vhost-user, "Inflight I/O tracking", split rings).
//!
//! The front end keeps it when this process dies, and shows it to the next one, which then knows which of the chains that were taken have
//! not been given back. The order of the writes here is what makes that hold at whatever instruction the process is killed.
//!
//! The front end has the area too and may write anything into it: numbers from it are checked each time they are used.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use device::Ledger;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use crate::PeerError;
use crate::fault::Guard;
use crate::memory::map_file;
use crate::wire::{InflightBody, MAX_QUEUES};

/// Version of the layout.
const VERSION: u16 = 1;

/// What is said of a ring: features, version, size, head of the last batch, used index.
const RING: usize = 16;
const RING_VERSION: usize = 8;
const RING_SIZE: usize = 10;
const RING_LAST: usize = 12;
const RING_USED: usize = 14;

/// What is said of a chain: whether it is under way, the next one of a batch, and when it was taken.
const CHAIN: usize = 16;
const CHAIN_NEXT: usize = 6;
const CHAIN_COUNTER: usize = 8;

/// Rings begin at multiples of this.
const ALIGN: usize = 64;

/// Bytes of one ring's part.
fn stride(queue_size: u16) -> usize {
    (RING + CHAIN * usize::from(queue_size)).next_multiple_of(ALIGN)
}

/// The area, mapped.
#[derive(Debug)]
pub(crate) struct Area {
    /// Before the mapping, which must not go first.
    _guard: Guard,
    mapping: MmapRegion<()>,
    queues: u16,
    queue_size: u16,
}

impl Area {
    /// A new area for that many rings, and its file.
    pub(crate) fn create(queues: u16, queue_size: u16) -> Result<(InflightBody, OwnedFd), PeerError> {
        let failed = |e: std::io::Error| PeerError::Inflight(e.to_string());
        if queues == 0 || usize::from(queues) > MAX_QUEUES || !(1..=32768).contains(&queue_size) {
            return Err(PeerError::Inflight(format!("{queues} rings of {queue_size}")));
        }
        let size = stride(queue_size) as u64 * u64::from(queues);
        // SAFETY: the name is a C string.
        let fd = unsafe {
            libc::memfd_create(c"vhost-user-inflight".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd < 0 {
            return Err(failed(std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and ours.
        let file = unsafe { std::fs::File::from_raw_fd(fd) };
        file.set_len(size).map_err(failed)?;
        // SAFETY: fcntl with plain integers on an open descriptor.
        let sealed = unsafe {
            libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)
        };
        if sealed != 0 {
            return Err(failed(std::io::Error::last_os_error()));
        }
        Ok((InflightBody { size, offset: 0, queues, queue_size }, file.into()))
    }

    /// Maps an area that a front end kept; `bell` rings when it takes it away.
    pub(crate) fn open(body: InflightBody, file: OwnedFd, bell: &EventFd) -> Result<Arc<Area>, PeerError> {
        let InflightBody { size, offset, queues, queue_size } = body;
        let needed = stride(queue_size) as u64 * u64::from(queues);
        if queues == 0 || queue_size == 0 || size < needed {
            return Err(PeerError::Inflight(format!("{size} bytes for {queues} rings of {queue_size}")));
        }
        let mapping = map_file(file, offset, needed).map_err(PeerError::Inflight)?;
        let guard = Guard::new(mapping.as_ptr(), mapping.size(), bell)
            .map_err(|e| PeerError::Inflight(e.to_string()))?;
        Ok(Arc::new(Area { _guard: guard, mapping, queues, queue_size }))
    }

    /// The part of a ring of this size.
    pub(crate) fn ring(self: &Arc<Self>, index: usize, size: u16) -> Result<Record, PeerError> {
        if index >= usize::from(self.queues) || size > self.queue_size {
            let Area { queues, queue_size, .. } = **self;
            let what = format!("ring {index} of {size} in an area for {queues} rings of {queue_size}");
            return Err(PeerError::Inflight(what));
        }
        Ok(Record { area: self.clone(), base: index * stride(self.queue_size), size, counter: 0 })
    }
}

/// The record of one ring.
#[derive(Debug)]
pub(crate) struct Record {
    area: Arc<Area>,
    base: usize,
    size: u16,
    /// Of the chain to be taken next.
    counter: u64,
}

macro_rules! field {
    ($name:ident, $atomic:ty) => {
        fn $name(&self, offset: usize) -> &$atomic {
            debug_assert!(offset + size_of::<$atomic>() <= RING + CHAIN * usize::from(self.size));
            let at = self.area.mapping.as_ptr().wrapping_add(self.base + offset);
            // SAFETY: within the mapping, as `Area::ring` and the bounds of `chain` see to, and mapped as long as `self` is. Rings
            // and fields in them begin at multiples of their size. The front end may change it at any time, hence atomic.
            unsafe { <$atomic>::from_ptr(at.cast()) }
        }
    };
}

impl Record {
    field!(u8, AtomicU8);
    field!(u16, AtomicU16);
    field!(u64, AtomicU64);

    /// Where a chain is written down, if there is such a chain.
    fn chain(&self, head: u16) -> Option<usize> {
        (head < self.size).then(|| RING + CHAIN * usize::from(head))
    }

    /// Writes down that nothing is under way: the ring was stopped in order, and what the device did not answer it has given up.
    pub(crate) fn settle(&self) {
        for chain in (0..self.size).filter_map(|head| self.chain(head)) {
            self.u8(chain).store(0, Ordering::Release);
        }
    }

    /// Finds out which chains were taken and not given back, in the order in which they were taken, given the used ring's present index.
    /// `None` if nothing was ever written down: this is the area's first use.
    pub(crate) fn recover(&mut self, used: u16) -> Option<Vec<u16>> {
        let fresh = self.u16(RING_VERSION).load(Ordering::Acquire) != VERSION;
        if fresh {
            self.u16(RING_SIZE).store(self.size, Ordering::Relaxed);
            self.u16(RING_USED).store(used, Ordering::Relaxed);
            self.u16(RING_VERSION).store(VERSION, Ordering::Release);
            return None;
        }
        // What became visible to the driver last may not have been crossed out.
        let batch = used.wrapping_sub(self.u16(RING_USED).load(Ordering::Acquire));
        let mut head = self.u16(RING_LAST).load(Ordering::Acquire);
        for _ in 0..batch.min(self.size) {
            let Some(chain) = self.chain(head) else { break };
            self.u8(chain).store(0, Ordering::Release);
            head = self.u16(chain + CHAIN_NEXT).load(Ordering::Acquire);
        }
        self.u16(RING_USED).store(used, Ordering::Release);
        let mut under_way: Vec<(u64, u16)> = (0..self.size)
            .filter_map(|head| {
                let chain = self.chain(head)?;
                let is = self.u8(chain).load(Ordering::Acquire) == 1;
                is.then(|| (self.u64(chain + CHAIN_COUNTER).load(Ordering::Acquire), head))
            })
            .collect();
        under_way.sort_unstable();
        self.counter = under_way.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Some(under_way.into_iter().map(|(_, head)| head).collect())
    }
}

impl Ledger for Record {
    fn taken(&mut self, head: u16) {
        let Some(chain) = self.chain(head) else { return };
        self.u64(chain + CHAIN_COUNTER).store(self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.u8(chain).store(1, Ordering::Release);
    }

    fn giving_back(&mut self, head: u16) {
        let Some(chain) = self.chain(head) else { return };
        // A batch of one: the one before is not in it.
        let last = self.u16(RING_LAST).load(Ordering::Relaxed);
        self.u16(chain + CHAIN_NEXT).store(last, Ordering::Release);
        self.u16(RING_LAST).store(head, Ordering::Release);
    }

    fn given_back(&mut self, head: u16, index: u16) {
        let Some(chain) = self.chain(head) else { return };
        self.u8(chain).store(0, Ordering::Release);
        self.u16(RING_USED).store(index, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn area(queues: u16, size: u16) -> (InflightBody, std::fs::File) {
        let (body, file) = Area::create(queues, size).unwrap();
        (body, file.into())
    }

    fn open(body: InflightBody, file: &std::fs::File) -> Result<Arc<Area>, PeerError> {
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        Area::open(body, file.try_clone().unwrap().into(), &bell)
    }

    #[test]
    fn what_was_not_given_back_is_found_again_in_order() {
        let (body, file) = area(2, 8);
        for ring in 0..2 {
            let mut record = open(body, &file).unwrap().ring(ring, 8).unwrap();
            assert_eq!(record.recover(5), None, "first use");
            for head in [3, 1, 7, 0] {
                record.taken(head);
            }
            record.giving_back(7);
            record.given_back(7, 6);
            let mut record = open(body, &file).unwrap().ring(ring, 8).unwrap();
            assert_eq!(record.recover(6), Some(vec![3, 1, 0]));
            record.taken(7);
            assert_eq!(record.recover(6), Some(vec![3, 1, 0, 7]), "later than those before");
        }
    }

    /// Killed between any two writes, a chain is under way exactly if the driver has not seen it come back.
    #[test]
    fn a_death_in_the_middle_of_giving_back_loses_and_repeats_nothing() {
        let (body, file) = area(1, 4);
        let mut record = open(body, &file).unwrap().ring(0, 4).unwrap();
        record.recover(0);
        record.taken(2);
        record.taken(3);
        record.giving_back(2);
        // Died before the used ring's index moved, and after.
        assert_eq!(open(body, &file).unwrap().ring(0, 4).unwrap().recover(0), Some(vec![2, 3]));
        assert_eq!(open(body, &file).unwrap().ring(0, 4).unwrap().recover(1), Some(vec![3]));
    }

    #[test]
    fn an_area_that_lies_is_refused_or_harmless() {
        let (body, file) = area(1, 8);
        for bad in [
            InflightBody { size: 1, ..body },
            InflightBody { queues: 0, ..body },
            InflightBody { queues: u16::MAX, size: u64::MAX, ..body },
            InflightBody { queue_size: u16::MAX, size: u64::MAX, ..body },
            InflightBody { offset: u64::MAX, ..body },
            InflightBody { offset: 4096, ..body },
            InflightBody { offset: 1, ..body },
        ] {
            assert!(open(bad, &file).is_err(), "{bad:?}");
        }
        let area = open(body, &file).unwrap();
        assert!(area.ring(1, 8).is_err());
        assert!(area.ring(0, 9).is_err());
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 16 + 8 * 16], 0).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &1u16.to_ne_bytes(), 8).unwrap();
        let mut record = area.ring(0, 8).unwrap();
        assert_eq!(record.recover(100), Some(vec![]), "nothing but 1 means that a chain is under way");
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 16 + 8 * 16], 0).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &1u16.to_ne_bytes(), 8).unwrap();
        assert!(record.recover(0x101).unwrap().len() <= 8);
        for (queues, size) in [(0, 8), (1, 0), (257, 8), (1, 32769)] {
            assert!(Area::create(queues, size).is_err());
        }
    }
}
