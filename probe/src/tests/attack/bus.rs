//! Rounds on registers: the transport's, configuration space, BARs that move, MSI-X.

use super::pick::Picks;
use super::rings::Live;
use super::{Attack, still_works};
use crate::io::{self, Region};
use crate::msix::{ENTRY, Msix};
use crate::pci::{Bdf, Bus, CAP_VENDOR, COMMAND, Function};
use crate::verdict::Stop;
use crate::virtio::{self, Device, common};

/// Offset of the MSI-X table in the BAR of a virtio function, and its end.
const TABLE: core::ops::Range<u64> = 0x8000..0x4_8000;

/// Statuses that lead through the states of a device, in order and out of it.
const STATUSES: [u8; 8] = [0, 1, 3, 11, 15, 0x83, 0x4f, 0xff];

/// Takes out of a value for the MSI-X table what asks for anything but an ordinary interrupt: an NMI or an INIT would end the run.
fn tamed(offset: u64, width: u64, value: u64) -> u64 {
    (0..width).fold(value, |value, i| {
        // Delivery mode: bits 8 to 10 of an entry's data (SDM vol. 3, 11.11.2).
        if (offset + i) % ENTRY == 9 { value & !(7 << (i * 8)) } else { value }
    })
}

/// Writes something to the common configuration. A ring's address is one that may be written to, or where no RAM is.
pub(super) fn write_common(attack: &mut Attack<'_>, window: Region, offset: u64) {
    let width = attack.random.width();
    let mut value = attack.random.value();
    let (mut offset, mut width) = (offset.min(window.len() - width), width);
    if offset + width > common::QUEUE_DESC {
        (offset, width) = (offset & !3, 4);
        let address = attack.address();
        value = match offset & 4 {
            0 if attack.play.contains(address) => address,
            0 => address | 0x8000_0000,
            _ => attack.random.value(),
        };
    }
    window.write(offset, width, value);
    window.read(offset, width);
    attack.actions += 2;
}

/// Every window of a function, at any width and offset, in any state.
pub(super) fn registers(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let Some(function) = attack.function() else { return Ok(()) };
    let device = Device::open(function).map_err(Stop::Fail)?;
    device.reset();
    let bar = function.window(0);
    for _ in 0..30 + attack.random.below(120) {
        match attack.random.below(8) {
            0 => {
                let status = STATUSES[attack.random.below(8) as usize];
                device.common.write8(common::STATUS, status);
            }
            1..=3 => {
                let offset = attack.random.below(common::LEN);
                write_common(attack, device.common, offset);
            }
            4 => access(attack, device.notify),
            5 => access(attack, device.isr),
            6 => access(attack, device.config.unwrap_or(device.isr)),
            _ => {
                // Anywhere in the BAR, gaps and the ends of windows included.
                let Some(bar) = bar else { continue };
                let (width, value) = (attack.random.width(), attack.random.value());
                let offset = attack.random.below(bar.len() - width);
                let offset = if attack.random.one_in(2) { offset } else { offset & !0xfff };
                if offset >= common::LEN {
                    bar.write(offset, width, tamed(offset, width, value));
                }
                bar.read(offset, width);
                attack.actions += 2;
            }
        }
    }
    check!(device.reset(), "{}: does not reset", function.bdf);
    drop(device);
    still_works(attack, function)
}

/// Reads and writes somewhere in a window, as wide as fits.
fn access(attack: &mut Attack<'_>, window: Region) {
    let mut width = attack.random.width();
    while width > window.len() {
        width /= 2;
    }
    let offset = attack.random.below(window.len() - width + 1);
    window.write(offset, width, attack.random.value());
    window.read(offset, width);
    attack.actions += 2;
}

/// The window in configuration space through which firmware reaches a BAR (virtio 1.3, 4.1.4.9).
pub(super) fn window(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let Some(function) = attack.function() else { return Ok(()) };
    let found = function.capabilities().find(|(id, at)| *id == CAP_VENDOR && function.read8(at + 3) == 5);
    let Some((_, at)) = found else { fail!("{}: no window to the BARs", function.bdf) };
    let by = if attack.random.one_in(2) { function } else { function.by_ports() };
    for _ in 0..20 + attack.random.below(40) {
        let random = &mut attack.random;
        let bar = if random.one_in(8) { random.value() as u8 } else { 0 };
        let length = [1, 2, 4, 4, 3, 0, 8, random.value() as u32][random.below(8) as usize];
        let mut offset = match random.below(4) {
            0 => random.value() as u32,
            1 => random.below(u64::from(common::LEN as u32)) as u32,
            2 => 0x6000 + random.below(0x1000) as u32,
            _ => random.below(0x9_0000) as u32,
        };
        if u64::from(offset) >= common::QUEUE_DESC && u64::from(offset) < common::LEN {
            offset = 0;
        }
        by.write8(at + 4, bar);
        by.write32(at + 8, offset);
        by.write32(at + 12, length);
        let value = random.value();
        let tame = TABLE.contains(&u64::from(offset)) || !u64::from(offset).is_multiple_of(4);
        let value = if tame { tamed(u64::from(offset), 4, value) } else { value };
        match random.below(4) {
            0 => by.write8(at + 16, value as u8),
            1 => by.write16(at + 16, value as u16),
            _ => by.write32(at + 16, value as u32),
        }
        by.read32(at + 16);
        attack.actions += 5;
    }
    by.write32(at + 12, 0);
    still_works(attack, function)
}

/// The registers that firmware sets and a driver relies upon.
struct Saved {
    command: u16,
    bars: [u32; 6],
}

impl Saved {
    fn of(function: Function) -> Saved {
        let bars = [0, 1, 2, 3, 4, 5].map(|i| function.read32(0x10 + i * 4));
        Saved { command: function.read16(COMMAND), bars }
    }

    fn put_back(&self, function: Function) {
        function.write16(COMMAND, 0);
        for (i, bar) in (0..).zip(self.bars) {
            function.write32(0x10 + i * 4, bar);
        }
        function.write16(COMMAND, self.command);
        Msix::switch_off(function);
    }
}

/// One write to configuration space, decoding and BARs first of all. MSI-X stays off: its table may hold anything.
pub(super) fn poke(attack: &mut Attack<'_>, function: Function) {
    let random = &mut attack.random;
    let saved = Saved::of(function);
    match random.below(4) {
        0 => function.write16(COMMAND, random.value() as u16),
        1 => function.write32(0x10 + random.below(6) * 4, random.value() as u32),
        2 => function.write32(0x10, random.value() as u32 & !0xfff | 0xc000_0000),
        _ => write_config(attack, function),
    }
    attack.actions += 1;
    saved.put_back(function);
}

fn write_config(attack: &mut Attack<'_>, function: Function) {
    let random = &mut attack.random;
    let by = if random.one_in(2) { function } else { function.by_ports() };
    let at = match random.below(4) {
        0 => 0x10 + random.below(24),
        1 => random.below(0x1000),
        _ => random.below(0x100),
    };
    let (width, value) = (random.width(), random.value());
    match (by.ecam, width) {
        (Some(region), _) => {
            let at = at.min(region.len() - width);
            region.write(at, width, value);
            region.read(at, width);
        }
        (None, 1) => by.write8(at & 0xff, value as u8),
        (None, 2) => by.write16(at & 0xfe, value as u16),
        (None, _) => by.write32(at & 0xfc, value as u32),
    }
    Msix::switch_off(function);
}

/// Configuration space of a device with requests in flight: BARs go elsewhere, onto RAM and onto each other, decoding and mastering come
/// and go, and doorbells are rung wherever they are now.
pub(super) fn config(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let Some(mut live) = Live::start(attack)? else { return Ok(()) };
    let function = live.device.function;
    let saved = Saved::of(function);
    let places =
        [0, 1, 2, 3, 4].map(|_| attack.function().and_then(|f| f.bar(0)).map_or(0, |bar| bar.address));
    for _ in 0..8 + attack.random.below(24) {
        super::rings::some_request(attack, &mut live);
        let place = match attack.random.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => attack.beyond,
            3 => attack.random.below(attack.beyond),
            4 => 0xfee0_0000,
            5 => 0xe800_0000,
            _ => places[attack.random.below(5) as usize],
        };
        match attack.random.below(4) {
            0 => write_config(attack, function),
            1 => function.write16(COMMAND, attack.random.value() as u16),
            _ => {
                function.write16(COMMAND, attack.random.below(8) as u16);
                function.write32(0x10, place as u32);
                function.write32(0x14, (place >> 32) as u32);
                function.write16(COMMAND, 6);
            }
        }
        attack.actions += 4;
    }
    saved.put_back(function);
    // What nobody answers at, and the bridge.
    for _ in 0..4 {
        let device = attack.random.below(32) as u8;
        let bdf = Bdf { segment: 0, bus: attack.random.one_in(2).into(), device, function: 1 };
        Function { bdf, ecam: None }.write32(attack.random.below(0x100) & !3, attack.random.value() as u32);
    }
    let bridge = attack.machine.bus.iter().find(|f| virtio::type_of(f).is_none());
    if let Some(bridge) = bridge {
        write_config(attack, bridge);
    }
    io::out32(0xcf8, 0);
    attack.machine.bus = Bus::scan(attack.machine.acpi.as_ref());
    if attack.is_covered(function) {
        // What answers there now is another one; so it is reset in the other way, and left alone from now on.
        function.write16(COMMAND, 0);
        reset_by_window(function);
        return Ok(());
    }
    check!(live.device.reset(), "{}: does not reset", function.bdf);
    drop(live);
    still_works(attack, function)
}

/// Resets a device through its window in configuration space.
fn reset_by_window(function: Function) {
    let found = function.capabilities().find(|(id, at)| *id == CAP_VENDOR && function.read8(at + 3) == 5);
    if let Some((_, at)) = found {
        function.write8(at + 4, 0);
        function.write32(at + 8, common::STATUS as u32);
        function.write32(at + 12, 1);
        function.write32(at + 16, 0);
    }
}

/// The MSI-X table and pending bits at any width and offset, vectors beyond the table, and messages for anybody.
pub(super) fn msix(attack: &mut Attack<'_>) -> Result<(), Stop> {
    let Some(mut live) = Live::start(attack)? else { return Ok(()) };
    let function = live.device.function;
    let Some(msix) = live.device.msix() else { fail!("{}: no MSI-X", function.bdf) };
    for _ in 0..20 + attack.random.below(60) {
        match attack.random.below(8) {
            0 => {
                let (enable, mask) = (attack.random.one_in(2), attack.random.one_in(2));
                msix.control(enable, mask);
            }
            1 => access(attack, msix.pba),
            2 => super::rings::some_request(attack, &mut live),
            3 => {
                let common = live.device.common;
                let vector = attack.random.value() as u16;
                common.write16(common::QUEUE_SELECT, attack.random.below(4) as u16);
                for register in [common::CONFIG_VECTOR, common::QUEUE_VECTOR] {
                    common.write16(register, vector);
                    let back = common.read16(register);
                    check!(
                        back == virtio::NO_VECTOR || back == vector && vector < msix.vectors,
                        "{}: vector {vector:#x} of {} reads {back:#x}",
                        function.bdf,
                        msix.vectors
                    );
                }
            }
            _ => {
                let (width, value) = (attack.random.width(), attack.random.value());
                let offset = attack.random.below(msix.table.len() - width + 1);
                let value = tamed(offset, width, value);
                msix.table.write(offset, width, value);
                msix.table.read(offset, width);
            }
        }
        attack.actions += 2;
    }
    msix.control(false, true);
    (0..msix.vectors).for_each(|vector| msix.set(vector, (0, 0), true));
    msix.control(false, false);
    check!(live.device.reset(), "{}: does not reset", function.bdf);
    drop(live);
    still_works(attack, function)
}
