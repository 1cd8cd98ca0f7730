//! A guest's view of a segment: configuration accesses, BARs that move, MSI-X, and what a hostile guest makes of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use device::grant::ConfigWindow;
use device::{
    ApertureNeed, BarKind, BarNeed, Bus, Capability, Device, DeviceError, DoorbellNeed, Effect, Grant,
    MsiMessage, MsixNeed, Needs, PciIdentity, PciNeeds, PlacedPci, Region, Registers, Space, Span, Vector,
};

use crate::fake::{FakeDoorbells, FakeMsi};
use crate::*;

const LOW: Span = Span { base: 0xc000_0000, length: 0x2800_0000 };
const HIGH: Span = Span { base: 0x1_0000_0000, length: 0x1_0000_0000 };
const ECAM: u64 = 0xe800_0000;
const SIZE: u64 = 0x8_0000;
const TABLE: u64 = 0x8000;
const PENDING: u64 = 0x4_8000;
const VECTORS: u16 = 3;
const BELL: u64 = 0x6004;

/// Reads as the low byte of each offset, counts writes, and has one live capability that reads as its offset.
#[derive(Default)]
struct Toy {
    writes: AtomicUsize,
    wide: bool,
    apertures: Vec<ApertureNeed>,
}

impl Registers for Toy {
    fn read(&self, _: Region, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = at as u8;
        }
    }

    fn write(&self, _: Region, _: u64, data: &[u8]) -> Effect {
        self.writes.fetch_add(data.len(), Ordering::Relaxed);
        Effect::None
    }
}

impl ConfigWindow for Toy {
    fn read(&self, capability: usize, offset: usize, data: &mut [u8]) {
        assert_eq!(capability, 1);
        for (at, byte) in (offset..).zip(data) {
            *byte = 0x80 + at as u8;
        }
    }

    fn write(&self, _: usize, offset: usize, data: &[u8]) -> Effect {
        assert!(offset + data.len() <= 18);
        self.writes.fetch_add(data.len(), Ordering::Relaxed);
        Effect::None
    }
}

impl Device for Toy {
    fn needs(&self) -> Needs {
        let kind = if self.wide { BarKind::Memory64 { prefetchable: false } } else { BarKind::Memory32 };
        Needs {
            pci: Some(PciNeeds {
                identity: PciIdentity {
                    vendor: 0x1af4,
                    device: 0x1042,
                    revision: 1,
                    class: 0x01_8000,
                    subsystem_vendor: 0x1af4,
                    subsystem: 0x1042,
                },
                bars: vec![BarNeed { index: 0, size: SIZE, kind }],
                capabilities: vec![
                    Capability { id: 9, body: vec![7; 14], live: false },
                    Capability { id: 9, body: vec![0; 18], live: true },
                ],
                msix: Some(MsixNeed {
                    vectors: VECTORS,
                    bar: 0,
                    table: TABLE as u32,
                    pending: PENDING as u32,
                }),
                apertures: self.apertures.clone(),
            }),
            doorbells: vec![DoorbellNeed { region: Region::Bar(0), offset: BELL }],
            ..Needs::default()
        }
    }

    fn wire(&mut self, _: Grant) -> Result<(), DeviceError> {
        Ok(())
    }

    fn config_window(&self) -> Option<&dyn ConfigWindow> {
        Some(self)
    }
}

struct Machine {
    memory: Arc<Bus>,
    segment: Arc<Segment>,
    msi: Arc<FakeMsi>,
    bells: Arc<FakeDoorbells>,
    ports: ConfigPorts,
}

impl Machine {
    fn new(number: u16) -> Self {
        let memory = Arc::new(Bus::new(Space::Memory));
        let (msi, bells) = (Arc::new(FakeMsi::default()), Arc::new(FakeDoorbells::default()));
        let grant = SegmentGrant {
            low: LOW,
            high: HIGH,
            memory: memory.clone(),
            msi: msi.clone(),
            doorbells: Some(bells.clone()),
        };
        let segment = Segment::new(number, grant).unwrap();
        memory.claim(ECAM, ECAM_LENGTH, Arc::new(Ecam::new(segment.clone())), Region::Window(0)).unwrap();
        let ports = ConfigPorts::new(segment.clone());
        Machine { memory, segment, msi, bells, ports }
    }

    fn reserve(&self, toy: &Toy) -> Reservation {
        Reservation::new(&self.segment, &toy.needs(), None).unwrap()
    }

    fn plug(&self, wide: bool) -> (Plugged, Vec<Arc<dyn Vector>>) {
        let toy = Toy { wide, ..Toy::default() };
        let place = self.reserve(&toy);
        let vectors = place.vectors();
        (place.plug(Arc::new(toy)).unwrap(), vectors)
    }

    fn write(&self, address: u64, data: &[u8]) {
        match self.memory.write(address, data) {
            Some(Effect::Decode { segment }) => {
                assert_eq!(segment, self.segment.number());
                self.segment.sync();
            }
            Some(Effect::None) | None => {}
            Some(other) => panic!("{other:?}"),
        }
    }

    fn set(&self, address: u64, value: u32) {
        self.write(address, &value.to_le_bytes());
    }

    fn get(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.memory.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    /// Whether a BAR answers at `base`, told by what the toy reads as.
    fn answers(&self, base: u64) -> bool {
        let mut data = [0; 4];
        self.memory.read(base + 0x10, &mut data) && data == [0x10, 0x11, 0x12, 0x13]
    }

    fn port_get(&self, port: u64, length: usize) -> u32 {
        let mut data = [0; 4];
        self.ports.read(Region::Window(0), port - CONFIG_PORTS, &mut data[..length]);
        u32::from_le_bytes(data)
    }

    fn port_set(&self, port: u64, data: &[u8]) {
        if self.ports.write(Region::Window(0), port - CONFIG_PORTS, data) != Effect::None {
            self.segment.sync();
        }
    }
}

fn config(slot: u64, register: usize) -> u64 {
    ECAM + (slot << 15) + register as u64
}

/// Vector 1 with a message, in the table at `base`.
fn set_vector(m: &Machine, base: u64, vector: u64, data: u32, masked: bool) {
    let entry = base + TABLE + 16 * vector;
    m.set(entry, 0xfee0_0000);
    m.set(entry + 4, 0);
    m.set(entry + 8, data);
    m.set(entry + 12, masked.into());
}

fn msix_control(m: &Machine) -> u64 {
    let mut at = m.get(config(1, regs::CAPABILITIES)) as usize;
    while m.get(config(1, at)) as u8 != regs::msix::ID {
        at = (m.get(config(1, at)) >> 8 & 0xff) as usize;
        assert_ne!(at, 0);
    }
    config(1, at + 2)
}

#[test]
fn a_segment_and_its_bus_go_when_nobody_holds_them() {
    let machine = Machine::new(0);
    let (segment, memory) = (Arc::downgrade(&machine.segment), Arc::downgrade(&machine.memory));
    drop(machine.plug(false));
    drop(machine);
    assert!(segment.upgrade().is_none(), "the window keeps the segment");
    assert!(memory.upgrade().is_none(), "the segment keeps the bus");
}

#[test]
fn segment_0_has_the_host_bridge_and_devices_from_slot_1() {
    let m = Machine::new(0);
    let (a, _) = m.plug(false);
    assert_eq!(m.get(config(0, 0)), 0x0d57_8086);
    assert_eq!(m.get(config(0, regs::REVISION)), 0x0600_0000);
    assert_eq!(a.placed().slot, 1);
    assert_eq!(m.get(config(1, 0)), 0x1042_1af4);
    // Other slots, other functions, and what is beyond the bus.
    assert_eq!(m.get(config(2, 0)), u32::MAX);
    assert_eq!(m.get(config(1, 0) + (1 << 12)), u32::MAX);
    assert_eq!(m.get(config(1, 0xffe)), 0xffff_0000);
    let other = Machine::new(3);
    assert_eq!(other.plug(false).0.placed().slot, 0);
}

#[test]
fn an_ejected_function_is_hidden_at_once_and_holds_its_room_until_it_is_dropped() {
    let m = Machine::new(0);
    let (stays, _) = m.plug(true);
    let (leaves, vectors) = m.plug(true);
    leaves.removable();
    let base = leaves.placed().bars[0].2.base;
    for slot in [1, 2] {
        m.write(config(slot, regs::COMMAND), &[2, 0]);
    }
    m.set(base + BELL, 0);
    assert!(m.answers(base) && m.bells.addresses() == [base + BELL]);
    // Only what may leave does, and once.
    assert_eq!((m.segment.eject(!0), m.segment.eject(!0)), (1 << 2, 0));
    assert_eq!((m.get(config(2, 0)), m.get(config(1, 0))), (u32::MAX, 0x1042_1af4));
    assert!(!m.answers(base) && m.bells.addresses().is_empty());
    assert!(m.answers(stays.placed().bars[0].2.base));
    // The guest cannot bring it back, and nobody gets its place.
    m.write(config(2, regs::COMMAND), &[2, 0]);
    m.segment.sync();
    assert!(!m.answers(base));
    let next = m.reserve(&Toy { wide: true, ..Toy::default() });
    assert!(next.placed().slot == 3 && next.placed().bars[0].2.base != base);
    drop((leaves, vectors));
    let again = m.reserve(&Toy { wide: true, ..Toy::default() });
    assert_eq!((again.placed().slot, again.placed().bars[0].2.base), (2, base));
    // A new function in the slot is there to stay until it says otherwise.
    let again = again.plug(Arc::new(Toy { wide: true, ..Toy::default() })).unwrap();
    assert_eq!((m.segment.eject(!0), m.get(config(2, 0))), (0, 0x1042_1af4));
    drop(again);
}

#[test]
fn slots_are_given_in_order_around_those_set_aside() {
    let m = Machine::new(0);
    m.segment.set_aside([2, 40]);
    let a = m.reserve(&Toy::default());
    let b = m.reserve(&Toy::default());
    assert_eq!((a.placed().slot, b.placed().slot), (1, 3));
    let needs = Toy::default().needs();
    let c = Reservation::new(&m.segment, &needs, Some(2)).unwrap();
    assert!(matches!(
        Reservation::new(&m.segment, &needs, Some(2)),
        Err(PciError::SlotTaken { slot: 2, .. })
    ));
    assert!(matches!(
        Reservation::new(&m.segment, &needs, Some(0)),
        Err(PciError::SlotTaken { slot: 0, .. })
    ));
    assert!(matches!(Reservation::new(&m.segment, &needs, Some(32)), Err(PciError::NoSlot { .. })));
    drop((a, c));
    let all: Vec<_> = (0..29).map(|_| m.reserve(&Toy::default())).collect();
    assert!(matches!(Reservation::new(&m.segment, &needs, None), Err(PciError::SlotsExhausted { .. })));
    assert_eq!(all[0].placed().slot, 1);
    assert_eq!(Reservation::new(&m.segment, &needs, Some(2)).unwrap().placed().slot, 2);
    m.segment.end_aside();
    assert_eq!(m.reserve(&Toy::default()).placed().slot, 2);
}

#[test]
fn an_aperture_is_in_the_window_beside_bars_and_no_bar_gets_there() {
    let m = Machine::new(0);
    let need = |mib: u64| ApertureNeed { length: mib << 20, align: 2 << 20 };
    let toy = |apertures| Toy { wide: true, apertures, ..Toy::default() };
    let held = m.reserve(&toy(vec![need(6), need(2)]));
    let placed = held.placed().clone();
    // The BAR has the top of the window, what is aligned comes below it, and a size need not be a power of two.
    let top = HIGH.end() - (2 << 20);
    assert_eq!(placed.bars[0].2.base, HIGH.end() - SIZE);
    let at = |base, mib: u64| Span { base, length: mib << 20 };
    assert_eq!(placed.apertures, [at(top - (6 << 20), 6), at(top - (8 << 20), 2)]);

    let (plugged, _) = m.plug(true);
    let slot = u64::from(plugged.placed().slot);
    m.write(config(slot, regs::COMMAND), &[2, 0]);
    let put = |base: u64| {
        m.set(config(slot, 0x10), base as u32);
        m.set(config(slot, 0x14), (base >> 32) as u32);
        m.answers(base)
    };
    assert!(put(HIGH.base) && !put(placed.apertures[0].base), "a BAR answers where memory is");
    drop(plugged);

    let needs = toy(vec![need(6), need(2)]).needs();
    assert!(matches!(Reservation::again(&m.segment, &needs, &placed), Err(PciError::SlotTaken { .. })));
    drop(held);
    drop(Reservation::again(&m.segment, &needs, &placed).unwrap());
    let with = |apertures: Vec<Span>| PlacedPci { apertures, ..placed.clone() };
    let again = |apertures| Reservation::again(&m.segment, &needs, &with(apertures)).err().unwrap();
    let (first, second) = (placed.apertures[0], placed.apertures[1]);
    assert!(matches!(again(vec![first]), PciError::Foreign { .. }));
    let longer = Span { length: 8 << 20, ..first };
    assert!(matches!(
        again(vec![longer, second]),
        PciError::ApertureLength { had: 0x80_0000, needed: 0x60_0000, .. }
    ));
    let odd = Span { base: first.base + 4096, ..first };
    let low = Span { base: LOW.base, ..first };
    let past = Span { base: u64::MAX - (2 << 20) + 1, ..first };
    let over = Span { base: first.base + (2 << 20), ..second };
    for wrong in [[odd, second], [low, second], [past, second], [first, over]] {
        assert!(matches!(again(wrong.to_vec()), PciError::ApertureReplay { .. }), "{wrong:?}");
    }
    assert!(matches!(
        Reservation::new(&m.segment, &toy(vec![need(4095), need(2)]).needs(), None),
        Err(PciError::ApertureExhausted { segment: 0, length: 0x20_0000 })
    ));
    // Nothing of all that was kept.
    assert_eq!(m.reserve(&toy(vec![need(6), need(2)])).placed(), &placed);
}

#[test]
fn a_place_can_be_had_again_and_a_false_one_is_refused() {
    let m = Machine::new(0);
    let needs = Toy::default().needs();
    let place = m.reserve(&Toy::default()).placed().clone();
    let again = Reservation::again(&m.segment, &needs, &place).unwrap();
    assert_eq!(again.placed(), &place);
    let mut elsewhere = PlacedPci { slot: 5, ..place.clone() };
    assert!(matches!(Reservation::again(&m.segment, &needs, &elsewhere), Err(PciError::Replay { .. })));
    drop(again);
    for wrong in [
        Span { base: LOW.base + 16, length: SIZE },
        Span { base: LOW.base, length: 0 },
        Span { base: LOW.base, length: SIZE / 2 },
    ] {
        elsewhere.bars[0].2 = wrong;
        assert!(matches!(Reservation::again(&m.segment, &needs, &elsewhere), Err(PciError::Foreign { .. })));
    }
    elsewhere.bars[0].2 = Span { base: u64::MAX - SIZE + 1, length: SIZE };
    assert!(matches!(Reservation::again(&m.segment, &needs, &elsewhere), Err(PciError::Replay { .. })));
    elsewhere.bars.clear();
    assert!(matches!(Reservation::again(&m.segment, &needs, &elsewhere), Err(PciError::Foreign { .. })));
    // Nothing was left behind.
    assert_eq!(Reservation::again(&m.segment, &needs, &place).unwrap().placed(), &place);
}

#[test]
fn ports_reach_segment_0_at_every_width() {
    let m = Machine::new(0);
    let (_a, _) = m.plug(false);
    assert_eq!(m.port_get(0xcfc, 4), u32::MAX);
    m.port_set(0xcf8, &0x8000_0800u32.to_le_bytes());
    assert_eq!(m.port_get(0xcf8, 4), 0x8000_0800);
    assert_eq!(m.port_get(0xcfc, 4), 0x1042_1af4);
    assert_eq!(m.port_get(0xcfe, 2), 0x1042);
    assert_eq!(m.port_get(0xcff, 1), 0x10);
    // The address register takes bytes as well.
    m.port_set(0xcf8, &[0x3c]);
    m.port_set(0xcfc, &[0x5a]);
    assert_eq!(m.port_get(0xcfc, 1), 0x5a);
    m.port_set(0xcfb, &[0]);
    assert_eq!(m.port_get(0xcfc, 1), 0xff);
    for address in [0x8001_0800u32, 0x8000_0900, 0x8000_1000, 0x0000_0800] {
        m.port_set(0xcf8, &address.to_le_bytes());
        assert_eq!(m.port_get(0xcfc, 4), u32::MAX, "{address:#x}");
        m.port_set(0xcfc, &[0; 4]);
    }
    for port in 0xcf8..0xd00 {
        for length in [1, 2, 4] {
            m.port_set(port, &[0xff; 4][..length]);
            m.port_get(port, length);
        }
    }
}

#[test]
fn every_configuration_access_is_safe_and_live_capabilities_reach_the_device() {
    let m = Machine::new(0);
    let (_a, _) = m.plug(true);
    // The second capability begins at 0x50, its body two bytes on.
    let mut data = [0; 8];
    m.memory.read(config(1, 0x50), &mut data);
    assert_eq!(data, [9, 0x64, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85]);
    m.memory.read(config(1, 0x60), &mut data);
    assert_eq!(data[..6], [0x8e, 0x8f, 0x90, 0x91, 0x11, 0]);
    for value in [0, 0x5a, 0xff] {
        for slot in 0..3 {
            for at in 0..0x1000 {
                for width in [1, 2, 3, 4, 8] {
                    m.write(config(slot, at), &[value; 8][..width]);
                    m.memory.read(config(slot, at), &mut data[..width]);
                }
            }
        }
    }
    assert_eq!(m.get(config(1, 0)), 0x1042_1af4);
}

#[test]
fn impossible_needs_are_refused() {
    let m = Machine::new(0);
    let refuse = |change: &dyn Fn(&mut PciNeeds)| {
        let mut needs = Toy::default().needs();
        change(needs.pci.as_mut().unwrap());
        Reservation::new(&m.segment, &needs, None).err().expect("a refusal").to_string()
    };
    let msix = |f: &dyn Fn(&mut MsixNeed)| refuse(&|n| f(n.msix.as_mut().unwrap()));
    assert!(msix(&|n| n.vectors = 0).contains("MSI-X"));
    assert!(msix(&|n| n.vectors = 2049).contains("MSI-X"));
    assert!(msix(&|n| n.bar = 1).contains("MSI-X"));
    assert!(msix(&|n| n.table = 4).contains("MSI-X"));
    assert!(msix(&|n| n.table = SIZE as u32).contains("MSI-X"));
    assert!(msix(&|n| n.pending = n.table).contains("MSI-X"));
    assert!(refuse(&|n| n.bars[0].size = 24).contains("BAR 0"));
    assert!(refuse(&|n| n.bars.push(n.bars[0])).contains("BAR 0"));
    assert!(refuse(&|n| n.bars[0].size = 1 << 31).contains("no room"));
    assert!(matches!(
        Reservation::new(&m.segment, &Needs::default(), None).err(),
        Some(PciError::NoFunction)
    ));
    assert_eq!(m.reserve(&Toy::default()).placed().slot, 1, "nothing was left behind");
}

mod bars;
mod msix;
mod state;
