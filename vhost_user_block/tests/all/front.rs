//! A front end: the protocol by the crate `vhost`, memory and rings by hand.
//!
//! Memory and rings outlive a connection, as a guest does when its back end dies.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::daemon::PATIENCE;

/// Bytes of guest memory, in two regions of which the second lies higher for the guest.
pub(crate) const MEMORY: u64 = 32 << 20;
pub(crate) const HALF: u64 = MEMORY / 2;
pub(crate) const HIGH: u64 = 4 << 30;

/// Where a queue's parts are within its part of memory, which has `QUEUE` bytes.
const QUEUE: u64 = 1 << 20;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
const HEADERS: u64 = 0x10000;

pub(crate) const SECTOR: u64 = 512;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const PROTOCOL: u64 = 1 << 30;

pub(crate) fn memfd(bytes: u64) -> File {
    // SAFETY: the name is a C string; the descriptor is new.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(bytes).unwrap();
    file
}

/// Shared memory of a guest.
pub(crate) struct Memory {
    pub(crate) file: File,
    map: MmapRegion<()>,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        let file = memfd(MEMORY);
        let map =
            MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), MEMORY as usize).unwrap();
        Memory { file, map }
    }

    /// Our own address of a byte.
    pub(crate) fn user(&self, at: u64) -> u64 {
        self.map.as_ptr() as u64 + at
    }

    /// The guest's.
    pub(crate) fn guest(at: u64) -> u64 {
        if at < HALF { at } else { HIGH + at - HALF }
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= MEMORY);
        // SAFETY: within the mapping.
        unsafe { self.map.as_ptr().add(at as usize).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    pub(crate) fn get(&self, at: u64, length: usize) -> Vec<u8> {
        assert!(at + length as u64 <= MEMORY);
        let mut bytes = vec![0; length];
        // SAFETY: within the mapping.
        unsafe { bytes.as_mut_ptr().copy_from(self.map.as_ptr().add(at as usize), length) };
        bytes
    }

    pub(crate) fn word(&self, at: u64) -> &AtomicU16 {
        assert!(at.is_multiple_of(2) && at < MEMORY);
        // SAFETY: aligned and within the mapping, which lives as long as `self`.
        unsafe { AtomicU16::from_ptr(self.map.as_ptr().add(at as usize).cast()) }
    }

    pub(crate) fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
        [0, HALF].map(|at| VhostUserMemoryRegionInfo {
            guest_phys_addr: Memory::guest(at),
            memory_size: HALF,
            userspace_addr: self.user(at),
            mmap_offset: at,
            mmap_handle: self.file.as_raw_fd(),
        })
    }
}

/// The driver's half of a queue.
pub(crate) struct Queue {
    pub(crate) size: u16,
    pub(crate) base: u64,
    pub(crate) offered: u16,
    pub(crate) seen: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    /// How often each head has come back.
    pub(crate) returned: Vec<u32>,
}

/// Kinds of requests.
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;

impl Queue {
    pub(crate) fn new(index: usize, size: u16) -> Queue {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Queue {
            size,
            base: index as u64 * QUEUE,
            offered: 0,
            seen: 0,
            kick: event(),
            call: event(),
            returned: vec![0; usize::from(size)],
        }
    }

    /// Requests that fit at once.
    pub(crate) fn depth(&self) -> u16 {
        self.size / 3
    }

    /// Makes a request available: the `slot`-th, with data at `data` in memory.
    pub(crate) fn offer(&mut self, memory: &Memory, slot: u16, kind: u32, sector: u64, data: (u64, u32)) {
        let header = self.base + HEADERS + 32 * u64::from(slot);
        memory.put(header, &kind.to_le_bytes());
        memory.put(header + 8, &sector.to_le_bytes());
        memory.put(header + 16, &[0xff]);
        let (at, length) = data;
        let writes = if kind == OUT { 0 } else { 2 };
        let mut parts = vec![(header, 16, 0u16), (at, length, writes), (header + 16, 1, 2)];
        if length == 0 {
            parts.remove(1);
        }
        for (n, (at, length, flags)) in parts.iter().enumerate() {
            let index = slot * 3 + n as u16;
            let next = u16::from(n + 1 < parts.len());
            let place = self.base + 16 * u64::from(index);
            memory.put(place, &Memory::guest(*at).to_le_bytes());
            memory.put(place + 8, &length.to_le_bytes());
            memory.put(place + 12, &(flags | next).to_le_bytes());
            memory.put(place + 14, &(index + 1).to_le_bytes());
        }
        let ring = self.base + AVAILABLE;
        let entry = ring + 4 + 2 * u64::from(self.offered % self.size);
        memory.word(entry).store(slot * 3, Ordering::Relaxed);
        self.offered = self.offered.wrapping_add(1);
        memory.word(ring + 2).store(self.offered, Ordering::SeqCst);
        // With EVENT_IDX: ring for every buffer.
        memory.word(ring + 4 + 2 * u64::from(self.size)).store(self.seen, Ordering::SeqCst);
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next slot that came back, with its status, if one did.
    pub(crate) fn poll(&mut self, memory: &Memory) -> Option<(u16, u8)> {
        let ring = self.base + USED;
        let index = memory.word(ring + 2).load(Ordering::SeqCst);
        if index == self.seen {
            return None;
        }
        let entry = ring + 4 + 8 * u64::from(self.seen % self.size);
        let head = memory.word(entry).load(Ordering::SeqCst);
        self.seen = self.seen.wrapping_add(1);
        assert_eq!(head % 3, 0, "a head that was never offered");
        self.returned[usize::from(head)] += 1;
        let slot = head / 3;
        Some((slot, memory.get(self.base + HEADERS + 32 * u64::from(slot) + 16, 1)[0]))
    }

    /// Waits for the next one.
    #[track_caller]
    pub(crate) fn wait(&mut self, memory: &Memory) -> (u16, u8) {
        let begun = Instant::now();
        loop {
            if let Some(done) = self.poll(memory) {
                return done;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing comes back");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits to be rung.
    #[track_caller]
    pub(crate) fn wait_call(&self) {
        let begun = Instant::now();
        while self.call.read().is_err() {
            assert!(begun.elapsed() < PATIENCE, "nobody rings");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// One request and its status.
    #[track_caller]
    pub(crate) fn ask(&mut self, memory: &Memory, kind: u32, sector: u64, data: (u64, u32)) -> u8 {
        self.offer(memory, 0, kind, sector, data);
        self.kick();
        let (slot, status) = self.wait(memory);
        assert_eq!(slot, 0);
        status
    }
}

/// A connection.
pub(crate) struct Front {
    pub(crate) socket: Frontend,
    pub(crate) features: u64,
}

impl Front {
    /// Connects and agrees on features.
    pub(crate) fn connect(path: &Path, accept: u64) -> Front {
        let mut socket = Frontend::connect(path, 256).unwrap();
        socket.set_owner().unwrap();
        let features = socket.get_features().unwrap() & (accept | VERSION_1 | PROTOCOL);
        assert_ne!(features & PROTOCOL, 0);
        let protocol = socket.get_protocol_features().unwrap();
        socket.set_protocol_features(protocol).unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
        socket.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        socket.set_features(features).unwrap();
        Front { socket, features }
    }

    /// Shares memory and starts the queues from where they are.
    pub(crate) fn start(&mut self, memory: &Memory, queues: &[Queue]) {
        self.socket.set_mem_table(&memory.regions()).unwrap();
        for (i, queue) in queues.iter().enumerate() {
            self.start_queue(memory, i, queue, queue.seen);
        }
    }

    pub(crate) fn start_queue(&mut self, memory: &Memory, i: usize, queue: &Queue, base: u16) {
        let socket = &mut self.socket;
        socket.set_vring_num(i, queue.size).unwrap();
        socket.set_vring_base(i, base).unwrap();
        socket.set_vring_addr(i, &addresses(memory, queue)).unwrap();
        socket.set_vring_call(i, &queue.call).unwrap();
        socket.set_vring_kick(i, &queue.kick).unwrap();
        socket.set_vring_enable(i, true).unwrap();
    }

    /// An area for requests under way.
    pub(crate) fn inflight(&mut self, queues: &[Queue]) -> (VhostUserInflight, File) {
        let wish = VhostUserInflight::new(0, 0, queues.len() as u16, queues[0].size);
        let got = self.socket.get_inflight_fd(&wish).unwrap();
        self.keep(&got);
        got
    }

    /// Shows the area to another back end.
    pub(crate) fn keep(&mut self, (inflight, file): &(VhostUserInflight, File)) {
        self.socket.set_inflight_fd(inflight, file.as_raw_fd()).unwrap();
    }

    pub(crate) fn config(&mut self, offset: u32, length: u32) -> Vec<u8> {
        let buffer = vec![0; length as usize];
        let flags = VhostUserConfigFlags::WRITABLE;
        self.socket.get_config(offset, length, flags, &buffer).unwrap().1
    }

    /// Bytes of the disk, as the configuration space tells.
    pub(crate) fn capacity(&mut self) -> u64 {
        let bytes = self.config(0, 8);
        u64::from_le_bytes(bytes.try_into().unwrap()) * SECTOR
    }
}

pub(crate) fn addresses(memory: &Memory, queue: &Queue) -> VringConfigData {
    VringConfigData {
        queue_max_size: queue.size,
        queue_size: queue.size,
        flags: 0,
        desc_table_addr: memory.user(queue.base),
        used_ring_addr: memory.user(queue.base + USED),
        avail_ring_addr: memory.user(queue.base + AVAILABLE),
        log_addr: None,
    }
}

/// Bytes that tell sector, byte and round.
pub(crate) fn pattern(sector: u64, round: u64, length: usize) -> Vec<u8> {
    let mut x = (sector << 20) ^ (round << 8) ^ 0x9e37_79b9_7f4a_7c15;
    (0..length)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// First byte of memory that no queue uses, however many there are up to 8.
pub(crate) const DATA: u64 = 8 * QUEUE;
