//! A machine with one virtio function behind PCI, on a board that remembers, and a guest that does whatever it is told.

use std::sync::Arc;

use device::fake::FakeEvents;
use device::ram::RamMap;
use device::virtio::feature;
use device::{
    BarKind, Bus, Device, Effect, Grant, Node, Ram, Region, Registers, Space, Span, StateError, Virtio,
    Workers,
};
use pci::fake::{FakeDoorbells, FakeMsi};
use pci::{ConfigPorts, ECAM_LENGTH, Ecam, Plugged, Reservation, Segment, SegmentGrant};
use virtio_devices::transport::VirtioPci;
use vm_memory::{Bytes, GuestAddress};

pub const LOW: Span = Span { base: 0xc000_0000, length: 0x2800_0000 };
pub const HIGH: Span = Span { base: 0x1_0000_0000, length: 0x1_0000_0000 };
pub const ECAM: u64 = 0xe800_0000;

/// Guest memory: two regions, with nothing between them.
pub const REGIONS: [(u64, u64); 2] = [(0, 0x10_0000), (0x20_0000, 0x4_0000)];
/// Where a driver's queues are; each has this much room: descriptors, available ring, used ring, buffers.
const QUEUES: u64 = 0x1_0000;
const QUEUE_ROOM: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
pub const BUFFERS: u64 = 0x4000;
/// Size of each queue when the driver sets it up.
pub const SIZE: u16 = 16;

/// Offsets in the common structure (virtio 1.3 §4.1.4.3).
mod reg {
    pub const DRIVER_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 16;
    pub const STATUS: u64 = 20;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_DESC: u64 = 32;
}

/// A segment on a bus.
pub struct Board {
    pub memory: Arc<Bus>,
    pub segment: Arc<Segment>,
    pub ports: ConfigPorts,
    pub bells: Arc<FakeDoorbells>,
    pub ram: Ram,
    pub events: Arc<FakeEvents>,
}

impl Board {
    pub fn new(ram: Ram) -> Board {
        let memory = Arc::new(Bus::new(Space::Memory));
        let bells = Arc::new(FakeDoorbells::default());
        let grant = SegmentGrant {
            low: LOW,
            high: HIGH,
            memory: memory.clone(),
            msi: Arc::new(FakeMsi::default()),
            doorbells: Some(bells.clone()),
        };
        let segment = Segment::new(0, grant).unwrap();
        memory.claim(ECAM, ECAM_LENGTH, Arc::new(Ecam::new(segment.clone())), Region::Window(0)).unwrap();
        let ports = ConfigPorts::new(segment.clone());
        Board { memory, segment, ports, bells, ram, events: Arc::default() }
    }

    pub fn ram() -> Ram {
        let regions = REGIONS.map(|(base, length)| (GuestAddress(base), length as usize));
        Ram::new(RamMap::from_ranges(&regions).unwrap())
    }

    /// Wires a device to a place on this board.
    pub fn wire(&self, device: &mut dyn Device, place: &Reservation) {
        device
            .wire(Grant {
                ram: self.ram.clone(),
                vectors: place.vectors(),
                lines: Vec::new(),
                doorbells: place.doorbells().unwrap(),
                apertures: Vec::new(),
                workers: Workers::new(self.events.clone()),
                events: self.events.clone(),
            })
            .unwrap();
    }

    /// What the board does for a guest's write.
    pub fn apply(&self, effect: Option<Effect>) {
        match effect {
            Some(Effect::Decode { .. }) => self.segment.sync(),
            Some(Effect::Eject { slots, .. }) => drop(self.segment.eject(slots)),
            Some(Effect::None | Effect::Reset | Effect::PowerOff) | None => {}
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        self.apply(self.memory.write(address, data));
    }

    /// Nothing that only a bug asks for was asked.
    pub fn assert_well(&self) {
        let asked = self.events.requests();
        assert!(!asked.contains(&device::Request::Fault), "a thread ended");
    }
}

/// See the module.
pub struct Guest {
    // First, so that the function goes before the board.
    plugged: Plugged,
    pub device: Arc<VirtioPci>,
    pub board: Board,
    queues: u16,
    /// The driver's available index of each queue.
    available: Vec<u16>,
}

/// What a device and its function save.
pub struct Saved {
    pub device: Option<Node>,
    pub function: Node,
}

impl Guest {
    pub fn new(device: Box<dyn Virtio>) -> Guest {
        let board = Board::new(Board::ram());
        let mut device = VirtioPci::new("it", device, BarKind::Memory32).unwrap();
        let place = Reservation::new(&board.segment, &device.needs(), None).unwrap();
        board.wire(&mut device, &place);
        Guest::plug(board, device, place).unwrap()
    }

    /// A device that goes on from a state, which need not be one, with what is in memory.
    pub fn load(
        device: Box<dyn Virtio>,
        ram: Ram,
        placed: &device::PlacedPci,
        saved: Saved,
    ) -> Result<Guest, StateError> {
        let board = Board::new(ram);
        let mut device = VirtioPci::new("it", device, BarKind::Memory32).unwrap();
        let foreign = |e: pci::PciError| StateError::Missing(e.to_string());
        let place =
            Reservation::load(&board.segment, &device.needs(), placed, saved.function).map_err(foreign)?;
        board.wire(&mut device, &place);
        device.load(saved.device)?;
        Guest::plug(board, device, place).map_err(foreign)
    }

    fn plug(board: Board, device: VirtioPci, place: Reservation) -> Result<Guest, pci::PciError> {
        let queues = device.virtio().queue_sizes().len() as u16;
        let device = Arc::new(device);
        let plugged = place.plug(device.clone())?;
        plugged.removable();
        // A state may say that it cannot go on; then the device asks for a reset.
        let _asked = device.start();
        Ok(Guest { plugged, device, board, queues, available: vec![0; queues.into()] })
    }

    pub fn placed(&self) -> device::PlacedPci {
        self.plugged.placed().clone()
    }

    /// Stops everything and says where it stands.
    pub fn save(&self) -> Saved {
        self.device.stop().unwrap();
        Saved { device: self.device.save().unwrap(), function: self.plugged.save().unwrap() }
    }

    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Writes to BAR 0, wherever that is.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.board.apply(Some(self.plugged.function().write(Region::Bar(0), offset, data)));
    }

    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.plugged.function().read(Region::Bar(0), offset, data);
    }

    pub fn config_write(&self, offset: usize, data: &[u8]) {
        self.board.apply(Some(self.plugged.function().write_config(offset, data)));
    }

    pub fn config_read(&self, offset: usize, data: &mut [u8]) {
        self.plugged.function().read_config(offset, data);
    }

    fn w16(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    fn w32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    pub fn status(&self) -> u8 {
        let mut status = [0];
        self.read(reg::STATUS, &mut status);
        status[0]
    }

    pub fn reset(&mut self) {
        self.write(reg::STATUS, &[0]);
        assert_eq!(self.status(), 0, "a reset is always possible");
        self.available.fill(0);
    }

    /// Sets the device up as a driver that knows what it wants; the features are those of these that are offered.
    pub fn bring_up(&mut self, wanted: u64) -> u8 {
        self.reset();
        let accepted = self.device.virtio().features() & (wanted | feature::VERSION_1);
        for bit in [1, 2] {
            self.write(reg::STATUS, &[self.status() | bit]);
        }
        for half in 0..2 {
            self.w32(reg::DRIVER_SELECT, half);
            self.w32(reg::DRIVER_FEATURE, (accepted >> (32 * half)) as u32);
        }
        self.write(reg::STATUS, &[self.status() | 8]);
        self.w16(reg::CONFIG_VECTOR, 0);
        let sizes = self.device.virtio().queue_sizes();
        for (queue, size) in (0..).zip(sizes) {
            let base = queue_base(queue);
            // A queue begins with nothing in it.
            self.put(base + AVAILABLE, &[0; 4]);
            self.put(base + USED, &[0; 4]);
            self.w16(reg::QUEUE_SELECT, queue);
            self.w16(reg::QUEUE_SIZE, size.min(SIZE));
            self.w16(reg::QUEUE_VECTOR, queue + 1);
            for (n, address) in (0..).zip([base, base + AVAILABLE, base + USED]) {
                self.w32(reg::QUEUE_DESC + 8 * n, address as u32);
                self.w32(reg::QUEUE_DESC + 8 * n + 4, (address >> 32) as u32);
            }
            self.w16(reg::QUEUE_ENABLE, 1);
        }
        self.write(reg::STATUS, &[self.status() | 4]);
        self.status()
    }

    /// Writes to memory, as far as there is any.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        let _written = self.board.ram.map().write(bytes, GuestAddress(address));
    }

    pub fn describe(&self, queue: u16, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let bytes =
            [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.put(queue_base(queue) + 16 * u64::from(index), &bytes.concat());
    }

    /// Makes a chain available.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let index = self.available[usize::from(queue)];
        let base = queue_base(queue) + AVAILABLE;
        self.put(base + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.jump(queue, index.wrapping_add(1));
    }

    /// Sets the available index.
    pub fn jump(&mut self, queue: u16, index: u16) {
        self.available[usize::from(queue)] = index;
        self.put(queue_base(queue) + AVAILABLE + 2, &index.to_le_bytes());
    }

    pub fn kick(&self, queue: u16) {
        let address = self.placed().bars[0].2.base + 0x6000 + 4 * u64::from(queue);
        if !self.board.bells.ring(address) {
            self.w16(0x6000 + 4 * u64::from(queue), queue);
        }
    }

    /// Stops the device and starts it, which serves what is there.
    pub fn serve(&self) {
        self.device.stop().unwrap();
        // What the registers say may be impossible; then the driver is told.
        let _asked = self.device.start();
    }
}

/// Where a queue is.
pub fn queue_base(queue: u16) -> u64 {
    // Wherever there are more queues than memory has room for, they share it.
    QUEUES + QUEUE_ROOM * u64::from(queue % 14)
}
