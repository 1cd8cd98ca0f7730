//! A machine with one virtio function, a device that echoes, and a driver that does what a test tells it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use device::fake::FakeEvents;
use device::grant::Device;
use device::ram::RamMap;
use device::state::{self, Node, State, StateError};
use device::virtio::feature;
use device::{
    Attached, BarKind, Bus, DeviceError, Effect, Grant, LiveQueue, Needs, Ram, Region, Space, Span, Task,
    Virtio, VirtioGrant, VirtioKind, Watch, Workers,
};
use pci::fake::{FakeDoorbells, FakeMsi};
use pci::{ECAM_LENGTH, Ecam, PciError, Plugged, Reservation, Segment, SegmentGrant};
use serde::{Deserialize, Serialize};
use virtio_queue::{QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use crate::buffers::next_chain;
use crate::transport::VirtioPci;

pub(super) const QUEUES: [u16; 2] = [64, 8];
pub(super) const FEATURE: u64 = 1 << 5;
/// One that the device does not offer unless told, and that holds whatever the driver knows.
pub(super) const BINDING: u64 = 1 << 50;
pub(super) const CONFIG: usize = 12;

/// Answers each request with its first four bytes plus one.
#[derive(Default)]
pub(super) struct Echo {
    pub(super) grant: Option<VirtioGrant>,
    pub(super) running: [Mutex<Option<Attached<EchoQueue>>>; 2],
    pub(super) config: Mutex<[u8; CONFIG]>,
    pub(super) refuse: bool,
    /// Offered instead of the usual ones.
    pub(super) features: Option<u64>,
    pub(super) starts: Arc<AtomicU64>,
    pub(super) resets: Arc<AtomicU64>,
    pub(super) active: AtomicBool,
}

/// The configuration byte that breaks the device when it is written.
pub(super) const BREAK: usize = 11;

/// What is saved of an [`Echo`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EchoState {
    config: [u8; CONFIG],
}

impl State for EchoState {
    const KIND: &'static str = "echo";
}

pub(super) struct EchoQueue(LiveQueue);

impl EchoQueue {
    fn serve(&mut self) {
        let map = self.0.ram.map();
        self.0.quiet(&*map);
        while let Some(chain) = next_chain(&mut self.0, &map) {
            let head = chain.head_index();
            let (mut value, mut written) = (0u32, 0);
            for d in chain {
                if d.is_write_only() {
                    written += map.write_obj(value.wrapping_add(1), d.addr()).map_or(0, |()| 4);
                } else {
                    value = map.read_obj(d.addr()).unwrap_or(0);
                }
            }
            self.0.push(&map, head, written);
        }
        self.0.signal(&map);
    }
}

impl Task for EchoQueue {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.0.kick.as_raw_fd(), 0, EventSet::IN)?;
        self.serve();
        Ok(())
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) {
        // Another kick may have been read before; an empty counter is no harm.
        let _ = self.0.kick.read();
        self.serve();
    }
}

impl Virtio for Echo {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }

    fn features(&self) -> u64 {
        self.features.unwrap_or(feature::VERSION_1 | feature::RING_EVENT_IDX | FEATURE)
    }

    fn feature_names(&self) -> &'static [(u64, &'static str)] {
        &[(FEATURE, "VIRTIO_TEST_F_ECHO"), (BINDING, "VIRTIO_TEST_F_BINDING")]
    }

    fn binding_features(&self) -> u64 {
        BINDING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUES.to_vec()
    }

    fn config_length(&self) -> usize {
        CONFIG
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.config.lock().unwrap()[offset..offset + data.len()]);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        let link = &self.grant.as_ref().unwrap().link;
        if (offset..offset + data.len()).contains(&BREAK) {
            link.needs_reset();
        }
        link.config_changed();
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        Ok(Some(Node::of(&EchoState { config: *self.config.lock().unwrap() }).unwrap()))
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        *self.config.lock().unwrap() = state::some(node)?.read::<EchoState>()?.config;
        Ok(())
    }

    fn connect(&mut self, grant: VirtioGrant) {
        self.grant = Some(grant);
    }

    fn activate(&self, features: u64) -> Result<(), DeviceError> {
        assert_eq!(features & !self.features(), 0);
        assert!(!self.active.swap(true, Ordering::SeqCst), "activated twice");
        if self.refuse {
            return Err(DeviceError { what: "as the test wants".into(), source: None });
        }
        Ok(())
    }

    fn start_queue(&self, index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        assert!(self.active.load(Ordering::SeqCst) && !self.refuse);
        assert!(queue.queue.ready() && queue.queue.size() <= QUEUES[index]);
        self.starts.fetch_add(1, Ordering::SeqCst);
        let worker = self.grant.as_ref().unwrap().workers.shared()?;
        let attached = worker.attach(EchoQueue(queue)).map_err(|e| DeviceError::new("attach", e))?;
        assert!(self.running[index].lock().unwrap().replace(attached).is_none(), "started twice");
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let attached = self.running[index].lock().unwrap().take()?;
        Some(attached.stop().expect("the worker lives").0.state())
    }

    fn reset(&self) {
        assert!(self.active.swap(false, Ordering::SeqCst), "reset while idle");
        assert!(self.running.iter().all(|r| r.lock().unwrap().is_none()), "reset while running");
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

const LOW: Span = Span { base: 0xc000_0000, length: 0x2800_0000 };
const HIGH: Span = Span { base: 0x1_0000_0000, length: 0x1_0000_0000 };
pub(super) const ECAM: u64 = 0xe800_0000;
/// Guest memory.
pub(super) const RAM: u64 = 0x40_0000;
/// Where the driver's queues are; each takes [`QUEUE_ROOM`].
pub(super) const QUEUE_BASE: u64 = 0x1_0000;
pub(super) const QUEUE_ROOM: u64 = 0x1_0000;

/// Everything around the device, as a driver on a vCPU sees it. Cheap to clone for another vCPU.
#[derive(Clone)]
pub(super) struct Guest {
    pub(super) memory: Arc<Bus>,
    pub(super) segment: Arc<Segment>,
    pub(super) msi: Arc<FakeMsi>,
    pub(super) bells: Arc<FakeDoorbells>,
    pub(super) ram: Ram,
    pub(super) events: Arc<FakeEvents>,
    pub(super) device: Arc<VirtioPci>,
    pub(super) plugged: Arc<Plugged>,
    pub(super) base: u64,
}

impl Guest {
    pub(super) fn new(echo: Echo) -> Self {
        let ram = Ram::new(RamMap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap());
        let guest =
            Guest::build(echo, ram, |_| Ok(()), |segment, needs| Reservation::new(segment, needs, None));
        let guest = guest.expect("no state to refuse");
        guest.device.start().unwrap();
        guest
    }

    /// A new machine with this one's memory, where the device goes on from a state; it is not started.
    pub(super) fn again(&self, echo: Echo, node: Option<Node>, function: Node) -> Result<Self, StateError> {
        let placed = self.plugged.placed();
        Guest::build(
            echo,
            self.ram.clone(),
            |device| device.load(node),
            |segment, needs| Reservation::load(segment, needs, placed, function),
        )
    }

    fn build(
        echo: Echo,
        ram: Ram,
        load: impl FnOnce(&VirtioPci) -> Result<(), StateError>,
        reserve: impl FnOnce(&Arc<Segment>, &Needs) -> Result<Reservation, PciError>,
    ) -> Result<Self, StateError> {
        let memory = Arc::new(Bus::new(Space::Memory));
        let (msi, bells) = (Arc::new(FakeMsi::default()), Arc::new(FakeDoorbells::default()));
        let grant = SegmentGrant {
            low: LOW,
            high: HIGH,
            memory: memory.clone(),
            msi: msi.clone(),
            doorbells: Some(bells.clone()),
        };
        let segment = Segment::new(0, grant).unwrap();
        memory.claim(ECAM, ECAM_LENGTH, Arc::new(Ecam::new(segment.clone())), Region::Window(0)).unwrap();
        let events = Arc::new(FakeEvents::default());
        let mut device = VirtioPci::new("echo", Box::new(echo), BarKind::Memory32).unwrap();
        let place = reserve(&segment, &device.needs()).unwrap();
        device
            .wire(Grant {
                ram: ram.clone(),
                vectors: place.vectors(),
                lines: Vec::new(),
                doorbells: place.doorbells().unwrap(),
                apertures: Vec::new(),
                workers: Workers::new(events.clone()),
                events: events.clone(),
            })
            .unwrap();
        load(&device)?;
        let device = Arc::new(device);
        let plugged = Arc::new(place.plug(device.clone()).unwrap());
        let base = plugged.placed().bars[0].2.base;
        Ok(Guest { memory, segment, msi, bells, ram, events, device, plugged, base })
    }

    pub(super) fn write_at(&self, address: u64, data: &[u8]) {
        match self.memory.write(address, data) {
            Some(Effect::Decode { .. }) => self.segment.sync(),
            Some(Effect::None) | None => {}
            Some(other) => panic!("{other:?}"),
        }
    }

    /// Writes to BAR 0.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        self.write_at(self.base + offset, data);
    }

    pub(super) fn w8(&self, offset: u64, value: u8) {
        self.write(offset, &[value]);
    }

    pub(super) fn w16(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(super) fn w32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Reads from BAR 0.
    pub(super) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory.read(self.base + offset, &mut data);
        data
    }

    pub(super) fn r8(&self, offset: u64) -> u8 {
        self.read::<1>(offset)[0]
    }

    pub(super) fn r16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    pub(super) fn r32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    pub(super) fn status(&self) -> u8 {
        self.r8(reg::STATUS)
    }

    /// Sets status bits one after the other and tells what was reached.
    pub(super) fn advance(&self, bits: &[u8]) -> u8 {
        for bit in bits {
            self.w8(reg::STATUS, self.status() | bit);
        }
        self.status()
    }

    /// Accepts features up to FEATURES_OK.
    pub(super) fn negotiate(&self, features: u64) -> u8 {
        self.advance(&[1, 2]);
        for half in 0..2 {
            self.w32(reg::DRIVER_SELECT, half);
            self.w32(reg::DRIVER_FEATURE, (features >> (32 * half)) as u32);
        }
        self.advance(&[8])
    }

    /// Makes MSI-X vector `n` deliver `data`.
    pub(super) fn vector(&self, n: u64, data: u32) {
        let entry = 0x8000 + 16 * n;
        self.w32(entry, 0xfee0_0000);
        self.w32(entry + 8, data);
        self.w32(entry + 12, 0);
        let control = self.plugged.function();
        // The capability chain was walked by a test of its own; here its last member is what matters.
        let at = self.msix_capability();
        assert_eq!(control.write_config(at + 2, &0x8000u16.to_le_bytes()), Effect::None);
    }

    /// Waits for an interrupt with this data.
    pub(super) fn await_interrupt(&self, data: u32) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.msi.take().iter().all(|m| m.data != data) {
            assert!(Instant::now() < end, "no interrupt {data:#x} within ten seconds");
            std::thread::yield_now();
        }
    }

    fn msix_capability(&self) -> usize {
        let byte = |at: usize| {
            let mut data = [0];
            self.plugged.function().read_config(at, &mut data);
            data[0]
        };
        let mut at = usize::from(byte(0x34));
        while byte(at) != 0x11 {
            at = usize::from(byte(at + 1));
            assert_ne!(at, 0);
        }
        at
    }

    /// Describes and enables a queue of this size.
    pub(super) fn enable(&self, index: u16, size: u16) -> Driver {
        let driver = Driver::new(self.clone(), index, size);
        self.w16(reg::QUEUE_SELECT, index);
        self.w16(reg::QUEUE_SIZE, size);
        self.w16(reg::QUEUE_VECTOR, index + 1);
        for (register, address) in [
            (reg::QUEUE_DESC, driver.desc),
            (reg::QUEUE_DRIVER, driver.avail),
            (reg::QUEUE_DEVICE, driver.used),
        ] {
            self.w32(register, address as u32);
            self.w32(register + 4, (address >> 32) as u32);
        }
        self.w16(reg::QUEUE_ENABLE, 1);
        driver
    }

    /// The whole way to a working device.
    pub(super) fn bring_up(&self) -> Vec<Driver> {
        self.w8(reg::STATUS, 0);
        assert_eq!(self.status(), 0);
        assert_eq!(self.negotiate(feature::VERSION_1 | feature::RING_EVENT_IDX), 0xb);
        self.w16(reg::CONFIG_VECTOR, 0);
        let drivers = vec![self.enable(0, 64), self.enable(1, 8)];
        for n in 0..3 {
            self.vector(n, 0x40 + n as u32);
        }
        assert_eq!(self.advance(&[4]), 0xf);
        drivers
    }
}

/// Offsets in the common structure (virtio 1.3 §4.1.4.3), written down once more on purpose.
pub(super) mod reg {
    pub(in super::super) const DEVICE_SELECT: u64 = 0;
    pub(in super::super) const DEVICE_FEATURE: u64 = 4;
    pub(in super::super) const DRIVER_SELECT: u64 = 8;
    pub(in super::super) const DRIVER_FEATURE: u64 = 12;
    pub(in super::super) const CONFIG_VECTOR: u64 = 16;
    pub(in super::super) const NUM_QUEUES: u64 = 18;
    pub(in super::super) const STATUS: u64 = 20;
    pub(in super::super) const GENERATION: u64 = 21;
    pub(in super::super) const QUEUE_SELECT: u64 = 22;
    pub(in super::super) const QUEUE_SIZE: u64 = 24;
    pub(in super::super) const QUEUE_VECTOR: u64 = 26;
    pub(in super::super) const QUEUE_ENABLE: u64 = 28;
    pub(in super::super) const QUEUE_NOTIFY_OFF: u64 = 30;
    pub(in super::super) const QUEUE_DESC: u64 = 32;
    pub(in super::super) const QUEUE_DRIVER: u64 = 40;
    pub(in super::super) const QUEUE_DEVICE: u64 = 48;
}

/// The driver's half of a queue with one request per pair of descriptors.
pub(super) struct Driver {
    guest: Guest,
    index: u16,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    data: u64,
    next: u16,
    seen: u16,
}

impl Driver {
    pub(super) fn new(guest: Guest, index: u16, size: u16) -> Self {
        let base = QUEUE_BASE + QUEUE_ROOM * u64::from(index);
        let map = guest.ram.map();
        map.write_slice(&[0; QUEUE_ROOM as usize], GuestAddress(base)).unwrap();
        Driver {
            guest,
            index,
            size,
            desc: base,
            avail: base + 0x2000,
            used: base + 0x4000,
            data: base + 0x8000,
            next: 0,
            seen: 0,
        }
    }

    /// The driver moves with its memory.
    pub(super) fn move_to(&mut self, guest: &Guest) {
        self.guest = guest.clone();
    }

    /// Offers a request that asks for `value + 1`.
    pub(super) fn offer(&mut self, value: u32) {
        let map = self.guest.ram.map();
        let pair = self.next % (self.size / 2);
        let (head, data) = (2 * pair, self.data + 8 * u64::from(pair));
        map.write_obj(value, GuestAddress(data)).unwrap();
        map.write_obj(0u32, GuestAddress(data + 4)).unwrap();
        for (n, flags, next) in [(0, 1u16, head + 1), (1, 2, 0)] {
            let d = self.desc + 16 * u64::from(head + n);
            map.write_obj(data + 4 * u64::from(n), GuestAddress(d)).unwrap();
            map.write_obj(4u32, GuestAddress(d + 8)).unwrap();
            map.write_obj(flags, GuestAddress(d + 12)).unwrap();
            map.write_obj(next, GuestAddress(d + 14)).unwrap();
        }
        // EVENT_IDX: interrupt for the next answer.
        map.write_obj(self.seen, GuestAddress(self.avail + 4 + 2 * u64::from(self.size))).unwrap();
        let slot = self.avail + 4 + 2 * u64::from(self.next % self.size);
        map.write_obj(head, GuestAddress(slot)).unwrap();
        self.next = self.next.wrapping_add(1);
        map.store(self.next, GuestAddress(self.avail + 2), Ordering::SeqCst).unwrap();
    }

    /// Rings by whichever way the guest's write takes: the doorbell if it is in place, else the register.
    pub(super) fn kick(&self) {
        let offset = 0x6000 + 4 * u64::from(self.index);
        if !self.guest.bells.ring(self.guest.base + offset) {
            self.guest.w16(offset, self.index);
        }
    }

    pub(super) fn used_index(&self) -> u16 {
        self.guest.ram.map().load(GuestAddress(self.used + 2), Ordering::SeqCst).unwrap()
    }

    /// The next answer, if it comes in time.
    pub(super) fn answer(&mut self, patience: Duration) -> Option<u32> {
        let end = Instant::now() + patience;
        while self.used_index() == self.seen {
            if Instant::now() > end {
                return None;
            }
            std::thread::yield_now();
        }
        let map = self.guest.ram.map();
        let element = self.used + 4 + 8 * u64::from(self.seen % self.size);
        let head: u32 = map.read_obj(GuestAddress(element)).unwrap();
        assert_eq!(head, u32::from(2 * (self.seen % (self.size / 2))), "answers come in order");
        self.seen = self.seen.wrapping_add(1);
        Some(map.read_obj(GuestAddress(self.data + 4 * u64::from(head) + 4)).unwrap())
    }

    /// One request and its answer.
    pub(super) fn ask(&mut self, value: u32) -> u32 {
        self.offer(value);
        self.kick();
        self.answer(Duration::from_secs(10)).expect("an answer within ten seconds")
    }
}
