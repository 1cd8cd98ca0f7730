//! The real-time clock and the memory beside it (MC146818), at ports 0x70 and 0x71.
//!
//! The time is the host's, in UTC, and cannot be set. There are no alarms and no interrupts.
//! The namespace tells of it, without an interrupt: a guest that has to guess would take ISA interrupt 8, which is not there.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use acpi_tables::aml;
use device::state::{self, Node, StateError};
use device::{
    Device, DeviceError, Effect, Grant, Needs, Placed, Region, Registers, Space, TableSink, WindowNeed,
};
use serde::{Deserialize, Serialize};

use crate::addresses;

const PORTS: u16 = 0x70;
const PORTS_LENGTH: u8 = 2;
const BASE: u64 = PORTS as u64;
const LENGTH: u64 = PORTS_LENGTH as u64;
const INDEX: u64 = 0;
const DATA: u64 = 1;

/// Bit 7 of the index masks NMIs and does not select.
const INDEX_MASK: u8 = 0x7f;
/// Shutdown status with NMIs masked: writing 0 to it resets.
const SHUTDOWN: u8 = 0x8f;

/// Status register A: time base 32768 Hz; bit 7 tells that the time is about to change.
const STATUS_A: u8 = 0x20;
const UPDATING: u8 = 0x80;
/// Status register B: 24 hours, BCD.
const STATUS_B: u8 = 0x02;
/// Status register D: the battery is good.
const STATUS_D: u8 = 0x80;

/// How long before a second ends the update is announced.
const ANNOUNCED: Duration = Duration::from_micros(244);

/// Bytes of memory, those of the clock included.
const MEMORY: usize = 128;

/// Unit of the memory sizes.
const UNIT: u64 = 64 << 10;
const SIXTEEN_MIB: u64 = 16 << 20;

/// The clock.
#[derive(Debug)]
pub struct Cmos {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    index: u8,
    memory: [u8; MEMORY],
}

/// What is saved. The time is the host's, wherever that is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CmosState {
    index: u8,
    memory: Vec<u8>,
}

impl device::State for CmosState {
    const KIND: &'static str = "cmos";
}

impl Cmos {
    /// A clock that also tells firmware how many bytes of memory there are below and above 4 GiB.
    pub fn new(below_4g: u64, above_4g: u64) -> Self {
        let mut memory = [0; MEMORY];
        let low = (below_4g.saturating_sub(SIXTEEN_MIB) / UNIT).min(0xffff).to_le_bytes();
        let high = (above_4g / UNIT).min(0xff_ffff).to_le_bytes();
        memory[0x34..0x36].copy_from_slice(&low[..2]);
        memory[0x5b..0x5e].copy_from_slice(&high[..3]);
        Cmos { state: Mutex::new(State { index: 0, memory }) }
    }
}

/// A day and a time of it.
struct Moment {
    second: u64,
    minute: u64,
    hour: u64,
    /// From Sunday on: 1 to 7.
    weekday: u64,
    day: u64,
    month: u64,
    year: u64,
}

const DAYS_OF_400_YEARS: u64 = 400 * 365 + 97;

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// The calendar at a time since 1970, UTC. The C library's would read the host's time zone, and whoever runs the guest opens no files.
fn calendar(since: Duration) -> Moment {
    let seconds = since.as_secs();
    let days = seconds / 86400;
    // The calendar repeats itself every 400 years, weekdays included.
    let (mut year, mut day) = (1970 + days / DAYS_OF_400_YEARS * 400, days % DAYS_OF_400_YEARS);
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if day < length {
            break;
        }
        (year, day) = (year + 1, day - length);
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        (month, day) = (month + 1, day - length);
    }
    Moment {
        second: seconds % 60,
        minute: seconds / 60 % 60,
        hour: seconds / 3600 % 24,
        // It began on a Thursday.
        weekday: (days + 4) % 7 + 1,
        day: day + 1,
        month,
        year,
    }
}

fn bcd(value: u64) -> u8 {
    let value = (value % 100) as u8;
    ((value / 10) << 4) | (value % 10)
}

impl State {
    fn read(&self, now: Duration) -> u8 {
        let index = self.index & INDEX_MASK;
        let now_is = calendar(now);
        match index {
            0x00 => bcd(now_is.second),
            0x02 => bcd(now_is.minute),
            0x04 => bcd(now_is.hour),
            0x06 => bcd(now_is.weekday),
            0x07 => bcd(now_is.day),
            0x08 => bcd(now_is.month),
            0x09 => bcd(now_is.year),
            0x0a => {
                let left = Duration::from_secs(1) - Duration::from_nanos(u64::from(now.subsec_nanos()));
                STATUS_A | if left <= ANNOUNCED { UPDATING } else { 0 }
            }
            0x0b => STATUS_B,
            0x0c => 0,
            0x0d => STATUS_D,
            0x32 => bcd(now_is.year / 100),
            other => self.memory[usize::from(other)],
        }
    }

    fn write(&mut self, value: u8) -> Effect {
        if self.index == SHUTDOWN && value == 0 {
            return Effect::Reset;
        }
        self.memory[usize::from(self.index & INDEX_MASK)] = value;
        Effect::None
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Registers for Cmos {
    fn read(&self, _region: Region, offset: u64, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, slot) in addresses(offset).zip(data) {
            *slot = match at {
                INDEX => state.index,
                DATA => state.read(now()),
                _ => 0xff,
            };
        }
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) -> Effect {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut effect = Effect::None;
        // A 16-bit write to the index sets index and data, in this order.
        for (at, value) in addresses(offset).zip(data) {
            match at {
                INDEX => state.index = *value,
                DATA => effect = state.write(*value),
                _ => {}
            }
        }
        effect
    }
}

impl Device for Cmos {
    fn needs(&self) -> Needs {
        let window = WindowNeed { space: Space::Port, base: Some(BASE), length: LENGTH };
        Needs { windows: vec![window], ..Needs::default() }
    }

    fn wire(&mut self, _grant: Grant) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        crate::save(&CmosState { index: state.index, memory: state.memory.to_vec() })
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        let CmosState { index, memory } = state::some(node)?.read()?;
        let length = memory.len();
        let wrong =
            |_| StateError::value::<CmosState>(format!("memory has {length} bytes, and not {MEMORY}"));
        let memory = memory.try_into().map_err(wrong)?;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { index, memory };
        Ok(())
    }

    fn describe(&self, _placed: &Placed, sink: &mut dyn TableSink) {
        sink.system_bus(&aml::Device::new(
            "RTC_".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0B00")),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&aml::IO::new(PORTS, PORTS, 1, PORTS_LENGTH)]),
                ),
            ],
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Sink, inb, outb, sweep};

    fn at(seconds: u64, nanos: u32, indices: &[u8]) -> Vec<u8> {
        let now = Duration::new(seconds, nanos);
        indices.iter().map(|i| State { index: *i, memory: [0; MEMORY] }.read(now)).collect()
    }

    const TIME: [u8; 8] = [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00, 0x06];

    #[test]
    fn the_time_is_the_hosts_in_bcd() {
        // Thursday, 29 February 2024, 23:59:58.
        assert_eq!(at(1_709_251_198, 0, &TIME), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 0x05]);
        assert_eq!(at(1_709_251_200, 0, &TIME), [0x20, 0x24, 0x03, 0x01, 0, 0, 0, 0x06]);
        assert_eq!(at(0, 0, &TIME), [0x19, 0x70, 0x01, 0x01, 0, 0, 0, 0x05]);
        // Far from now there are days as well.
        assert!((1..=0x31).contains(&at(u64::MAX, 0, &[0x07])[0]));
        // And through the ports, with the NMI bit set.
        let device = Cmos::new(0, 0);
        let _effect = outb(&device, 0, 0, 0x89);
        let year = inb(&device, 0, 1);
        assert!((0x26..=0x99).contains(&year), "{year:#x}");
    }

    #[test]
    fn the_calendar_is_that_of_the_c_library() {
        // Steps that meet every day of the week and time of the day, through several centuries.
        for seconds in (0..40_000_000_000u64).step_by(86_400 * 17 + 3_607) {
            // SAFETY: a zeroed value is a time; the call reads the one and writes the other.
            let tm = unsafe {
                let mut tm: libc::tm = std::mem::zeroed();
                libc::gmtime_r(&(seconds as libc::time_t), &raw mut tm);
                tm
            };
            let ours = calendar(Duration::from_secs(seconds));
            let ours = [ours.year, ours.month, ours.day, ours.weekday, ours.hour, ours.minute, ours.second];
            let [year, month, weekday] = [tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_wday + 1];
            let theirs = [year, month, tm.tm_mday, weekday, tm.tm_hour, tm.tm_min, tm.tm_sec];
            assert_eq!(ours, theirs.map(|part| part as u64), "{seconds}");
        }
    }

    #[test]
    fn an_update_is_announced_just_before_the_second_ends() {
        assert_eq!(at(1, 999_755_999, &[0x0a, 0x0b, 0x0d]), [0x20, 0x02, 0x80]);
        assert_eq!(at(1, 999_756_000, &[0x0a]), [0xa0]);
        assert_eq!(at(2, 0, &[0x0a]), [0x20]);
    }

    #[test]
    fn firmware_finds_the_memory_sizes() {
        let device = Cmos::new(3 << 30, 5 << 30);
        let read = |index| {
            let _effect = outb(&device, 0, 0, index);
            u64::from(inb(&device, 0, 1))
        };
        assert_eq!((read(0x34) | read(0x35) << 8) * UNIT + SIXTEEN_MIB, 3 << 30);
        assert_eq!((read(0x5b) | read(0x5c) << 8 | read(0x5d) << 16) * UNIT, 5 << 30);
        let small = Cmos::new(1 << 20, 0);
        let _effect = outb(&small, 0, 0, 0x35);
        assert_eq!(inb(&small, 0, 1), 0);
    }

    #[test]
    fn the_shutdown_register_resets_and_memory_is_memory() {
        let device = Cmos::new(0, 0);
        assert_eq!(outb(&device, 0, 0, 0x8f), Effect::None);
        assert_eq!(outb(&device, 0, 1, 5), Effect::None);
        assert_eq!(inb(&device, 0, 1), 5);
        assert_eq!(outb(&device, 0, 1, 0), Effect::Reset);
        assert_eq!(device.write(Region::Window(0), 0, &[0x8f, 0]), Effect::Reset);
        assert_eq!(device.write(Region::Window(0), 0, &[0x0f, 0]), Effect::None);
        sweep(&device, LENGTH);
    }

    #[test]
    fn the_namespace_tells_of_the_clock_and_of_no_interrupt() {
        let mut sink = Sink::default();
        Cmos::new(0, 0).describe(&Placed::default(), &mut sink);
        assert!(sink.has(b"RTC_\x08_HID\x0c\x41\xd0\x0b\x00"));
        // One port descriptor, 0x70 and two long, and the end tag.
        assert!(sink.has(b"\x47\x01\x70\x00\x70\x00\x01\x02\x79"));
    }
}
