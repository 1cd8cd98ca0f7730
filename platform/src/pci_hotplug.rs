//! The PCI hotplug controller: tells the guest which functions came and which are to go, and takes those that it gives back.
//!
//! Four 32-bit registers, a bit for each slot of the segment that the last one selects; the event device's interrupt makes
//! the guest look at them ([`crate::Ged`]). Whether a slot can be given back at all is the board's to know: a write here only
//! asks for it ([`Effect::Eject`]).

use std::sync::{Mutex, MutexGuard, PoisonError};

use acpi_tables::aml;
use device::grant::Slots;
use device::limit::LogLimit;
use device::state::{self, Node, State, StateError};
use device::{
    Device, DeviceError, Effect, Grant, Needs, Placed, Region, Registers, Space, TableSink, WindowNeed,
    guest_warn,
};
use serde::{Deserialize, Serialize};

/// Length of the registers in bytes.
const LENGTH: u64 = 0x10;

/// Offsets of the registers.
mod register {
    /// Functions that came; reading clears.
    pub(super) const UP: u64 = 0;
    /// Functions that are to go; reading clears.
    pub(super) const DOWN: u64 = 4;
    /// Functions that the guest gives back; reads as 0.
    pub(super) const EJECT: u64 = 8;
    /// The segment that the others speak of.
    pub(super) const SEGMENT: u64 = 0xc;
}

static ODD: LogLimit = LogLimit::new();

/// See the module.
pub struct PciHotplug {
    state: Mutex<Selected>,
}

struct Selected {
    selected: u32,
    segments: Vec<Changes>,
}

/// What the guest was not told yet of a segment; bit n stands for slot n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Changes {
    up: u32,
    down: u32,
}

impl PciHotplug {
    /// A controller for this many segments, with nothing to tell.
    pub fn new(segments: u16) -> Self {
        let segments = vec![Changes::default(); usize::from(segments)];
        PciHotplug { state: Mutex::new(Selected { selected: 0, segments }) }
    }

    fn state(&self) -> MutexGuard<'_, Selected> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, segment: u16, change: impl FnOnce(&mut Changes)) {
        match self.state().segments.get_mut(usize::from(segment)) {
            Some(changes) => change(changes),
            None => log::error!("the hotplug controller knows no PCI segment {segment}"),
        }
    }
}

impl Slots for PciHotplug {
    fn came(&self, segment: u16, slot: u8) {
        self.change(segment, |c| c.up |= 1 << (slot % 32));
    }

    fn ask_back(&self, segment: u16, slot: u8) {
        self.change(segment, |c| c.down |= 1 << (slot % 32));
    }

    fn gone(&self, segment: u16, slot: u8) {
        self.change(segment, |c| {
            c.up &= !(1 << (slot % 32));
            c.down &= !(1 << (slot % 32));
        });
    }
}

impl Selected {
    fn changes(&mut self) -> Option<&mut Changes> {
        self.segments.get_mut(usize::try_from(self.selected).ok()?)
    }

    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            register::UP => self.changes().map_or(0, |c| std::mem::take(&mut c.up)),
            register::DOWN => self.changes().map_or(0, |c| std::mem::take(&mut c.down)),
            register::SEGMENT => self.selected,
            _ => 0,
        }
    }
}

impl Registers for PciHotplug {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Only whole registers are read, so that none is half cleared.
        if region == Region::Window(0)
            && let Ok(data) = <&mut [u8; 4]>::try_from(data)
        {
            *data = self.state().read(offset).to_le_bytes();
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> Effect {
        let (Region::Window(0), Ok(data)) = (region, <[u8; 4]>::try_from(data)) else { return Effect::None };
        let value = u32::from_le_bytes(data);
        let mut state = self.state();
        match offset {
            register::SEGMENT => state.selected = value,
            register::EJECT if value != 0 => {
                let known = u16::try_from(state.selected).ok().filter(|_| state.changes().is_some());
                match known {
                    Some(segment) => return Effect::Eject { segment, slots: value },
                    None => guest_warn!(ODD, "eject from PCI segment {}, which is not there", state.selected),
                }
            }
            _ => {}
        }
        Effect::None
    }
}

impl State for SavedHotplug {
    const KIND: &'static str = "pci-hotplug";
}

/// The controller in a saved machine.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedHotplug {
    selected: u32,
    segments: Vec<Changes>,
}

impl Device for PciHotplug {
    fn needs(&self) -> Needs {
        Needs {
            windows: vec![WindowNeed { space: Space::Memory, base: None, length: LENGTH }],
            ..Needs::default()
        }
    }

    fn wire(&mut self, _: Grant) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        let state = self.state();
        let saved = SavedHotplug { selected: state.selected, segments: state.segments.clone() };
        let node = Node::of(&saved).map_err(|e| DeviceError::new("cannot save the hotplug controller", e))?;
        Ok(Some(node))
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        let saved: SavedHotplug = state::some(node)?.read()?;
        let mut state = self.state();
        if saved.segments.len() != state.segments.len() {
            return Err(StateError::value::<SavedHotplug>(format!(
                "it is for {} PCI segments, and there are {}",
                saved.segments.len(),
                state.segments.len()
            )));
        }
        *state = Selected { selected: saved.selected, segments: saved.segments };
        Ok(())
    }

    fn slots(&self) -> Option<&dyn Slots> {
        Some(self)
    }

    fn describe(&self, placed: &Placed, sink: &mut dyn TableSink) {
        let Some(window) = placed.windows.first() else {
            log::error!("the hotplug controller was given no address and is left out of the tables");
            return;
        };
        let scans: Vec<_> = (0..self.state().segments.len())
            .map(|n| aml::MethodCall::new(format!("\\_SB_.PC{n:02X}.PCNT").as_str().into(), vec![]))
            .collect();
        let range = aml::AddressSpace::new_memory(
            aml::AddressSpaceCacheable::NotCacheable,
            true,
            window.base,
            window.base + (LENGTH - 1),
            None,
        );
        sink.system_bus(&aml::Device::new(
            "PHPR".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A06")),
                // Present, enabled and working, but nothing to show to a user.
                &aml::Name::new("_STA".into(), &0x0bu8),
                &aml::Name::new("_UID".into(), &"PCI Hotplug Controller"),
                &aml::Mutex::new("BLCK".into(), 0),
                &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&range])),
                &aml::OpRegion::new(
                    "PCST".into(),
                    aml::OpRegionSpace::SystemMemory,
                    &window.base,
                    &(LENGTH as u8),
                ),
                &aml::Field::new(
                    "PCST".into(),
                    aml::FieldAccessType::DWord,
                    aml::FieldLockRule::NoLock,
                    aml::FieldUpdateRule::WriteAsZeroes,
                    vec![
                        aml::FieldEntry::Named(*b"PCIU", 32),
                        aml::FieldEntry::Named(*b"PCID", 32),
                        aml::FieldEntry::Named(*b"B0EJ", 32),
                        aml::FieldEntry::Named(*b"PSEG", 32),
                    ],
                ),
                // PCEJ(slot, segment): gives a function back.
                &aml::Method::new(
                    "PCEJ".into(),
                    2,
                    true,
                    vec![
                        &aml::Acquire::new("BLCK".into(), 0xffff),
                        &aml::Store::new(&aml::Path::new("PSEG"), &aml::Arg(1)),
                        &aml::ShiftLeft::new(&aml::Path::new("B0EJ"), &aml::ONE, &aml::Arg(0)),
                        &aml::Release::new("BLCK".into()),
                        &aml::Return::new(&aml::ZERO),
                    ],
                ),
                // PSCN(): has every segment look at what changed.
                &aml::Method::new(
                    "PSCN".into(),
                    0,
                    true,
                    scans.iter().map(|scan| scan as &dyn acpi_tables::Aml).collect(),
                ),
            ],
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Sink, sweep};
    use device::Span;

    const WINDOW: Region = Region::Window(0);

    fn get(device: &PciHotplug, offset: u64) -> u32 {
        let mut data = [0; 4];
        device.read(WINDOW, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(device: &PciHotplug, offset: u64, value: u32) -> Effect {
        device.write(WINDOW, offset, &value.to_le_bytes())
    }

    #[test]
    fn changes_are_told_once_and_of_the_selected_segment() {
        let device = PciHotplug::new(2);
        let slots = device.slots().unwrap();
        slots.came(0, 5);
        slots.came(1, 31);
        slots.ask_back(1, 0);
        assert_eq!((get(&device, 0), get(&device, 0), get(&device, 4)), (1 << 5, 0, 0));
        assert_eq!(set(&device, 0xc, 1), Effect::None);
        assert_eq!((get(&device, 0xc), get(&device, 0), get(&device, 4)), (1, 1 << 31, 1));
        assert_eq!((get(&device, 0), get(&device, 4)), (0, 0));
        // What is gone is not told of any more.
        slots.came(1, 3);
        slots.ask_back(1, 3);
        slots.gone(1, 3);
        assert_eq!((get(&device, 0), get(&device, 4)), (0, 0));
        slots.came(7, 3);
    }

    #[test]
    fn a_part_of_a_register_clears_nothing() {
        let device = PciHotplug::new(1);
        device.slots().unwrap().came(0, 9);
        for (offset, length) in [(0, 1), (1, 1), (0, 2), (0, 8), (2, 4)] {
            let mut data = vec![0xff; length];
            device.read(WINDOW, offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0));
        }
        assert_eq!(get(&device, 0), 1 << 9);
    }

    #[test]
    fn giving_back_is_passed_on_for_segments_that_exist() {
        let device = PciHotplug::new(2);
        assert_eq!(set(&device, 8, 0x60), Effect::Eject { segment: 0, slots: 0x60 });
        assert_eq!(set(&device, 8, 0), Effect::None);
        let _ = set(&device, 0xc, 1);
        assert_eq!(set(&device, 8, 1), Effect::Eject { segment: 1, slots: 1 });
        for segment in [2, 0x1_0000, u32::MAX] {
            let _ = set(&device, 0xc, segment);
            assert_eq!((set(&device, 8, 1), get(&device, 0), get(&device, 4)), (Effect::None, 0, 0));
        }
        assert_eq!(device.write(WINDOW, 8, &[1]), Effect::None);
        sweep(&device, LENGTH);
    }

    #[test]
    fn it_goes_on_where_it_was_saved() {
        let device = PciHotplug::new(2);
        device.came(1, 4);
        let _ = set(&device, 0xc, 1);
        let node = device.save().unwrap();
        let other = PciHotplug::new(2);
        other.load(node.clone()).unwrap();
        assert_eq!((get(&other, 0xc), get(&other, 0)), (1, 1 << 4));
        let e = PciHotplug::new(1).load(node).unwrap_err();
        assert!(e.to_string().contains("it is for 2 PCI segments, and there are 1"), "{e}");
        assert!(PciHotplug::new(1).load(None).is_err());
    }

    #[test]
    fn the_tables_tell_of_the_registers_and_of_every_segment() {
        let base = 0x3f_fffe_f000_u64;
        let placed = Placed { windows: vec![Span { base, length: LENGTH }], ..Placed::default() };
        let mut sink = Sink::default();
        PciHotplug::new(3).describe(&placed, &mut sink);
        let mut region = b"\x5b\x80PCST\x00\x0e".to_vec();
        region.extend(base.to_le_bytes());
        assert!(sink.has(&region));
        assert!(sink.has(b"PCIU\x20PCID\x20B0EJ\x20PSEG\x20"));
        assert!(sink.has(b"\\\x2f\x03_SB_PC00PCNT\\\x2f\x03_SB_PC01PCNT\\\x2f\x03_SB_PC02PCNT"));
    }
}
