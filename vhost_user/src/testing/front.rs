//! A front end: the protocol by the crate `vhost`, memory and rings by hand.
//!
//! Memory and rings outlive a connection, as a guest does when its back end dies.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
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

use super::PATIENCE;

/// Bytes of guest memory, in two regions of which the second lies higher for the guest.
pub const MEMORY: u64 = 32 << 20;
/// Bytes of the first region.
pub const HALF: u64 = MEMORY / 2;
/// Where the second region begins for the guest.
pub const HIGH: u64 = 4 << 30;

/// Where a queue's parts are within its part of memory, which has `QUEUE` bytes.
const QUEUE: u64 = 1 << 20;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
const ROOM: u64 = 0x10000;

/// Bytes of it.
pub const QUEUE_ROOM: u64 = QUEUE - ROOM;

/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL: u64 = 1 << 30;

/// A file in memory of that many bytes.
pub fn memfd(bytes: u64) -> File {
    // SAFETY: the name is a C string; the descriptor is new.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(bytes).unwrap();
    file
}

/// Shared memory of a guest.
pub struct Memory {
    /// The file that is shared.
    pub file: File,
    map: MmapRegion<()>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// Makes it, all zeros.
    pub fn new() -> Memory {
        let file = memfd(MEMORY);
        let map =
            MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), MEMORY as usize).unwrap();
        Memory { file, map }
    }

    /// Our own address of a byte.
    pub fn user(&self, at: u64) -> u64 {
        self.map.as_ptr() as u64 + at
    }

    /// The guest's.
    pub fn guest(at: u64) -> u64 {
        if at < HALF { at } else { HIGH + at - HALF }
    }

    /// Writes bytes.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= MEMORY);
        // SAFETY: within the mapping.
        unsafe { self.map.as_ptr().add(at as usize).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    /// Reads bytes.
    pub fn get(&self, at: u64, length: usize) -> Vec<u8> {
        assert!(at + length as u64 <= MEMORY);
        let mut bytes = vec![0; length];
        // SAFETY: within the mapping.
        unsafe { bytes.as_mut_ptr().copy_from(self.map.as_ptr().add(at as usize), length) };
        bytes
    }

    /// Sixteen bits that both sides use.
    pub fn word(&self, at: u64) -> &AtomicU16 {
        assert!(at.is_multiple_of(2) && at < MEMORY);
        // SAFETY: aligned and within the mapping, which lives as long as `self`.
        unsafe { AtomicU16::from_ptr(self.map.as_ptr().add(at as usize).cast()) }
    }

    /// Both regions, as a front end tells.
    pub fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
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
pub struct Queue {
    /// Descriptors.
    pub size: u16,
    /// Where it begins in memory.
    pub base: u64,
    /// Chains offered so far.
    pub offered: u16,
    /// Chains seen to come back so far.
    pub seen: u16,
    /// Rung by the driver.
    pub kick: EventFd,
    /// Rung by the device.
    pub call: EventFd,
    /// How often each head has come back.
    pub returned: Vec<u32>,
}

impl Queue {
    /// A queue with its parts in their place of memory, and nothing in it.
    pub fn new(index: usize, size: u16) -> Queue {
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

    /// Room of the queue's that holds no ring: `QUEUE_ROOM` bytes from here.
    pub fn room(&self) -> u64 {
        self.base + ROOM
    }

    /// Makes a chain available that begins with descriptor `head`: buffers with address in memory, length, and whether the device writes.
    pub fn chain(&mut self, memory: &Memory, head: u16, buffers: &[(u64, u32, bool)]) {
        for (n, (at, length, write)) in buffers.iter().enumerate() {
            let index = head + n as u16;
            let next = u16::from(n + 1 < buffers.len());
            let place = self.base + 16 * u64::from(index);
            memory.put(place, &Memory::guest(*at).to_le_bytes());
            memory.put(place + 8, &length.to_le_bytes());
            memory.put(place + 12, &((u16::from(*write) << 1) | next).to_le_bytes());
            memory.put(place + 14, &(index + 1).to_le_bytes());
        }
        let ring = self.base + AVAILABLE;
        let entry = ring + 4 + 2 * u64::from(self.offered % self.size);
        memory.word(entry).store(head, Ordering::Relaxed);
        self.offered = self.offered.wrapping_add(1);
        memory.word(ring + 2).store(self.offered, Ordering::SeqCst);
        // With EVENT_IDX: ring for every buffer.
        memory.word(ring + 4 + 2 * u64::from(self.size)).store(self.seen, Ordering::SeqCst);
    }

    /// Tells the device.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// With EVENT_IDX: tells the device of what was offered since `before` chains were, if it wants to hear of that (virtio 1.3 §2.7.10).
    pub fn kick_if_wanted(&self, memory: &Memory, before: u16) {
        let event = memory.word(self.base + USED + 4 + 8 * u64::from(self.size)).load(Ordering::SeqCst);
        if self.offered.wrapping_sub(event).wrapping_sub(1) < self.offered.wrapping_sub(before) {
            self.kick();
        }
    }

    /// With EVENT_IDX: the driver polls, and is not to be rung for any of the next 32,767 chains.
    pub fn call_never(&self, memory: &Memory) {
        let place = self.base + AVAILABLE + 4 + 2 * u64::from(self.size);
        memory.word(place).store(self.seen.wrapping_add(1 << 15), Ordering::SeqCst);
    }

    /// The next chain that came back, with the bytes written to it, if one did.
    pub fn used(&mut self, memory: &Memory) -> Option<(u16, u32)> {
        let ring = self.base + USED;
        let index = memory.word(ring + 2).load(Ordering::SeqCst);
        if index == self.seen {
            return None;
        }
        let entry = ring + 4 + 8 * u64::from(self.seen % self.size);
        let head = memory.word(entry).load(Ordering::SeqCst);
        let length = u32::from_le_bytes(memory.get(entry + 4, 4).try_into().unwrap());
        self.seen = self.seen.wrapping_add(1);
        self.returned[usize::from(head)] += 1;
        Some((head, length))
    }

    /// Waits for the next one.
    #[track_caller]
    pub fn wait_used(&mut self, memory: &Memory) -> (u16, u32) {
        let begun = Instant::now();
        loop {
            if let Some(done) = self.used(memory) {
                return done;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing comes back");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits to be rung.
    #[track_caller]
    pub fn wait_call(&self) {
        let begun = Instant::now();
        while self.call.read().is_err() {
            assert!(begun.elapsed() < PATIENCE, "nobody rings");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A connection.
pub struct Front {
    /// The protocol.
    pub socket: Frontend,
    /// What was agreed on.
    pub features: u64,
}

impl Front {
    /// Connects and agrees on features.
    pub fn connect(path: &Path, accept: u64) -> Front {
        Front::greet(Frontend::connect(path, 256).unwrap(), accept)
    }

    /// Agrees on features with a back end that came by itself.
    pub fn accept(stream: UnixStream, accept: u64) -> Front {
        Front::greet(Frontend::from_stream(stream, 256), accept)
    }

    fn greet(mut socket: Frontend, accept: u64) -> Front {
        socket.set_owner().unwrap();
        let features = socket.get_features().unwrap() & (accept | VERSION_1 | PROTOCOL);
        assert_ne!(features & PROTOCOL, 0);
        // Of the driver's status nothing is told: who expects to hear of it would wait.
        let protocol = socket.get_protocol_features().unwrap() - VhostUserProtocolFeatures::STATUS;
        socket.set_protocol_features(protocol).unwrap();
        socket.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        socket.set_features(features).unwrap();
        Front { socket, features }
    }

    /// Shares memory and starts the queues from where they are.
    pub fn start<'a>(&mut self, memory: &Memory, queues: impl IntoIterator<Item = &'a Queue>) {
        self.socket.set_mem_table(&memory.regions()).unwrap();
        for (i, queue) in queues.into_iter().enumerate() {
            self.start_queue(memory, i, queue, queue.seen);
        }
    }

    /// The same as QEMU does it for network cards: pair by pair, each enabled before anything is known of it, its features told again.
    pub fn start_by_pairs(&mut self, memory: &Memory, queues: &[Queue]) {
        for (pair, queues) in queues.chunks(2).enumerate() {
            for i in 0..queues.len() {
                self.socket.set_vring_enable(2 * pair + i, true).unwrap();
            }
            self.socket.set_features(self.features).unwrap();
            if pair == 0 {
                self.socket.set_mem_table(&memory.regions()).unwrap();
            }
            for (i, queue) in queues.iter().enumerate() {
                let (socket, index) = (&mut self.socket, 2 * pair + i);
                socket.set_vring_num(index, queue.size).unwrap();
                socket.set_vring_base(index, queue.seen).unwrap();
                socket.set_vring_addr(index, &addresses(memory, queue)).unwrap();
                socket.set_vring_kick(index, &queue.kick).unwrap();
                socket.set_vring_call(index, &queue.call).unwrap();
            }
        }
    }

    /// Describes a queue and starts it from `base`.
    pub fn start_queue(&mut self, memory: &Memory, i: usize, queue: &Queue, base: u16) {
        let socket = &mut self.socket;
        socket.set_vring_num(i, queue.size).unwrap();
        socket.set_vring_base(i, base).unwrap();
        socket.set_vring_addr(i, &addresses(memory, queue)).unwrap();
        socket.set_vring_call(i, &queue.call).unwrap();
        socket.set_vring_kick(i, &queue.kick).unwrap();
        socket.set_vring_enable(i, true).unwrap();
    }

    /// An area for requests under way.
    pub fn inflight(&mut self, queues: &[Queue]) -> (VhostUserInflight, File) {
        let wish = VhostUserInflight::new(0, 0, queues.len() as u16, queues[0].size);
        let got = self.socket.get_inflight_fd(&wish).unwrap();
        self.keep(&got);
        got
    }

    /// Shows the area to another back end.
    pub fn keep(&mut self, (inflight, file): &(VhostUserInflight, File)) {
        self.socket.set_inflight_fd(inflight, file.as_raw_fd()).unwrap();
    }

    /// Bytes of the configuration space.
    pub fn config(&mut self, offset: u32, length: u32) -> Vec<u8> {
        let buffer = vec![0; length as usize];
        let flags = VhostUserConfigFlags::WRITABLE;
        self.socket.get_config(offset, length, flags, &buffer).unwrap().1
    }
}

/// Where a queue is, as a front end tells.
pub fn addresses(memory: &Memory, queue: &Queue) -> VringConfigData {
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

/// First byte of memory that no queue uses, however many there are up to 8.
pub const DATA: u64 = 8 * QUEUE;
