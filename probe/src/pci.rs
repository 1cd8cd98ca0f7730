//! PCI functions: configuration space through ECAM or ports 0xcf8/0xcfc, BARs, capabilities (PCI Local Bus 3.0, chapter 6).

use crate::acpi::{Acpi, Ecam};
use crate::io::{self, Region};

pub(crate) const COMMAND: u64 = 4;
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
pub(crate) const COMMAND_MASTER: u16 = 1 << 2;
pub(crate) const CAP_VENDOR: u8 = 9;
pub(crate) const CAP_MSIX: u8 = 0x11;

/// Where a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bdf {
    pub(crate) segment: u16,
    pub(crate) bus: u8,
    pub(crate) device: u8,
    pub(crate) function: u8,
}

impl core::fmt::Display for Bdf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus, self.device, self.function)
    }
}

/// A function's configuration space.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function {
    pub(crate) bdf: Bdf,
    /// Its 4 KiB of ECAM, or nothing: then the ports are used.
    pub(crate) ecam: Option<Region>,
}

/// A base address register, sized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) index: u8,
    pub(crate) address: u64,
    pub(crate) len: u64,
    pub(crate) is_64: bool,
    pub(crate) is_port: bool,
    pub(crate) prefetchable: bool,
}

impl Function {
    fn port_address(&self, offset: u64) -> u32 {
        let Bdf { bus, device, function, .. } = self.bdf;
        1 << 31
            | u32::from(bus) << 16
            | u32::from(device) << 11
            | u32::from(function) << 8
            | (offset as u32 & 0xfc)
    }

    /// The same function, reached through 0xcf8.
    pub(crate) fn by_ports(self) -> Function {
        Function { ecam: None, ..self }
    }

    pub(crate) fn read8(&self, offset: u64) -> u8 {
        (self.read32(offset & !3) >> ((offset & 3) * 8)) as u8
    }

    pub(crate) fn read16(&self, offset: u64) -> u16 {
        (self.read32(offset & !3) >> ((offset & 2) * 8)) as u16
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        match self.ecam {
            Some(region) => region.read32(offset),
            None => {
                io::out32(0xcf8, self.port_address(offset));
                io::in32(0xcfc)
            }
        }
    }

    pub(crate) fn write8(&self, offset: u64, value: u8) {
        match self.ecam {
            Some(region) => region.write8(offset, value),
            None => {
                io::out32(0xcf8, self.port_address(offset));
                io::out8(0xcfc + (offset as u16 & 3), value);
            }
        }
    }

    pub(crate) fn write16(&self, offset: u64, value: u16) {
        match self.ecam {
            Some(region) => region.write16(offset, value),
            None => {
                io::out32(0xcf8, self.port_address(offset));
                io::out16(0xcfc + (offset as u16 & 2), value);
            }
        }
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        match self.ecam {
            Some(region) => region.write32(offset, value),
            None => {
                io::out32(0xcf8, self.port_address(offset));
                io::out32(0xcfc, value);
            }
        }
    }

    pub(crate) fn exists(&self) -> bool {
        self.read32(0) != u32::MAX
    }

    pub(crate) fn vendor(&self) -> u16 {
        self.read16(0)
    }

    pub(crate) fn device(&self) -> u16 {
        self.read16(2)
    }

    /// Class, subclass, programming interface.
    pub(crate) fn class(&self) -> u32 {
        self.read32(8) >> 8
    }

    /// Lets memory windows answer and the device write to RAM.
    pub(crate) fn enable(&self) {
        self.write16(COMMAND, self.read16(COMMAND) | COMMAND_MEMORY | COMMAND_MASTER);
    }

    /// Sizes BAR `index` with decoding off, and puts everything back. `None` for one that is not there.
    pub(crate) fn bar(&self, index: u8) -> Option<Bar> {
        let at = 0x10 + u64::from(index) * 4;
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command & !3);
        let low = self.read32(at);
        self.write32(at, u32::MAX);
        let low_mask = self.read32(at);
        self.write32(at, low);
        let is_port = low & 1 != 0;
        let is_64 = !is_port && low & 6 == 4;
        let mut bar = None;
        if low_mask != 0 {
            let flags = if is_port { 3 } else { 0xf };
            let mut address = u64::from(low & !flags);
            let mut mask = u64::from(low_mask & !flags);
            if is_64 && index < 5 {
                let high = self.read32(at + 4);
                self.write32(at + 4, u32::MAX);
                mask |= u64::from(self.read32(at + 4)) << 32;
                self.write32(at + 4, high);
                address |= u64::from(high) << 32;
            } else {
                mask |= 0xffff_ffff << 32;
            }
            let len = (!mask).wrapping_add(1);
            bar = Some(Bar { index, address, len, is_64, is_port, prefetchable: !is_port && low & 8 != 0 });
        }
        self.write16(COMMAND, command);
        bar
    }

    /// Every BAR of the header.
    pub(crate) fn bars(&self) -> impl Iterator<Item = Bar> + use<> {
        let function = *self;
        let mut index = 0;
        core::iter::from_fn(move || {
            while index < 6 {
                let bar = function.bar(index);
                index += if bar.is_some_and(|b| b.is_64) { 2 } else { 1 };
                if bar.is_some() {
                    return bar;
                }
            }
            None
        })
    }

    /// Puts BAR `bar` at `address`, decoding off meanwhile.
    pub(crate) fn move_bar(&self, bar: Bar, address: u64) {
        let at = 0x10 + u64::from(bar.index) * 4;
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command & !3);
        self.write32(at, address as u32);
        if bar.is_64 {
            self.write32(at + 4, (address >> 32) as u32);
        }
        self.write16(COMMAND, command);
    }

    /// The window behind a memory BAR, decoding switched on.
    pub(crate) fn window(&self, index: u8) -> Option<Region> {
        let bar = self.bar(index).filter(|b| !b.is_port && b.address != 0)?;
        self.enable();
        // SAFETY: device registers, where the VMM put them: no RAM.
        Some(unsafe { Region::new(bar.address, bar.len) })
    }

    /// Offsets of the capabilities with their ids. A loop in the list ends it.
    pub(crate) fn capabilities(&self) -> impl Iterator<Item = (u8, u64)> + use<> {
        let function = *self;
        let mut next = if self.read16(6) & 1 << 4 != 0 { u64::from(self.read8(0x34) & !3) } else { 0 };
        (0..48).map_while(move |_| {
            if next < 0x40 {
                return None;
            }
            let at = next;
            next = u64::from(function.read8(at + 1) & !3);
            Some((function.read8(at), at))
        })
    }
}

/// All functions of the machine.
#[derive(Debug)]
pub(crate) struct Bus {
    functions: [Option<Function>; Bus::LIMIT],
}

impl Bus {
    const LIMIT: usize = 128;

    /// Looks in every ECAM window that the tables name, or through the ports where there are no tables.
    pub(crate) fn scan(acpi: Option<&Acpi>) -> Bus {
        let mut bus = Bus { functions: [None; Bus::LIMIT] };
        let mut ecams = 0;
        for ecam in acpi.into_iter().flat_map(Acpi::ecams) {
            ecams += 1;
            bus.scan_window(Some(ecam));
        }
        if ecams == 0 {
            bus.scan_window(None);
        }
        bus
    }

    fn scan_window(&mut self, ecam: Option<Ecam>) {
        let (first, last) = ecam.map_or((0, 0), |e| (e.first_bus, e.last_bus));
        for bus in first..=last {
            for device in 0..32 {
                for function in 0..8 {
                    let bdf = Bdf { segment: ecam.map_or(0, |e| e.segment), bus, device, function };
                    let offset =
                        u64::from(bus - first) << 20 | u64::from(device) << 15 | u64::from(function) << 12;
                    // SAFETY: configuration registers, no RAM.
                    let ecam = ecam.map(|e| unsafe { Region::new(e.base + offset, 4096) });
                    let found = Function { bdf, ecam };
                    if !found.exists() {
                        if function == 0 {
                            break;
                        }
                        continue;
                    }
                    if let Some(slot) = self.functions.iter_mut().find(|f| f.is_none()) {
                        *slot = Some(found);
                    }
                    if function == 0 && found.read8(0x0e) & 0x80 == 0 {
                        break;
                    }
                }
            }
        }
    }

    /// Gives virtio functions' memory BARs addresses from `base` on where firmware has left them without: small firmware does.
    pub(crate) fn place(&self, base: u64) {
        let mut next = base;
        for function in self.iter().filter(|f| f.vendor() == 0x1af4) {
            for bar in function.bars().filter(|b| !b.is_port && b.address == 0) {
                let address = next.next_multiple_of(bar.len);
                function.move_bar(bar, address);
                next = address + bar.len;
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Function> + '_ {
        self.functions.iter().flatten().copied()
    }
}
