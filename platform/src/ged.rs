//! The generic event device: how the platform tells the guest that something happened (ACPI 6.5 §5.6.9).
//!
//! One byte of memory holds the events; reading it clears them.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use acpi_tables::aml;
use device::grant::{Bell, PowerButton, Ring};
use device::state::{self, Node, StateError};
use device::{
    Device, DeviceError, Effect, Grant, Line, LineNeed, Needs, Placed, Region, Registers, Space, TableSink,
    WindowNeed,
};
use serde::{Deserialize, Serialize};

/// Interrupt controller input.
const PIN: u8 = 13;
/// The PCI hotplug controller has something to tell.
const PCI: u8 = 1 << 2;
/// The power button was pressed.
const POWER_BUTTON: u8 = 1 << 3;
/// The VM generation ID is another.
const GENERATION: u8 = 1 << 4;
/// Notification that it changed.
const CHANGED: u8 = 0x80;
/// Notification for a press (ACPI 6.5 table 5.164).
const PRESSED: u8 = 0x80;

/// The event device.
#[derive(Default)]
pub struct Ged {
    events: AtomicU8,
    line: OnceLock<Arc<dyn Line>>,
    /// The events come from a saved state, and the device was not started since.
    loaded: AtomicBool,
}

/// What is saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GedState {
    /// Those that the guest has not read. One that it does not know is one that it ignores.
    events: u8,
}

impl device::State for GedState {
    const KIND: &'static str = "ged";
}

impl Ged {
    /// A device that nothing has happened to.
    pub fn new() -> Self {
        Ged::default()
    }

    fn tell(&self, event: u8) {
        self.events.fetch_or(event, Ordering::AcqRel);
        match self.line.get() {
            Some(line) => line.pulse(),
            None => log::error!("the event device is not wired: event {event:#x} is lost"),
        }
    }
}

impl PowerButton for Ged {
    fn press(&self) {
        self.tell(POWER_BUTTON);
    }
}

impl Bell for Ged {
    fn ring(&self, what: Ring) {
        self.tell(match what {
            Ring::Pci => PCI,
            Ring::Generation => GENERATION,
        });
    }
}

impl Registers for Ged {
    fn read(&self, _region: Region, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == 0
            && let Some(first) = data.first_mut()
        {
            *first = self.events.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, _region: Region, _offset: u64, _data: &[u8]) -> Effect {
        Effect::None
    }
}

impl Device for Ged {
    fn needs(&self) -> Needs {
        Needs {
            windows: vec![WindowNeed { space: Space::Memory, base: None, length: 1 }],
            lines: vec![LineNeed { pin: PIN }],
            ..Needs::default()
        }
    }

    fn wire(&mut self, grant: Grant) -> Result<(), DeviceError> {
        if let Some(line) = grant.lines.into_iter().next() {
            // Wired once; a second line would change nothing.
            let _ = self.line.set(line);
        }
        Ok(())
    }

    fn start(&self) -> Result<(), DeviceError> {
        // The interrupt may have been on its way when the state was taken.
        if self.loaded.swap(false, Ordering::AcqRel)
            && self.events.load(Ordering::Acquire) != 0
            && let Some(line) = self.line.get()
        {
            line.pulse();
        }
        Ok(())
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        crate::save(&GedState { events: self.events.load(Ordering::Acquire) })
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        let GedState { events } = state::some(node)?.read()?;
        self.events.store(events, Ordering::Release);
        self.loaded.store(true, Ordering::Release);
        Ok(())
    }

    fn power_button(&self) -> Option<&dyn PowerButton> {
        Some(self)
    }

    fn bell(&self) -> Option<&dyn Bell> {
        Some(self)
    }

    fn describe(&self, placed: &Placed, sink: &mut dyn TableSink) {
        let Some(window) = placed.windows.first() else {
            log::error!("the event device was given no address and is left out of the tables");
            return;
        };
        let pin = placed.lines.first().copied().unwrap_or(u32::from(PIN));
        sink.system_bus(&aml::Device::new(
            "PWRB".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
                &aml::Name::new("_UID".into(), &aml::ZERO),
            ],
        ));
        let last = window.base;
        let range = aml::AddressSpace::new_memory(
            aml::AddressSpaceCacheable::NotCacheable,
            true,
            window.base,
            last,
            None,
        );
        sink.system_bus(&aml::Device::new(
            "GEC_".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A06")),
                &aml::Name::new("_UID".into(), &"Generic Event Controller"),
                &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&range])),
                &aml::OpRegion::new("GDST".into(), aml::OpRegionSpace::SystemMemory, &window.base, &aml::ONE),
                &aml::Field::new(
                    "GDST".into(),
                    aml::FieldAccessType::Byte,
                    aml::FieldLockRule::NoLock,
                    aml::FieldUpdateRule::WriteAsZeroes,
                    vec![aml::FieldEntry::Named(*b"GDAT", 8)],
                ),
                &aml::Method::new(
                    "ESCN".into(),
                    0,
                    true,
                    vec![
                        // One read takes all events.
                        &aml::Store::new(&aml::Local(0), &aml::Path::new("GDAT")),
                        &aml::And::new(&aml::Local(1), &aml::Local(0), &PCI),
                        &aml::If::new(
                            &aml::NotEqual::new(&aml::Local(1), &aml::ZERO),
                            vec![&aml::MethodCall::new("\\_SB_.PHPR.PSCN".into(), vec![])],
                        ),
                        &aml::And::new(&aml::Local(1), &aml::Local(0), &POWER_BUTTON),
                        &aml::If::new(
                            &aml::NotEqual::new(&aml::Local(1), &aml::ZERO),
                            vec![&aml::Notify::new(&aml::Path::new("\\_SB_.PWRB"), &PRESSED)],
                        ),
                        &aml::And::new(&aml::Local(1), &aml::Local(0), &GENERATION),
                        &aml::If::new(
                            &aml::NotEqual::new(&aml::Local(1), &aml::ZERO),
                            vec![&aml::Notify::new(&aml::Path::new("\\_SB_.VGEN"), &CHANGED)],
                        ),
                    ],
                ),
            ],
        ));
        sink.system_bus(&aml::Device::new(
            "GED_".into(),
            vec![
                &aml::Name::new("_HID".into(), &"ACPI0013"),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(true, true, false, false, pin)]),
                ),
                &aml::Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![&aml::MethodCall::new("\\_SB_.GEC_.ESCN".into(), vec![])],
                ),
            ],
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Sink, grant, inb, line, sweep};
    use device::Span;

    #[test]
    fn a_press_interrupts_and_is_read_once() {
        let mut ged = Ged::new();
        let (irq, lines) = line();
        ged.wire(grant(lines).0).unwrap();
        assert_eq!(inb(&ged, 0, 0), 0);
        ged.power_button().unwrap().press();
        assert_eq!(irq.count(), 1);
        assert_eq!((inb(&ged, 0, 0), inb(&ged, 0, 0)), (8, 0));
        ged.power_button().unwrap().press();
        ged.power_button().unwrap().press();
        assert_eq!((irq.count(), inb(&ged, 0, 0)), (3, 8));
        ged.power_button().unwrap().press();
        ged.bell().unwrap().ring(Ring::Pci);
        assert_eq!((irq.count(), inb(&ged, 0, 0)), (5, 0xc));
        sweep(&ged, 1);
    }

    #[test]
    fn the_tables_tell_of_the_button_at_the_address_given() {
        let base = 0x3f_fffe_f000_u64;
        let placed = Placed { windows: vec![Span { base, length: 1 }], lines: vec![13], ..Placed::default() };
        let mut sink = Sink::default();
        Ged::new().describe(&placed, &mut sink);
        assert!(sink.has(b"PWRB\x08_HID\x0c\x41\xd0\x0c\x0c"), "PNP0C0C");
        let mut region = b"\x5b\x80GDST\x00\x0e".to_vec();
        region.extend(base.to_le_bytes());
        assert!(sink.has(&region));
        // Interrupt(ResourceConsumer, Edge, ActiveHigh, Exclusive) { 13 }
        assert!(sink.has(b"\x89\x06\x00\x03\x01\x0d\x00\x00\x00"));
        assert!(sink.has(b"\\\x2f\x03_SB_PHPRPSCN"));
        // Notify(\_SB_.PWRB, 0x80)
        assert!(sink.has(b"\x86\\\x2e_SB_PWRB\x0a\x80"));
        let mut nothing = Sink::default();
        Ged::new().describe(&Placed::default(), &mut nothing);
        assert!(nothing.0.is_empty());
    }
}
