//! A board for tests: memory, interrupts and events that remember what happened, and a driver for virtio devices.

pub mod again;
pub mod aperture;
pub mod random;
pub mod state;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ram::RamMap;
use crate::virtio::feature;
use aperture::FakeAperture;

use crate::{
    Aperture, DriverLink, Events, Ledger, Line, LiveQueue, Node, Ram, Request, StateError, Vector, Virtio,
    VirtioGrant, Workers,
};

/// Remembers records and requests.
#[derive(Default)]
pub struct FakeEvents {
    records: Mutex<Vec<String>>,
    requests: Mutex<Vec<Request>>,
}

impl FakeEvents {
    /// Records as `source/event`.
    pub fn records(&self) -> Vec<String> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Events for FakeEvents {
    fn record(&self, source: &str, event: &str, _properties: &[(&str, &str)]) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{source}/{event}"));
    }

    fn request(&self, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }
}

/// Counts signals of a line or a vector.
#[derive(Default)]
pub struct FakeIrq {
    count: AtomicU32,
    level: AtomicBool,
}

impl FakeIrq {
    /// Signals so far.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// The level that a line is held at.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }
}

impl Line for FakeIrq {
    fn pulse(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn set(&self, asserted: bool) {
        if asserted && !self.level.swap(asserted, Ordering::SeqCst) {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        self.level.store(asserted, Ordering::SeqCst);
    }
}

impl Vector for FakeIrq {
    fn signal(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn event(&self) -> io::Result<EventFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Counts what a device tells its driver.
#[derive(Default)]
pub struct FakeLink {
    used: AtomicU32,
    config: AtomicU32,
    broken: AtomicBool,
}

impl FakeLink {
    /// Queue interrupts so far.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::SeqCst)
    }

    /// Configuration interrupts so far.
    pub fn config(&self) -> u32 {
        self.config.load(Ordering::SeqCst)
    }

    /// Whether the device asked to be reset.
    pub fn broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }
}

impl DriverLink for FakeLink {
    fn queue_used(&self, _queue: u16) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }
}

/// Descriptor flags (virtio 1.3 §2.7.5).
pub mod flag {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// The buffer holds descriptors.
    pub const INDIRECT: u16 = 4;
}

/// One descriptor as a (possibly lying) driver writes it.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// See [`flag`].
    pub flags: u16,
    /// Next descriptor.
    pub next: u16,
}

/// The driver's half of one split queue, at a fixed place in guest memory.
pub struct FakeQueue {
    /// Number of descriptors.
    pub size: u16,
    base: u64,
    available: u16,
    seen: u16,
    kick: EventFd,
}

impl FakeQueue {
    fn table(&self) -> GuestAddress {
        GuestAddress(self.base)
    }

    fn avail(&self) -> GuestAddress {
        GuestAddress(self.base + 16 * u64::from(self.size))
    }

    fn used(&self) -> GuestAddress {
        GuestAddress(self.base + 0x8000)
    }
}

/// A machine of one virtio device and a driver that does what a test tells it.
pub struct Bench<V: Virtio> {
    /// The device.
    pub device: V,
    /// Guest memory: 16 MiB from 0; queues live in the first MiB, the rest is the test's.
    pub ram: Ram,
    /// What the device told the driver.
    pub link: Arc<FakeLink>,
    /// What the device told the board.
    pub events: Arc<FakeEvents>,
    /// Room for the device's own memory.
    pub apertures: Vec<Arc<FakeAperture>>,
    /// The driver's queues.
    pub queues: Vec<FakeQueue>,
    features: u64,
}

/// Grants a device what it needs.
fn connect(
    device: &mut impl Virtio,
    ram: &Ram,
    link: &Arc<FakeLink>,
    events: &Arc<FakeEvents>,
) -> Vec<Arc<FakeAperture>> {
    device.connect(VirtioGrant {
        ram: ram.clone(),
        link: link.clone(),
        workers: Workers::new(events.clone()),
        events: events.clone(),
    });
    let apertures = FakeAperture::all(&device.apertures());
    let granted = apertures.iter().cloned().map(|one| -> Arc<dyn Aperture> { one }).collect();
    device.fill(granted).expect("room for memory");
    apertures
}

/// First guest address that is the test's own.
pub const FREE: u64 = 0x10_0000;
/// End of guest memory.
pub const END: u64 = 0x100_0000;

impl<V: Virtio> Bench<V> {
    /// Connects and activates the device with the features it offers and `accept` allows, and starts all queues.
    pub fn new(mut device: V, accept: u64) -> Self {
        let map = RamMap::from_ranges(&[(GuestAddress(0), END as usize)]).expect("16 MiB of memory");
        let ram = Ram::new(map);
        let link = Arc::new(FakeLink::default());
        let events = Arc::new(FakeEvents::default());
        let apertures = connect(&mut device, &ram, &link, &events);
        let sizes = device.queue_sizes();
        let features = device.features() & (accept | feature::VERSION_1);
        let queues = sizes
            .iter()
            .enumerate()
            .map(|(i, size)| FakeQueue {
                size: (*size).min(256),
                base: 0x1_0000 * (i as u64 + 1),
                available: 0,
                seen: 0,
                kick: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
            })
            .collect();
        let mut bench = Bench { device, ram, link, events, apertures, queues, features };
        bench.device.activate(features).expect("activate");
        for i in 0..bench.queues.len() {
            bench.start(i, 0);
        }
        bench
    }

    /// Stops all queues and returns where they are.
    pub fn stop(&self) -> Vec<QueueState> {
        let stopped = |i| self.device.stop_queue(i).expect("a queue that was started");
        (0..self.queues.len()).map(stopped).collect()
    }

    /// Saves the device, which goes, and lets another one, as `make` makes it, go on from there.
    ///
    /// # Errors
    /// The other one's.
    pub fn move_to<W: Virtio>(self, make: impl FnOnce() -> W) -> Result<Bench<W>, StateError> {
        let states = self.stop();
        let node = self.device.save().expect("a state");
        let text = serde_json::to_string(&node).expect("a node is plain data");
        let node: Option<Node> = serde_json::from_str(&text).expect("what was written");
        let Bench { device, ram, link, events, queues, features, .. } = self;
        drop(device);
        let mut device = make();
        let apertures = connect(&mut device, &ram, &link, &events);
        device.load(node)?;
        device.activate(features).expect("activate");
        let mut bench = Bench { device, ram, link, events, apertures, queues, features };
        for (i, state) in states.into_iter().enumerate() {
            assert_eq!(
                state.next_avail, state.next_used,
                "nothing is outstanding in a queue that was stopped"
            );
            bench.start(i, state.next_avail);
        }
        Ok(bench)
    }

    /// Starts queue `i` as if its next available index were `next`.
    pub fn start(&mut self, i: usize, next: u16) {
        self.start_with(i, next, None);
    }

    fn start_with(&mut self, i: usize, next: u16, ledger: Option<Box<dyn Ledger>>) {
        let q = &self.queues[i];
        let mut queue = Queue::new(self.device.queue_sizes()[i]).expect("a legal queue size");
        queue.set_size(q.size);
        queue.set_desc_table_address(Some(q.table().0 as u32), Some(0));
        queue.set_avail_ring_address(Some(q.avail().0 as u32), Some(0));
        queue.set_used_ring_address(Some(q.used().0 as u32), Some(0));
        queue.set_event_idx(self.features & feature::RING_EVENT_IDX != 0);
        queue.set_next_avail(next);
        queue.set_next_used(next);
        queue.set_ready(true);
        let kick = q.kick.try_clone().expect("an eventfd");
        let mut live = LiveQueue::new(queue, self.ram.clone(), kick, self.link.clone(), i as u16);
        live.ledger = ledger;
        self.device.start_queue(i, live).expect("start queue");
    }

    /// Writes a descriptor.
    pub fn describe(&self, i: usize, index: u16, d: Desc) {
        self.describe_at(self.queues[i].table().0, index, d);
    }

    /// Writes a descriptor of a table anywhere (for indirect ones).
    pub fn describe_at(&self, table: u64, index: u16, d: Desc) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&d.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&d.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&d.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&d.next.to_le_bytes());
        let at = GuestAddress(table + 16 * u64::from(index));
        self.ram.map().write_slice(&bytes, at).expect("inside memory");
    }

    /// Makes a chain head available without a kick.
    pub fn offer(&mut self, i: usize, head: u16) {
        let q = &mut self.queues[i];
        let slot = q.avail().0 + 4 + 2 * u64::from(q.available % q.size);
        q.available = q.available.wrapping_add(1);
        let map = self.ram.map();
        map.write_obj(head, GuestAddress(slot)).expect("inside memory");
        map.write_obj(q.available, GuestAddress(q.avail().0 + 2)).expect("inside memory");
    }

    /// Writes a chain of `(address, length, device writes)` from descriptor `head` on and makes it available.
    pub fn chain(&mut self, i: usize, head: u16, buffers: &[(u64, u32, bool)]) {
        for (n, (address, length, write)) in buffers.iter().enumerate() {
            let last = n + 1 == buffers.len();
            let flags = if *write { flag::WRITE } else { 0 } | if last { 0 } else { flag::NEXT };
            let index = head + n as u16;
            self.describe(i, index, Desc { address: *address, length: *length, flags, next: index + 1 });
        }
        self.offer(i, head);
    }

    /// Rings the doorbell.
    pub fn kick(&self, i: usize) {
        self.queues[i].kick.write(1).expect("an eventfd");
    }

    /// Waits for the next used element of queue `i` and returns its head and length; panics after ten seconds.
    pub fn used(&mut self, i: usize) -> (u16, u32) {
        self.try_used(i, Duration::from_secs(10)).expect("the device to use a buffer within ten seconds")
    }

    /// The next used element, if one comes in time.
    pub fn try_used(&mut self, i: usize, patience: Duration) -> Option<(u16, u32)> {
        let end = Instant::now() + patience;
        let q = &mut self.queues[i];
        let map = self.ram.map();
        loop {
            let index: u16 = map.read_obj(GuestAddress(q.used().0 + 2)).expect("inside memory");
            if index != q.seen {
                let at = q.used().0 + 4 + 8 * u64::from(q.seen % q.size);
                q.seen = q.seen.wrapping_add(1);
                let id: u32 = map.read_obj(GuestAddress(at)).expect("inside memory");
                let length: u32 = map.read_obj(GuestAddress(at + 4)).expect("inside memory");
                return Some((id as u16, length));
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Puts bytes into guest memory.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.map().write_slice(bytes, GuestAddress(address)).expect("inside memory");
    }

    /// Reads bytes from guest memory.
    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.map().read_slice(&mut bytes, GuestAddress(address)).expect("inside memory");
        bytes
    }
}
