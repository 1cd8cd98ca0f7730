//! Stories of drivers and devices on routes that remember.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use device::fake::state::{golden, tamper};

use super::*;
use crate::bench::{Sink, sweep};

struct Route {
    gsi: u32,
    event: EventFd,
    message: Mutex<Option<MsiMessage>>,
    updates: AtomicU32,
}

impl MsiRoute for Route {
    fn gsi(&self) -> u32 {
        self.gsi
    }

    fn update(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.message.lock().unwrap() = message;
        self.updates.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}

struct Bench {
    ioapic: Ioapic,
    routes: Vec<Arc<Route>>,
}

impl Bench {
    fn new() -> Self {
        let routes: Vec<_> = (0..24)
            .map(|gsi| {
                let event = EventFd::new(EFD_NONBLOCK).unwrap();
                Arc::new(Route { gsi, event, message: Mutex::default(), updates: AtomicU32::default() })
            })
            .collect();
        let given: Vec<_> = routes.iter().map(|r| r.clone() as Arc<dyn MsiRoute>).collect();
        let ioapic = Ioapic::new(Box::new(move |pin| Ok(given[usize::from(pin)].clone())));
        for pin in 0..24 {
            ioapic.line(pin).unwrap();
        }
        Bench { ioapic, routes }
    }

    fn line(&self, pin: u8) -> Arc<dyn Line> {
        self.ioapic.line(pin).unwrap()
    }

    fn read(&self, register: u8) -> u32 {
        assert_eq!(self.ioapic.write(Region::Window(0), 0, &u32::from(register).to_le_bytes()), Effect::None);
        let mut data = [0; 4];
        self.ioapic.read(Region::Window(0), 0x10, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u8, value: u32) {
        assert_eq!(self.ioapic.write(Region::Window(0), 0, &[register]), Effect::None);
        assert_eq!(self.ioapic.write(Region::Window(0), 0x10, &value.to_le_bytes()), Effect::None);
    }

    fn entry(&self, pin: u8) -> u64 {
        u64::from(self.read(0x11 + 2 * pin)) << 32 | u64::from(self.read(0x10 + 2 * pin))
    }

    fn program(&self, pin: u8, entry: u64) {
        self.write(0x11 + 2 * pin, (entry >> 32) as u32);
        self.write(0x10 + 2 * pin, entry as u32);
    }

    /// Deliveries of a pin since asked last.
    fn deliveries(&self, pin: usize) -> u64 {
        self.routes[pin].event.read().unwrap_or(0)
    }

    fn message(&self, pin: usize) -> MsiMessage {
        self.routes[pin].message.lock().unwrap().expect("a message")
    }
}

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const IRR: u64 = 1 << 14;

#[test]
fn a_driver_finds_24_masked_pins_of_version_0x11() {
    let bench = Bench::new();
    assert_eq!(bench.read(0x01), 0x0017_0011);
    bench.write(0x01, 0);
    assert_eq!(bench.read(0x01), 0x0017_0011);
    bench.write(0x00, 0xffff_ffff);
    assert_eq!((bench.read(0x00), bench.read(0x02)), (0x0f00_0000, 0x0f00_0000));
    for pin in 0..24 {
        assert_eq!(bench.entry(pin), MASKED);
    }
    assert_eq!(bench.read(0x40), u32::MAX);
    bench.line(24).pulse();
    let mut data = [0; 1];
    bench.ioapic.read(Region::Window(0), 0, &mut data);
    assert_eq!(data, [0x40]);
}

#[test]
fn each_rising_edge_is_delivered_unless_the_pin_is_masked() {
    let bench = Bench::new();
    let line = bench.line(4);
    line.pulse();
    assert_eq!(bench.deliveries(4), 0);
    bench.program(4, 0x24);
    assert_eq!(bench.deliveries(4), 0, "an edge at a masked pin is lost");
    line.pulse();
    line.pulse();
    assert_eq!(bench.deliveries(4), 2);
    line.set(true);
    line.set(true);
    assert_eq!(bench.deliveries(4), 1);
    line.set(false);
    assert_eq!(bench.deliveries(4), 0);
    assert_eq!(bench.entry(4), 0x24, "no Remote IRR for edges");
    bench.ioapic.end_of_interrupt(0x24);
    bench.program(4, 0x24 | MASKED);
    line.pulse();
    assert_eq!(bench.deliveries(4), 0);
    assert_eq!((0..24).map(|pin| bench.deliveries(pin)).sum::<u64>(), 0);
}

#[test]
fn a_level_is_delivered_again_only_after_its_end_of_interrupt() {
    let bench = Bench::new();
    let line = bench.line(9);
    bench.program(9, 0x51 | LEVEL);
    line.set(true);
    line.set(true);
    assert_eq!((bench.deliveries(9), bench.entry(9)), (1, 0x51 | LEVEL | IRR));
    bench.ioapic.end_of_interrupt(0x50);
    assert_eq!(bench.deliveries(9), 0);
    bench.ioapic.end_of_interrupt(0x51);
    assert_eq!((bench.deliveries(9), bench.entry(9)), (1, 0x51 | LEVEL | IRR), "still asserted");
    line.set(false);
    bench.ioapic.end_of_interrupt(0x51);
    assert_eq!((bench.deliveries(9), bench.entry(9)), (0, 0x51 | LEVEL));
    line.set(true);
    assert_eq!(bench.deliveries(9), 1);
}

#[test]
fn a_level_that_rose_behind_the_mask_is_delivered_when_the_mask_goes() {
    let bench = Bench::new();
    let line = bench.line(5);
    bench.program(5, 0x60 | LEVEL | MASKED);
    line.set(true);
    assert_eq!((bench.deliveries(5), bench.entry(5) & IRR), (0, 0));
    bench.program(5, 0x60 | LEVEL);
    assert_eq!((bench.deliveries(5), bench.entry(5) & IRR), (1, IRR));
    // Masking while in service keeps the route and Remote IRR; the end of the interrupt finds the pin masked.
    let updates = bench.routes[5].updates.load(Ordering::SeqCst);
    bench.program(5, 0x60 | LEVEL | MASKED);
    assert_eq!((bench.entry(5) & IRR, bench.routes[5].updates.load(Ordering::SeqCst)), (IRR, updates));
    bench.ioapic.end_of_interrupt(0x60);
    assert_eq!((bench.deliveries(5), bench.entry(5) & IRR), (0, 0));
    bench.program(5, 0x60 | LEVEL);
    assert_eq!(bench.deliveries(5), 1);
}

#[test]
fn software_ends_an_interrupt_by_turning_the_pin_to_edge_and_back() {
    let bench = Bench::new();
    let line = bench.line(5);
    bench.program(5, 0x60 | LEVEL);
    line.set(true);
    assert_eq!(bench.deliveries(5), 1);
    bench.program(5, 0x60 | MASKED);
    bench.program(5, 0x60 | LEVEL | MASKED);
    assert_eq!(bench.entry(5), 0x60 | LEVEL | MASKED);
    bench.program(5, 0x60 | LEVEL);
    assert_eq!(bench.deliveries(5), 1);
    // What software cannot write stays.
    bench.program(6, 0x61 | LEVEL | IRR | 1 << 12);
    assert_eq!(bench.entry(6), 0x61 | LEVEL);
}

#[test]
fn two_pins_of_one_vector_end_together() {
    let bench = Bench::new();
    let lines = [7, 8].map(|pin| bench.line(pin));
    for (pin, line) in (7..).zip(&lines) {
        bench.program(pin, 0x70 | LEVEL);
        line.set(true);
    }
    lines[0].set(false);
    bench.ioapic.end_of_interrupt(0x70);
    assert_eq!((bench.deliveries(7), bench.deliveries(8)), (1, 2));
}

#[test]
fn an_entry_becomes_the_message_that_a_local_apic_understands() {
    let bench = Bench::new();
    // Physical destination 3, fixed, edge, vector 0x31.
    bench.program(0, 3 << 56 | 0x31);
    assert_eq!(bench.message(0), MsiMessage { address: 0xfee0_3000, data: 0x31 });
    // Logical destination 0xff, lowest priority, level, vector 0x41.
    bench.program(1, 0xff << 56 | LEVEL | 1 << 11 | 1 << 8 | 0x41);
    assert_eq!(bench.message(1), MsiMessage { address: 0xfeef_f004, data: 0xc141 });
    // A 15-bit destination, 0x7f01.
    bench.program(2, 0x01 << 56 | 0x7f << 49 | 0x51);
    assert_eq!(bench.message(2), MsiMessage { address: 0xfee0_1fe0, data: 0x51 });
    assert_eq!(bench.entry(2), 0x01fe_0000_0000_0051);
    // Nothing is told twice, and nothing of a masked pin.
    let updates = || bench.routes[2].updates.load(Ordering::SeqCst);
    let before = updates();
    bench.program(2, 0x01 << 56 | 0x7f << 49 | 0x51);
    bench.program(2, 0x02 << 56 | 0x52 | MASKED);
    assert_eq!(updates() - before, 1, "the high half was written while the low one was not masked");
}

#[test]
fn every_register_survives_every_value() {
    let bench = Bench::new();
    let lines: Vec<_> = (0..24).map(|pin| bench.line(pin)).collect();
    for select in 0..=255 {
        for value in [0, u32::MAX, 0x8000, 0x1_8000, 0x4000] {
            bench.write(select, value);
            bench.read(select);
            lines[usize::from(select) % 24].pulse();
            bench.ioapic.end_of_interrupt(value as u8);
        }
    }
    sweep(&bench.ioapic, LENGTH);
}

#[test]
fn only_pins_with_lines_have_routes_and_a_line_that_comes_late_finds_what_was_said() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let bench = Bench::new();
    let (routes, told) = (bench.routes.clone(), asked.clone());
    let ioapic = Ioapic::new(Box::new(move |pin| {
        told.lock().unwrap().push(pin);
        if pin == 7 { Err("no more".into()) } else { Ok(routes[usize::from(pin)].clone()) }
    }));
    let bench = Bench { ioapic, ..bench };
    sweep(&bench.ioapic, LENGTH);
    bench.program(9, 0x51);
    assert!(asked.lock().unwrap().is_empty() && bench.routes[9].message.lock().unwrap().is_none());
    let (line, again) = (bench.line(9), bench.line(9));
    assert!(bench.routes[9].message.lock().unwrap().is_some());
    line.pulse();
    again.pulse();
    assert_eq!(bench.routes[9].event.read().unwrap(), 2);
    assert!(bench.ioapic.line(7).is_err());
    assert_eq!(*asked.lock().unwrap(), [9, 7]);
}

#[test]
fn the_tables_tell_of_the_controller_and_of_com1() {
    let mut sink = Sink::default();
    Bench::new().ioapic.describe(&Placed::default(), &mut sink);
    assert_eq!(
        sink.0,
        [
            TableEntry::Madt(vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
            TableEntry::Madt(vec![2, 10, 0, 4, 4, 0, 0, 0, 0, 0]),
        ]
    );
}

impl Bench {
    fn save(&self) -> Node {
        self.ioapic.save().unwrap().unwrap()
    }

    /// A controller with routes of its own that goes on from a state.
    fn load(node: Node) -> Result<Self, StateError> {
        let bench = Bench::new();
        bench.ioapic.load(Some(node)).map(|()| bench)
    }

    /// One with pins of all kinds: at edge, at level and being served, at level and masked while being served, unused.
    fn busy() -> Self {
        let bench = Bench::new();
        bench.write(0x00, 0x0200_0000);
        bench.program(4, 0x0100_0000_0000_0024);
        bench.program(9, LEVEL | 0x29);
        bench.program(10, LEVEL | 0x2a);
        for pin in [4, 9, 10] {
            bench.line(pin).set(true);
        }
        bench.program(10, LEVEL | MASKED | 0x2b);
        bench.read(0x22);
        bench
    }
}

#[test]
fn pins_go_on_with_their_routes_lines_and_unended_interrupts() {
    let node = Bench::busy().save();
    let text = serde_json::to_string(&node).unwrap();
    let bench = Bench::load(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(bench.save(), node);
    assert_eq!(bench.read(0x00), 0x0200_0000);
    // Routes are told again, also that of a masked pin, whose interrupt a processor has still to end.
    assert_eq!(bench.message(4), MsiMessage { address: 0xfee0_1000, data: 0x24 });
    assert_eq!((bench.message(9).data, bench.message(10).data), (0xc029, 0xc02a));
    assert_eq!(bench.routes[5].updates.load(Ordering::SeqCst), 0);
    assert_eq!(
        (0..24).map(|pin| bench.deliveries(pin)).sum::<u64>(),
        0,
        "what was due is with the processors"
    );
    // A device that finds its line as it left it makes no edge; the next one is delivered.
    bench.line(4).set(true);
    assert_eq!(bench.deliveries(4), 0);
    bench.line(4).set(false);
    bench.line(4).set(true);
    assert_eq!(bench.deliveries(4), 1);
    // The level is still there when the interrupt ends.
    assert_eq!(bench.entry(9), LEVEL | IRR | 0x29);
    bench.ioapic.end_of_interrupt(0x29);
    assert_eq!(bench.deliveries(9), 1);
    bench.line(9).set(false);
    bench.ioapic.end_of_interrupt(0x29);
    assert_eq!((bench.deliveries(9), bench.entry(9)), (0, LEVEL | 0x29));
}

#[test]
fn a_state_of_no_controller_is_refused_and_none_does_harm() {
    let node = Bench::busy().save();
    let refused = |path: &str, value: u64| {
        let mut node = node.clone();
        node.change(|body| *body.pointer_mut(path).unwrap() = value.into());
        Bench::load(node).err().expect("a refusal").to_string()
    };
    assert!(refused("/pins/4/entry", 1 << 20).contains("pin 4 has entry 0x100000"));
    assert!(
        refused("/pins/4/entry", IRR).contains("pin 4 has entry 0x4000, which waits for the end of an edge")
    );
    assert!(refused("/pins/9/routed/address", 0x1000).contains("pin 9 has routed 0x1000, 0xc029"));
    assert!(refused("/id", 1).contains("id is 0x1, of which 0xf000000 can be"));
    for tampered in tamper(&node) {
        let Some(Ok(bench)) = tampered.node().map(Bench::load) else { continue };
        assert!(!tampered.impossible, "{} was taken", tampered.what);
        (0..=u8::MAX).for_each(|vector| bench.ioapic.end_of_interrupt(vector));
        sweep(&bench.ioapic, LENGTH);
        bench.save();
    }
    assert!(Bench::new().ioapic.load(None).is_err());
}

#[test]
fn states_of_all_versions_load() {
    for node in golden(env!("CARGO_MANIFEST_DIR"), "ioapic", &Bench::busy().save()) {
        assert_eq!(Bench::load(node).unwrap().entry(9), LEVEL | IRR | 0x29);
    }
}
