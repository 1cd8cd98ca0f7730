//! ACPI power management of a hardware-reduced machine: sleep and reset at port 0x600, the timer at 0x608 (ACPI 6.5 §4.8.3).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use acpi_tables::aml;
use device::limit::LogLimit;
use device::state::{self, Node, StateError};
use device::{
    Device, DeviceError, Effect, Grant, Needs, Placed, Region, Registers, Space, TableEntry, TableSink,
    WindowNeed, guest_warn,
};
use serde::{Deserialize, Serialize};

const CONTROL: u16 = 0x600;
const TIMER: u16 = 0x608;

const RESET: u8 = 1;
/// The type of the sleep state S5, as `\_S5_` tells.
const S5: u8 = 5;
/// SLP_TYP in bits 2 to 4, SLP_EN in bit 5 (ACPI 6.5 §4.8.3.7).
const POWER_OFF: u8 = S5 << 2 | 1 << 5;
/// WAK_STS, which a driver clears by writing it before it sleeps.
const WAKE_STATUS: u8 = 1 << 7;

/// Ticks of the timer per second (ACPI 6.5 §4.8.3.3).
const TICKS: u128 = 3_579_545;

/// Sleep, reset and the timer.
#[derive(Debug)]
pub struct AcpiPm {
    timer: Mutex<Timer>,
    limit: LogLimit,
}

/// The timer stands still while the machine does, as the guest's other clocks do.
#[derive(Debug, Default)]
struct Timer {
    /// What it showed when it last stood still.
    base: u32,
    /// Since when it runs.
    since: Option<Instant>,
}

impl Timer {
    fn now(&self) -> u32 {
        self.base.wrapping_add(self.since.map_or(0, |since| ticks(since.elapsed())))
    }
}

/// What is saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcpiPmState {
    /// The timer; any value is one.
    ticks: u32,
}

impl device::State for AcpiPmState {
    const KIND: &'static str = "acpi-pm";
}

impl Default for AcpiPm {
    fn default() -> Self {
        AcpiPm::new()
    }
}

impl AcpiPm {
    /// A timer at 0, which runs from the device's start.
    pub fn new() -> Self {
        AcpiPm { timer: Mutex::default(), limit: LogLimit::new() }
    }

    fn timer(&self) -> MutexGuard<'_, Timer> {
        self.timer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The timer after this time; it wraps at 32 bits.
fn ticks(since: Duration) -> u32 {
    (since.as_nanos() * TICKS / 1_000_000_000) as u32
}

impl Registers for AcpiPm {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        match region {
            Region::Window(1) => crate::read_u32(self.timer().now(), offset, data),
            _ => data.fill(0),
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> Effect {
        match (region, offset, data) {
            (Region::Window(0), 0, [RESET]) => Effect::Reset,
            (Region::Window(0), 0, [POWER_OFF]) => Effect::PowerOff,
            (Region::Window(0), 0, [WAKE_STATUS]) => Effect::None,
            _ => {
                guest_warn!(
                    self.limit,
                    "ACPI: {region:?} at {offset:#x} written with {data:x?}, which means nothing"
                );
                Effect::None
            }
        }
    }
}

impl Device for AcpiPm {
    fn needs(&self) -> Needs {
        let ports = |base: u16, length| WindowNeed { space: Space::Port, base: Some(base.into()), length };
        Needs { windows: vec![ports(CONTROL, 8), ports(TIMER, 4)], ..Needs::default() }
    }

    fn wire(&mut self, _grant: Grant) -> Result<(), DeviceError> {
        Ok(())
    }

    fn start(&self) -> Result<(), DeviceError> {
        self.timer().since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn stop(&self) -> Result<(), DeviceError> {
        let mut timer = self.timer();
        *timer = Timer { base: timer.now(), since: None };
        Ok(())
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        crate::save(&AcpiPmState { ticks: self.timer().now() })
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        let AcpiPmState { ticks } = state::some(node)?.read()?;
        *self.timer() = Timer { base: ticks, since: None };
        Ok(())
    }

    fn describe(&self, _placed: &Placed, sink: &mut dyn TableSink) {
        sink.add(TableEntry::ResetPort { port: CONTROL, value: RESET });
        sink.add(TableEntry::SleepPort(CONTROL));
        sink.add(TableEntry::PmTimerPort(TIMER));
        let s5 = aml::Package::new(vec![&S5, &S5, &aml::ZERO, &aml::ZERO]);
        sink.root(&aml::Name::new("_S5_".into(), &s5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Sink, inb, outb, sweep};

    #[test]
    fn the_sleep_register_resets_and_powers_off() {
        let device = AcpiPm::new();
        assert_eq!(outb(&device, 0, 0, 1), Effect::Reset);
        assert_eq!(outb(&device, 0, 0, 0x34), Effect::PowerOff);
        for value in [0, 2, 0x14, 0x20, 0x30, 0x80, 0xff] {
            assert_eq!(outb(&device, 0, 0, value), Effect::None, "{value:#x}");
        }
        assert_eq!(outb(&device, 0, 1, 1), Effect::None);
        assert_eq!(outb(&device, 1, 0, 1), Effect::None);
        assert_eq!(inb(&device, 0, 0), 0);
        sweep(&device, 8);
    }

    #[test]
    fn the_timer_runs_at_its_rate_and_wraps() {
        assert_eq!(ticks(Duration::from_secs(1)), 3_579_545);
        assert_eq!(ticks(Duration::from_secs(1200)), 1_200_u32.wrapping_mul(3_579_545));
        let device = AcpiPm::new();
        let read = || {
            let mut data = [0; 4];
            device.read(Region::Window(1), 0, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!((read(), read()), (0, 0));
        device.start().unwrap();
        device.start().unwrap();
        let before = read();
        std::thread::sleep(Duration::from_millis(20));
        let passed = read() - before;
        assert!((3_579_545 / 50..3_579_545).contains(&passed), "{passed}");
        device.stop().unwrap();
        let stood = read();
        std::thread::sleep(Duration::from_millis(5));
        device.stop().unwrap();
        assert_eq!(read(), stood);
    }

    #[test]
    fn the_tables_tell_of_ports_and_of_s5() {
        let mut sink = Sink::default();
        AcpiPm::new().describe(&Placed::default(), &mut sink);
        assert!(sink.0.contains(&TableEntry::ResetPort { port: 0x600, value: 1 }));
        assert!(sink.0.contains(&TableEntry::SleepPort(0x600)));
        assert!(sink.0.contains(&TableEntry::PmTimerPort(0x608)));
        // Name(_S5_, Package(4) {5, 5, 0, 0})
        assert!(sink.has(b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
    }
}
