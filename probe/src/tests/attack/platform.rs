//! Rounds on the platform: ports, registers in memory, what answers nowhere, floods, and the hotplug controller.

use super::Attack;
use super::pick::Picks;
use crate::console::COM1;
use crate::io::{self, Region};
use crate::pci::Bus;
use crate::verdict::Stop;
use crate::virtio::queue::Buffer;
use crate::virtio::{Device, NO_VECTOR, kind};

/// Ports and how many there are: those of devices, those beside, and some where nothing is.
static PORTS: &[(u16, u64)] = &[
    (COM1, 8),
    (COM1, 8),
    (0x60, 8),
    (0x70, 4),
    (0x80, 2),
    (0xe9, 1),
    (0x402, 2),
    (0x600, 8),
    (0x606, 10),
    (0xcf0, 8),
    (0x2f8, 8),
    (0xfff8, 8),
    (0, 0xf000),
];

const SLEEP: u16 = 0x600;
const KEYBOARD: u16 = 0x64;
const CMOS: u16 = 0x70;
const CONFIG: core::ops::Range<u16> = 0xcf8..0xd00;

/// Writes to a port, unless that would end the machine or reach the configuration of a device.
fn write(port: u16, width: u64, value: u64) {
    let mut bytes = value.to_le_bytes();
    for (at, byte) in (port..=u16::MAX).zip(&mut bytes[..width as usize]) {
        let ends = match at {
            SLEEP => matches!(*byte, 1 | 0x34) && width == 1,
            KEYBOARD => *byte == 0xfe,
            // The shutdown status, which resets when 0 is written to it.
            CMOS => *byte == 0x8f,
            _ => CONFIG.contains(&at),
        };
        if ends {
            *byte = 0x40;
        }
    }
    if (port..port.saturating_add(width as u16)).any(|at| CONFIG.contains(&at)) {
        return;
    }
    match width {
        1 => io::out8(port, bytes[0]),
        2 => io::out16(port, u16::from_le_bytes([bytes[0], bytes[1]])),
        _ => io::out32(port, u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
    }
}

fn read(port: u16, width: u64) {
    match width {
        1 => drop(io::in8(port)),
        2 => drop(io::in16(port)),
        _ => drop(io::in32(port)),
    }
}

/// Brings the serial port back to a state in which lines go out, and the clock's index to 0.
fn recover() {
    for (register, value) in [(3, 0x03), (1, 0), (2, 0x07), (4, 0)] {
        io::out8(COM1 + register, value);
    }
    io::out8(CMOS, 0);
}

/// Ports, at any width.
pub(super) fn ports(attack: &mut Attack<'_>) -> Result<(), Stop> {
    for _ in 0..50 + attack.random.below(100) {
        let random = &mut attack.random;
        let (base, count) = PORTS[random.below(PORTS.len() as u64) as usize];
        let width = 1 << random.below(3);
        let port = base.saturating_add(random.below(count) as u16).min(u16::MAX - width as u16 + 1);
        if random.one_in(3) {
            read(port, width);
        } else {
            write(port, width, random.value());
        }
        attack.actions += 1;
    }
    if attack.random.one_in(4) {
        let mut bytes = [0; 64];
        io::in_string(COM1, &mut bytes);
    }
    recover();
    Ok(())
}

/// Registers in memory, and addresses where nothing is.
pub(super) fn memory(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let named =
        |name| attack.machine.acpi.and_then(|acpi| acpi.operation_region(name)).unwrap_or(0xfd00_0000);
    let (slots, events) = (named(b"PCST"), named(b"GDST"));
    for _ in 0..50 + attack.random.below(100) {
        let random = &mut attack.random;
        let (base, len) = match random.below(8) {
            // Without what ejects: another round does that.
            0 => (slots, 8),
            1 => (slots + 0xc, 16),
            2 => (events, 16),
            3 => (0xfec0_0000, 0x40),
            4 => (0xfd00_0000, 0x1000),
            5 => (0xe800_0000 + 0x10_0000 * (1 + random.below(8)), 0x10_0000),
            6 => (0xfed4_0000, 0x1000),
            _ => (1 << 38, 0x1000),
        };
        let (width, mut value) = (random.width(), random.value());
        let offset = random.below(len);
        if base == 0xfec0_0000 && offset + width > 0x10 {
            // An entry of the interrupt controller may ask for an NMI or an INIT: not in a byte of it.
            value &= 0xf8f8_f8f8_f8f8_f8f8;
        }
        if base == slots && offset + width > 8 {
            continue;
        }
        // SAFETY: device registers or nothing, no RAM.
        let window = unsafe { Region::new(base, len + 8) };
        if random.one_in(3) {
            window.read(offset, width);
        } else {
            window.write(offset, width, value);
        }
        attack.actions += 1;
    }
    Ok(())
}

/// As much as goes out of the serial port, the debug ports and the console.
pub(super) fn flood(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let bytes = [b'~'; 1024];
    match attack.random.below(4) {
        0 => (0..4).for_each(|_| io::out_string(COM1, &bytes)),
        1 => {
            for port in [0x80, 0xe9, 0x402] {
                (0..4).for_each(|_| io::out_string(port, &bytes));
            }
        }
        2 => (0..500u32).for_each(|i| write(SLEEP + 2, 4, u64::from(i))),
        _ => console(attack)?,
    }
    attack.actions += 4096;
    Ok(())
}

/// Everything that a console takes at once, several times.
fn console(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let machine = &mut *attack.machine;
    let Some(device) = Device::find(&machine.bus, kind::CONSOLE, 0) else { return Ok(()) };
    let mut device = device.map_err(Stop::Fail)?;
    device.negotiate(0).map_err(Stop::Fail)?;
    for index in 0..2 {
        let mut queue = device.queue(&mut machine.arena, index, 64, NO_VECTOR).map_err(Stop::Fail)?;
        if index == 0 {
            continue;
        }
        device.start().map_err(Stop::Fail)?;
        for _ in 0..3 {
            let page = attack.play.part(0, 4096);
            while queue.add(&[Buffer::readable(page)]).is_some() {}
            queue.kick();
            machine.clock.wait(2, || queue.pop().is_some());
        }
    }
    Ok(())
}

/// What the hotplug controller tells, done or not, and slots given back that nobody asked for.
pub(super) fn slots(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let Some(acpi) = attack.machine.acpi else { return Ok(()) };
    let at = |name, len| {
        acpi.operation_region(name).map(|at| {
            // SAFETY: device registers, no RAM.
            unsafe { Region::new(at, len) }
        })
    };
    let (Some(controller), Some(events)) = (at(b"PCST", 16), at(b"GDST", 1)) else { return Ok(()) };
    events.read8(0);
    for ecam in acpi.ecams() {
        controller.write32(0xc, u32::from(ecam.segment));
        let down = controller.read32(4);
        controller.read32(0);
        if down != 0 && !attack.random.one_in(4) {
            controller.write32(8, down);
        }
        attack.actions += 4;
    }
    if attack.random.one_in(24) {
        controller.write32(8, 1 << attack.random.below(32));
    }
    controller.write32(0xc, attack.random.value() as u32 | 0x100);
    controller.write32(8, attack.random.value() as u32);
    controller.write32(0xc, 0);
    attack.machine.bus = Bus::scan(Some(&acpi));
    Ok(())
}
