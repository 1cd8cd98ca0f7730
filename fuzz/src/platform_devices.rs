//! The platform's own devices: ports and registers at every width, while lines, bells, slots and terminals do as they please.

use std::io;
use std::sync::Arc;

use device::fake::{FakeEvents, FakeIrq};
use device::grant::Ring;
use device::{
    Build, Built, Device, Grant, Host, Kept, Line, MsiMessage, MsiRoute, Region, TableEntry, TableSink,
    Workers,
};
use platform::{DebugConsoleSpec, Frame, Ioapic, SerialSpec};
use spec::Facts;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Target;
use crate::guest::Board;
use crate::input::Input;

/// An interrupt source that goes nowhere.
struct Route(EventFd);

impl MsiRoute for Route {
    fn gsi(&self) -> u32 {
        0
    }

    fn update(&self, _message: Option<MsiMessage>) -> io::Result<()> {
        Ok(())
    }

    fn event(&self) -> &EventFd {
        &self.0
    }
}

pub fn ioapic() -> Ioapic {
    let route = || Arc::new(Route(EventFd::new(EFD_NONBLOCK).unwrap())) as Arc<dyn MsiRoute>;
    Ioapic::new(Box::new(move |_| Ok(route())))
}

fn built<S: Build>(text: &str, id: &str) -> Box<dyn Device> {
    match S::parse(text).unwrap().build(&Host { id, facts: &Facts::default(), kept: &Kept::default() }) {
        Ok(Built::Device(device)) => device,
        _ => panic!("{text} is no device"),
    }
}

/// All of them but the interrupt controller, wired; their number and order is always the same.
pub fn all() -> Vec<Box<dyn Device>> {
    let mut all: Vec<Box<dyn Device>> =
        platform::standard(Frame { memory: 1 << 30, segments: 2, generation: 0x1000 })
            .into_iter()
            .map(|(_, d)| d)
            .collect();
    all.push(built::<SerialSpec>("null", "__serial"));
    all.push(built::<DebugConsoleSpec>("null", "__debug_console"));
    for device in &mut all {
        let events = Arc::new(FakeEvents::default());
        let lines =
            device.needs().lines.iter().map(|_| Arc::new(FakeIrq::default()) as Arc<dyn Line>).collect();
        device
            .wire(Grant {
                ram: Board::ram(),
                vectors: Vec::new(),
                lines,
                doorbells: Vec::new(),
                apertures: Vec::new(),
                workers: Workers::new(events.clone()),
                events,
            })
            .unwrap();
    }
    all
}

/// Forgets what it is told.
struct Nobody;

impl TableSink for Nobody {
    fn add(&mut self, entry: TableEntry) {
        drop(entry);
    }
}

/// One act on a device, which may be any.
pub fn act(device: &dyn Device, input: &mut Input<'_>) {
    let region = match input.u8() {
        n @ 0..16 => Region::Window(n & 3),
        n => Region::Bar(n & 1),
    };
    let offset = match input.u8() {
        255 => input.value(),
        n => u64::from(n & 0x3f),
    };
    match input.u8() % 10 {
        0..=4 => {
            let (value, width) = (input.value(), input.one_of(&[1, 1, 2, 4, 8, 3]));
            let _effect = device.write(region, offset, &value.to_le_bytes()[..width]);
        }
        5 | 6 => device.read(region, offset, &mut [0; 8][..input.one_of(&[1, 1, 2, 4, 8, 3])]),
        7 => {
            if let Some(bell) = device.bell() {
                bell.ring(if input.flag() { Ring::Pci } else { Ring::Generation });
            }
            if let Some(button) = device.power_button() {
                button.press();
            }
        }
        8 => {
            if let Some(slots) = device.slots() {
                let (segment, slot) = (u16::from(input.u8() & 1), input.u8() & 31);
                match input.u8() % 3 {
                    0 => slots.came(segment, slot),
                    1 => slots.ask_back(segment, slot),
                    _ => slots.gone(segment, slot),
                }
            }
        }
        _ => {
            if input.flag() {
                device.stop().unwrap();
            } else {
                device.start().unwrap();
            }
        }
    }
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let number = input.u8();
    let mut devices = all();
    let number = usize::from(number) % (devices.len() + 1);
    if number == devices.len() {
        return run_ioapic(&mut input);
    }
    let mut device = devices.swap_remove(number);
    device.start().unwrap();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        act(&*device, &mut input);
        if input.u8() == 0xaa {
            // Another one goes on.
            device.stop().unwrap();
            let node = device.save().unwrap();
            device = all().swap_remove(number);
            device.load(node).unwrap_or_else(|e| panic!("a state is not taken back: {e}"));
            device.start().unwrap();
        }
    }
    device.describe(&Default::default(), &mut Nobody);
    device.stop().unwrap();
}

fn run_ioapic(input: &mut Input<'_>) {
    let mut device = ioapic();
    for _ in 0..96 {
        if input.is_empty() {
            break;
        }
        match input.u8() % 6 {
            0..=2 => {
                let (select, value) = (input.u8() & 0x3f, input.value() as u32);
                let _effect = device.write_register(select, value);
            }
            3 => {
                let pin = input.u8() % platform::ioapic::PINS;
                let line = device.line(pin).unwrap();
                if input.flag() { line.pulse() } else { line.set(input.flag()) }
            }
            4 => device.end_of_interrupt(input.u8()),
            _ => act(&device, input),
        }
        if input.u8() == 0xaa {
            let node = device.save().unwrap();
            device = ioapic();
            device.load(node).unwrap_or_else(|e| panic!("a state is not taken back: {e}"));
        }
    }
}

/// The registers behind the select register.
trait Indirect {
    fn write_register(&self, select: u8, value: u32) -> device::Effect;
}

impl Indirect for Ioapic {
    fn write_register(&self, select: u8, value: u32) -> device::Effect {
        let _effect = self.write(Region::Window(0), 0, &u32::from(select).to_le_bytes());
        self.write(Region::Window(0), 0x10, &value.to_le_bytes())
    }
}

use device::Registers as _;

pub fn target() -> Target {
    Target {
        name: "platform",
        about: "ports and registers of the platform's own devices: ACPI, clock, serial port, interrupt controller, …",
        length: 512,
        options: &[],
        words: Vec::new,
        seeds: || {
            let mut seeds = Vec::new();
            for device in 0..11u8 {
                let mut seed = vec![device];
                for offset in 0..8 {
                    seed.extend([0, offset, 0, 0x8a, 0, 0, 0, offset, 5, 0, 0xaa, 1, offset, 0, 11, 1, 0]);
                }
                seed.extend([0, 0, 7, 1, 0, 0, 0, 8, 0, 3, 0, 0]);
                seeds.push(seed);
            }
            // The interrupt controller: an entry, a line, its end.
            seeds.push(vec![10, 0, 0x10, 60, 0, 0, 0x11, 10, 0, 3, 0, 1, 0, 4, 50, 0xaa, 3, 0, 0, 1, 0]);
            seeds
        },
        run,
    }
}
