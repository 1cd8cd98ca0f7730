//! Devices that come and go, taken up and let go of as an operating system does through `\_SB_.PHPR`, until the
//! power button is pressed.
//!
//! A disk that comes is read, compared with the pattern 7, and the pattern `probe.seed` written to its second half; a card that
//! comes sends a frame; memory that comes is used as a disk is. Meanwhile the disk that was there at the start is written and read back without a pause. With
//! `probe.own` the guest ejects what came at once, without being asked; with `probe.hostile` it first ejects everything that there
//! is, and only disks go. A socket device that comes is looked at only.

use super::Machine;
use crate::acpi::Acpi;
use crate::io::Region;
use crate::pci::{Bdf, Function};
use crate::verdict::{Outcome, Stop};
use crate::virtio::blk::{self, Disk, SECTOR, pattern};
use crate::virtio::net::{Card, ethernet};
use crate::virtio::pmem::{self, Memory};
use crate::virtio::{self, Device, NO_VECTOR, kind};

/// Offsets of the controller's registers.
const UP: u64 = 0;
const DOWN: u64 = 4;
const EJECT: u64 = 8;
const SEGMENT: u64 = 0xc;

/// The event that the controller has something to tell, in the byte of the event device.
const EVENT: u8 = 1 << 2;

/// The event that the power button was pressed.
const POWER_BUTTON: u8 = 1 << 3;

/// Sectors moved at a time.
const STEP: u64 = 16;

/// Devices that are taken up at the same time.
const PLACES: usize = 8;

/// Where the registers are: the regions that the DSDT names.
struct Registers {
    controller: Region,
    events: Region,
}

impl Registers {
    fn find(acpi: &Acpi) -> Option<Registers> {
        // SAFETY: device registers, no RAM.
        let region = |name, len| acpi.operation_region(name).map(|at| unsafe { Region::new(at, len) });
        Some(Registers { controller: region(b"PCST", 16)?, events: region(b"GDST", 1)? })
    }

    fn select(&self, segment: u16) {
        self.controller.write32(SEGMENT, u32::from(segment));
    }
}

/// See the module.
pub(super) fn rounds(machine: &mut Machine) -> Outcome {
    let Some(acpi) = machine.acpi else { skip!("there are no tables") };
    let Some(registers) = Registers::find(&acpi) else { skip!("the tables name no hotplug controller") };
    if machine.start.number("hostile").unwrap_or(0) != 0 {
        let here = |function: &Function| function.exists();
        let stay = |function: &Function| here(function) && virtio::type_of(function) != Some(kind::BLOCK);
        let staying = machine.bus.iter().filter(stay).count();
        for ecam in acpi.ecams() {
            registers.select(ecam.segment);
            registers.controller.write32(EJECT, u32::MAX);
        }
        let left = machine.bus.iter().filter(here).count();
        check!(left == staying, "{left} functions are left, and {staying} are no disks");
    }
    let mut load = Load::new(machine)?;
    let mut slots = Slots::new(machine, registers);
    println!("# waiting");
    loop {
        load.step()?;
        if slots.look(machine)? {
            break;
        }
    }
    Ok(text!("came={} gone={} load={}", slots.came, slots.gone, load.done))
}

/// The slots of all segments, and what came and is in use.
pub(super) struct Slots {
    registers: Registers,
    /// What comes is let go of at once.
    own: bool,
    /// What comes may turn out not to work.
    failures_expected: bool,
    // Dropping a device resets it.
    places: [Option<(Bdf, Device)>; PLACES],
    /// How much of the arena was used before anything came.
    mark: u64,
    came: u64,
    gone: u64,
}

impl Slots {
    /// Of a machine whose tables name the controller; takes no memory yet.
    pub(super) fn open(machine: &Machine) -> Result<Slots, Stop> {
        match machine.acpi.as_ref().and_then(Registers::find) {
            Some(registers) => Ok(Slots::new(machine, registers)),
            None => fail!("the tables name no hotplug controller"),
        }
    }

    fn new(machine: &Machine, registers: Registers) -> Slots {
        let own = machine.start.number("own").unwrap_or(0) != 0;
        let failures_expected = machine.start.option("failures").is_some_and(|o| o == "on");
        let mark = machine.arena.mark();
        Slots { registers, own, failures_expected, places: [const { None }; PLACES], mark, came: 0, gone: 0 }
    }

    /// Takes up what came and lets go of what is asked back, if anything has happened. Whether the power button was pressed.
    pub(super) fn look(&mut self, machine: &mut Machine) -> Result<bool, Stop> {
        let events = self.registers.events.read8(0);
        let Some(acpi) = machine.acpi.filter(|_| events & EVENT != 0) else {
            return Ok(events & POWER_BUTTON != 0);
        };
        for ecam in acpi.ecams() {
            let at = |slot: u8| {
                let bdf = Bdf { segment: ecam.segment, bus: 0, device: slot, function: 0 };
                // SAFETY: configuration registers, no RAM.
                let ecam = unsafe { Region::new(ecam.base + (u64::from(slot) << 15), 4096) };
                Function { bdf, ecam: Some(ecam) }
            };
            self.registers.select(ecam.segment);
            let down = self.registers.controller.read32(DOWN);
            let up = self.registers.controller.read32(UP);
            for slot in (0..32).filter(|slot| down >> slot & 1 != 0) {
                let function = at(slot);
                let here = |place: &&mut Option<(Bdf, Device)>| {
                    place.as_ref().is_some_and(|(bdf, _)| *bdf == function.bdf)
                };
                if let Some(place) = self.places.iter_mut().find(here) {
                    *place = None;
                }
                eject(&self.registers, function)?;
                self.gone += 1;
            }
            for slot in (0..32).filter(|slot| up >> slot & 1 != 0) {
                self.take(machine, at(slot))?;
            }
        }
        if self.places.iter().all(Option::is_none) {
            machine.arena.rewind(self.mark);
        }
        Ok(events & POWER_BUTTON != 0)
    }

    fn take(&mut self, machine: &mut Machine, function: Function) -> Result<(), Stop> {
        let taken = match take(machine, function) {
            Err(Stop::Fail(why)) if self.failures_expected => {
                println!("# taken badly: {why}");
                return Ok(());
            }
            taken => taken?,
        };
        self.came += 1;
        if self.own {
            drop(taken);
            eject(&self.registers, function)?;
            self.gone += 1;
        } else if let Some(place) = self.places.iter_mut().find(|p| p.is_none()) {
            *place = Some((function.bdf, taken));
        } else {
            fail!("more than {PLACES} devices at once");
        }
        Ok(())
    }
}

/// Lets go of a function: it must be gone at once.
fn eject(registers: &Registers, function: Function) -> Result<(), Stop> {
    let bar = function.bar(0);
    registers.select(function.bdf.segment);
    registers.controller.write32(EJECT, 1 << function.bdf.device);
    check!(!function.exists(), "{}: still there after the eject", function.bdf);
    if let Some(bar) = bar {
        // SAFETY: device registers, no RAM.
        let window = unsafe { Region::new(bar.address, bar.len) };
        check!(window.read32(0) == u32::MAX, "{}: something answers at {:#x}", function.bdf, bar.address);
        println!("# gone {} bar={:#x}", function.bdf, bar.address);
    }
    Ok(())
}

/// Takes a function up and uses it.
fn take(machine: &mut Machine, function: Function) -> Result<Device, Stop> {
    let bdf = function.bdf;
    check!(function.exists(), "{bdf}: nothing there");
    let bar = function.bar(0);
    let Some(bar) = bar else { fail!("{bdf}: no BAR 0") };
    let device = Device::open(function).map_err(Stop::Fail)?;
    let (arena, clock) = (&mut machine.arena, machine.clock);
    match virtio::type_of(&function) {
        Some(kind::BLOCK) => {
            check!(bar.is_64, "{bdf}: BAR 0 of a disk that came later has 32 bits");
            let mut disk = Disk::on(device, arena, clock, Disk::USUAL, NO_VECTOR).map_err(Stop::Fail)?;
            use_disk(machine, &mut disk)?;
            println!("# taken {bdf} disk sectors={} bar={:#x}", disk.capacity, bar.address);
            Ok(disk.device)
        }
        Some(kind::NET) => {
            let mut card = Card::on(device, arena, clock, 0, NO_VECTOR).map_err(Stop::Fail)?;
            ethernet(card.frame(), [0xff; 6], card.mac, 0x88b5);
            card.frame().store(14, b"came");
            card.send(60).map_err(Stop::Fail)?;
            println!("# taken {bdf} card bar={:#x}", bar.address);
            Ok(card.device)
        }
        Some(kind::PMEM) => {
            let mut memory = Memory::on(device, arena, clock).map_err(Stop::Fail)?;
            let (content, half) = (memory.content, memory.content.len() / 2);
            verify(content, 7, 0)?;
            let seed = machine.start.number("seed").unwrap_or(1);
            fill(content.part(half, half), seed, half / SECTOR);
            let answer = memory.flush().map_err(Stop::Fail)?;
            check!(answer == pmem::OK, "{bdf}: a flush is answered with {answer:#x}");
            println!("# taken {bdf} memory at={:#x} bar={:#x}", content.base(), bar.address);
            Ok(memory.device)
        }
        // Nothing to be asked of it without a partner.
        Some(kind::VSOCK) => {
            println!("# taken {bdf} vsock bar={:#x}", bar.address);
            Ok(device)
        }
        other => fail!("{bdf}: a device of type {other:?} came"),
    }
}

fn use_disk(machine: &mut Machine, disk: &mut Disk) -> Result<(), Stop> {
    let seed = machine.start.number("seed").unwrap_or(1);
    let buffer = machine.arena.take(STEP * SECTOR, 4096);
    for sector in (0..disk.capacity).step_by(STEP as usize) {
        let data = buffer.part(0, STEP.min(disk.capacity - sector) * SECTOR);
        disk.transfer(blk::T_IN, sector, data).map_err(Stop::Fail)?;
        verify(data, 7, sector)?;
        if !disk.read_only() && sector >= disk.capacity / 2 {
            fill(data, seed, sector);
            disk.transfer(blk::T_OUT, sector, data).map_err(Stop::Fail)?;
        }
    }
    if disk.device.features & blk::F_FLUSH != 0 {
        disk.request(blk::T_FLUSH, 0, &[]).map_err(Stop::Fail)?;
    }
    Ok(())
}

pub(super) fn fill(data: Region, seed: u64, sector: u64) {
    for i in 0..data.len() / 8 {
        data.write64(i * 8, pattern(seed, sector + i / 64, i % 64));
    }
}

pub(super) fn verify(data: Region, seed: u64, sector: u64) -> Result<(), Stop> {
    for i in 0..data.len() / 8 {
        let (is, wanted) = (data.read64(i * 8), pattern(seed, sector + i / 64, i % 64));
        check!(is == wanted, "word {i} from sector {sector}: {is:#x}, not {wanted:#x}");
    }
    Ok(())
}

/// Work for the disk that was there before.
struct Load {
    disk: Option<Disk>,
    buffer: Region,
    done: u64,
}

impl Load {
    fn new(machine: &mut Machine) -> Result<Load, Stop> {
        let disk = Disk::open(&machine.bus, &mut machine.arena, machine.clock, 0, Disk::USUAL);
        let disk = disk.map_err(Stop::Fail)?;
        let buffer = machine.arena.take(STEP * SECTOR, 4096);
        Ok(Load { disk, buffer, done: 0 })
    }

    /// Writes somewhere, and reads it back.
    fn step(&mut self) -> Result<(), Stop> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        let sector = self.done * STEP % (disk.capacity - disk.capacity % STEP);
        fill(self.buffer, self.done, sector);
        disk.transfer(blk::T_OUT, sector, self.buffer).map_err(Stop::Fail)?;
        self.buffer.fill(0);
        disk.transfer(blk::T_IN, sector, self.buffer).map_err(Stop::Fail)?;
        verify(self.buffer, self.done, sector)?;
        self.done += 1;
        Ok(())
    }
}

/// Uses a disk until its size changes, which its driver is told by the configuration's generation, and then the part that
/// was added.
pub(super) fn resize(machine: &mut Machine) -> Outcome {
    let mut load = Load::new(machine)?;
    let Some(disk) = &load.disk else { skip!("there is no disk") };
    let Some(config) = disk.device.config else { fail!("no device configuration") };
    let before = disk.capacity;
    println!("# sectors {before}");
    let mut after = before;
    while after == before {
        load.step()?;
        after = config.read64(0);
    }
    if let Some(disk) = &mut load.disk {
        disk.capacity = after;
    }
    check!(after > before, "{after} sectors are fewer than {before}");
    load.done = before / STEP;
    for _ in 0..(after - before) / STEP {
        load.step()?;
    }
    Ok(text!("before={before} after={after}"))
}
