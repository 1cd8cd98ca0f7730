//! What the tests of the devices share.

use std::sync::Arc;

use device::fake::{FakeEvents, FakeIrq};
use device::ram::RamMap;
use device::{Grant, Line, Ram, Region, Registers, TableEntry, TableSink, Workers};
use vm_memory::GuestAddress;

/// A grant with these lines.
pub(crate) fn grant(lines: Vec<Arc<dyn Line>>) -> (Grant, Arc<FakeEvents>) {
    let events = Arc::new(FakeEvents::default());
    let map = RamMap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let grant = Grant {
        ram: Ram::new(map),
        vectors: Vec::new(),
        lines,
        doorbells: Vec::new(),
        apertures: Vec::new(),
        workers: Workers::new(events.clone()),
        events: events.clone(),
    };
    (grant, events)
}

/// A line that counts.
pub(crate) fn line() -> (Arc<FakeIrq>, Vec<Arc<dyn Line>>) {
    let line = Arc::new(FakeIrq::default());
    (line.clone(), vec![line])
}

/// Collects table entries.
#[derive(Default)]
pub(crate) struct Sink(pub(crate) Vec<TableEntry>);

impl TableSink for Sink {
    fn add(&mut self, entry: TableEntry) {
        self.0.push(entry);
    }
}

impl Sink {
    /// Whether some AML holds these bytes.
    pub(crate) fn has(&self, needle: &[u8]) -> bool {
        self.0.iter().any(|e| match e {
            TableEntry::SystemBus(aml) | TableEntry::Root(aml) => {
                aml.windows(needle.len()).any(|w| w == needle)
            }
            _ => false,
        })
    }
}

/// Reads one byte.
pub(crate) fn inb(device: &dyn Registers, window: u8, offset: u64) -> u8 {
    let mut data = [0];
    device.read(Region::Window(window), offset, &mut data);
    data[0]
}

/// Writes one byte.
pub(crate) fn outb(device: &dyn Registers, window: u8, offset: u64, value: u8) -> device::Effect {
    device.write(Region::Window(window), offset, &[value])
}

/// Reads and writes every offset near a window with every width and a few values; the device must survive.
pub(crate) fn sweep(device: &dyn Registers, length: u64) {
    for window in [0, 1, 2, 255] {
        for offset in (0..length + 9).chain([u64::from(u32::MAX), u64::MAX - 8, u64::MAX]) {
            for width in [0, 1, 2, 3, 4, 8] {
                for value in [0x00, 0xff, 0x80, 0x0a, 0x55] {
                    let _effect = device.write(Region::Window(window), offset, &vec![value; width]);
                    device.read(Region::Window(window), offset, &mut vec![0; width]);
                    device.read(Region::Bar(window), offset, &mut vec![0; width]);
                    let _effect = device.write(Region::Bar(window), offset, &vec![value; width]);
                }
            }
        }
    }
}
