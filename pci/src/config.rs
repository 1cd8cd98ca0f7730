//! The bytes of a function's configuration space, and which of them the guest may write.
//!
//! Everything the PCI specification says about registers is a value and a write mask per byte: sizing a BAR, for one, is writing
//! ones to a register whose low address bits cannot be set. What a write *means* is read from the bytes afterwards.

use std::ops::Range;

use device::{BarKind, MsixNeed, PciIdentity, PciNeeds, PlacedPci};

use crate::PciError;
use crate::regs::{self, bar, command, msix, status};
use crate::state::Identity;

/// The registers of one function. Accesses of any width and alignment are safe.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; regs::SPACE_END],
    writable: [u8; regs::SPACE_END],
    msix: Option<usize>,
}

/// Bytes of configuration space that the device itself serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LiveRange {
    /// Ordinal of the capability.
    pub(crate) capability: usize,
    /// The bytes of its body.
    pub(crate) body: Range<usize>,
}

impl ConfigSpace {
    /// Lays the registers out; decoding of memory is on and BARs are where they were placed.
    pub(crate) fn new(needs: &PciNeeds, placed: &PlacedPci) -> Result<(Self, Vec<LiveRange>), PciError> {
        let mut space =
            ConfigSpace { bytes: [0; regs::SPACE_END], writable: [0; regs::SPACE_END], msix: None };
        space.identity(&needs.identity);
        space.put(regs::COMMAND, &command::MEMORY.to_le_bytes());
        space.allow(regs::COMMAND, &command::WRITABLE.to_le_bytes());
        space.allow(regs::CACHE_LINE_SIZE, &[0xff]);
        space.allow(regs::INTERRUPT_LINE, &[0xff]);
        for (index, kind, span) in &placed.bars {
            space.bar(*index, *kind, span.length, span.base)?;
        }
        let live = space.capabilities(needs)?;
        Ok((space, live))
    }

    fn identity(&mut self, id: &PciIdentity) {
        self.put(regs::VENDOR_ID, &id.vendor.to_le_bytes());
        self.put(regs::DEVICE_ID, &id.device.to_le_bytes());
        self.put(regs::REVISION, &(id.class << 8 | u32::from(id.revision)).to_le_bytes());
        self.put(regs::SUBSYSTEM_VENDOR_ID, &id.subsystem_vendor.to_le_bytes());
        self.put(regs::SUBSYSTEM_ID, &id.subsystem.to_le_bytes());
    }

    fn bar(&mut self, index: u8, kind: BarKind, size: u64, base: u64) -> Result<(), PciError> {
        check_bar(index, kind, size)?;
        let at = register(index);
        let address = !(size - 1);
        let flags = match kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 { prefetchable } => {
                self.put(at + 4, &((base >> 32) as u32).to_le_bytes());
                self.allow(at + 4, &((address >> 32) as u32).to_le_bytes());
                bar::MEMORY_64 | if prefetchable { bar::PREFETCHABLE } else { 0 }
            }
        };
        self.put(at, &(base as u32 & !bar::FLAGS | flags).to_le_bytes());
        self.allow(at, &(address as u32 & !bar::FLAGS).to_le_bytes());
        Ok(())
    }

    /// Chains the device's capabilities from the end of the header on, then MSI-X.
    fn capabilities(&mut self, needs: &PciNeeds) -> Result<Vec<LiveRange>, PciError> {
        let mut live = Vec::new();
        let mut link = regs::CAPABILITIES;
        let mut at = regs::HEADER_END;
        let mut chain = |space: &mut Self, id: u8, body: &[u8]| {
            let end = at + 2 + body.len();
            if end > regs::SPACE_END {
                return Err(PciError::Capabilities { length: end - regs::HEADER_END });
            }
            // The offset is below 0x100, as was just checked.
            space.put(link, &[at as u8]);
            space.put(at, &[id, 0]);
            space.put(at + 2, body);
            link = at + 1;
            Ok(std::mem::replace(&mut at, end.next_multiple_of(4)))
        };
        for (capability, c) in needs.capabilities.iter().enumerate() {
            let start = chain(self, c.id, &c.body)?;
            if c.live {
                live.push(LiveRange { capability, body: start + 2..start + 2 + c.body.len() });
            }
        }
        if let Some(need) = &needs.msix {
            let start = chain(self, msix::ID, &msix_body(need))?;
            let control = start + msix::CONTROL;
            self.allow(control, &(msix::CONTROL_ENABLE | msix::CONTROL_MASK).to_le_bytes());
            self.msix = Some(control);
        }
        if at != regs::HEADER_END {
            self.put(regs::STATUS, &status::CAPABILITIES_LIST.to_le_bytes());
        }
        Ok(live)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Reads; the extended space is empty, and beyond its end nobody answers.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = match offset.saturating_add(i) {
                at if at < regs::SPACE_END => self.bytes[at],
                at if at < regs::EXTENDED_END => 0,
                _ => 0xff,
            };
        }
    }

    /// Writes what may be written.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        for (i, value) in data.iter().enumerate() {
            let at = offset.saturating_add(i);
            if at < regs::SPACE_END {
                let mask = self.writable[at];
                self.bytes[at] = self.bytes[at] & !mask | value & mask;
            }
        }
    }

    /// What the guest knows the function by.
    pub(crate) fn saved_identity(&self) -> Identity {
        Identity {
            vendor: self.u16(regs::VENDOR_ID),
            device: self.u16(regs::DEVICE_ID),
            revision: self.u8(regs::REVISION),
            class: self.u32(regs::REVISION) >> 8,
            subsystem_vendor: self.u16(regs::SUBSYSTEM_VENDOR_ID),
            subsystem: self.u16(regs::SUBSYSTEM_ID),
        }
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.bytes[at]
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    /// Whether memory BARs answer.
    pub(crate) fn decodes(&self) -> bool {
        self.u16(regs::COMMAND) & command::MEMORY != 0
    }

    /// The address in a BAR, whatever the guest wrote there; while it sizes the BAR, that is no address of any window.
    pub(crate) fn bar_base(&self, index: u8, kind: BarKind) -> u64 {
        let at = register(index);
        let low = u64::from(self.u32(at) & !bar::FLAGS);
        match kind {
            BarKind::Memory32 => low,
            BarKind::Memory64 { .. } => low | u64::from(self.u32(at + 4)) << 32,
        }
    }

    /// Writes a BAR as the guest would.
    pub(crate) fn set_bar(&mut self, index: u8, kind: BarKind, base: u64) {
        let bytes = base.to_le_bytes();
        let length = if kind == BarKind::Memory32 { 4 } else { 8 };
        self.write(register(index), &bytes[..length]);
    }

    /// Sets the two bits of MSI-X message control that the guest may write.
    pub(crate) fn set_msix_control(&mut self, control: u16) {
        if let Some(at) = self.msix {
            self.write(at, &control.to_le_bytes());
        }
    }

    /// MSI-X message control, if the function has it.
    pub(crate) fn msix_control(&self) -> Option<u16> {
        self.msix.map(|at| self.u16(at))
    }
}

/// Offset of a BAR's register.
fn register(index: u8) -> usize {
    regs::BAR0 + 4 * usize::from(index)
}

/// Whether PCI can express such a BAR.
pub(crate) fn check_bar(index: u8, kind: BarKind, size: u64) -> Result<(), PciError> {
    let (registers, largest) = match kind {
        BarKind::Memory32 => (1, 1 << 31),
        BarKind::Memory64 { .. } => (2, 1 << 62),
    };
    if index.checked_add(registers).is_none_or(|end| end > regs::BARS)
        || !size.is_power_of_two()
        || !(bar::SMALLEST..=largest).contains(&size)
    {
        return Err(PciError::Bar { index, size });
    }
    Ok(())
}

fn msix_body(need: &MsixNeed) -> [u8; msix::LENGTH - 2] {
    let mut capability = [0; msix::LENGTH];
    let size = need.vectors.wrapping_sub(1) & msix::CONTROL_SIZE;
    capability[msix::CONTROL..msix::TABLE].copy_from_slice(&size.to_le_bytes());
    capability[msix::TABLE..msix::PENDING].copy_from_slice(&(need.table | u32::from(need.bar)).to_le_bytes());
    capability[msix::PENDING..].copy_from_slice(&(need.pending | u32::from(need.bar)).to_le_bytes());
    let mut body = [0; msix::LENGTH - 2];
    body.copy_from_slice(&capability[2..]);
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::{Capability, Span};

    const K512: u64 = 0x8_0000;

    fn needs() -> PciNeeds {
        let cap = |n: usize, live| Capability { id: 9, body: vec![n as u8; n], live };
        PciNeeds {
            identity: PciIdentity {
                vendor: 0x1af4,
                device: 0x1042,
                revision: 1,
                class: 0x01_8000,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1042,
            },
            bars: Vec::new(),
            capabilities: vec![cap(14, false), cap(17, true)],
            msix: Some(MsixNeed { vectors: 3, bar: 0, table: 0x8000, pending: 0x4_8000 }),
            apertures: Vec::new(),
        }
    }

    fn space(bars: &[(u8, BarKind, u64, u64)]) -> (ConfigSpace, Vec<LiveRange>) {
        let bars = bars.iter().map(|(i, k, base, length)| (*i, *k, Span { base: *base, length: *length }));
        let placed = PlacedPci { segment: 0, slot: 1, bars: bars.collect(), apertures: Vec::new() };
        ConfigSpace::new(&needs(), &placed).unwrap()
    }

    fn get(space: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_driver_finds_identity_and_walks_the_chain() {
        let (space, live) = space(&[]);
        assert_eq!(get(&space, 0), 0x1042_1af4);
        assert_eq!(get(&space, regs::REVISION), 0x0180_0001);
        assert_eq!(get(&space, regs::SUBSYSTEM_VENDOR_ID), 0x1042_1af4);
        assert_eq!(get(&space, regs::COMMAND), 0x0010_0002);
        // Header type 0, no interrupt pin, no expansion ROM.
        assert_eq!((get(&space, 0x0c), get(&space, 0x3c), get(&space, 0x30)), (0, 0, 0));
        assert_eq!(get(&space, regs::CAPABILITIES), 0x40);
        assert_eq!(get(&space, 0x40), 0x0e0e_5009);
        assert_eq!(get(&space, 0x50), 0x1111_6409);
        assert_eq!(live, [LiveRange { capability: 1, body: 0x52..0x63 }]);
        assert_eq!(get(&space, 0x64), 0x0002_0011);
        assert_eq!((get(&space, 0x68), get(&space, 0x6c)), (0x8000, 0x4_8000));
        assert_eq!(get(&space, 0x100), 0);
        assert_eq!(get(&space, 0xffe), 0xffff_0000);
    }

    #[test]
    fn a_bar_is_sized_by_writing_ones() {
        let (mut space, _) = space(&[
            (0, BarKind::Memory64 { prefetchable: false }, 0x1_e7f8_0000, K512),
            (2, BarKind::Memory32, 0xc000_0010, 16),
            (4, BarKind::Memory64 { prefetchable: true }, 0x40_0000_0000, 1 << 34),
        ]);
        assert_eq!((get(&space, 0x10), get(&space, 0x14)), (0xe7f8_0004, 1));
        for bar in 0..6 {
            space.write(0x10 + 4 * bar, &[0xff; 4]);
        }
        let read: Vec<_> = (0..6).map(|b| get(&space, 0x10 + 4 * b)).collect();
        assert_eq!(read, [0xfff8_0004, 0xffff_ffff, 0xffff_fff0, 0, 0xc, 0xffff_fffc]);
        assert_eq!(space.bar_base(2, BarKind::Memory32), 0xffff_fff0);
        space.write(0x14, &2u32.to_le_bytes());
        space.write(0x10, &0xd000_1234u32.to_le_bytes());
        assert_eq!(space.bar_base(0, BarKind::Memory64 { prefetchable: false }), 0x2_d000_0000);
    }

    #[test]
    fn the_guest_writes_what_it_may_and_nothing_else() {
        let (mut space, _) = space(&[]);
        let before: Vec<u32> = (0..64).map(|r| get(&space, 4 * r)).collect();
        for at in 0..regs::EXTENDED_END + 8 {
            space.write(at, &[0xff; 8]);
        }
        space.write(usize::MAX, &[0xff; 8]);
        for (r, old) in before.iter().enumerate() {
            let changed = get(&space, 4 * r) ^ old;
            let allowed = match 4 * r {
                regs::COMMAND => u32::from(command::WRITABLE),
                regs::CACHE_LINE_SIZE | regs::INTERRUPT_LINE => 0xff,
                0x64 => 0xc000_0000,
                _ => 0,
            };
            assert_eq!(changed & !allowed, 0, "register {:#x}", 4 * r);
        }
        assert!(space.decodes());
        space.write(regs::COMMAND, &[0]);
        assert!(!space.decodes());
        assert_eq!(space.msix_control(), Some(0xc002));
    }

    #[test]
    fn what_pci_cannot_express_is_refused() {
        for (index, kind, size) in [
            (6, BarKind::Memory32, 16),
            (255, BarKind::Memory32, 16),
            (5, BarKind::Memory64 { prefetchable: false }, 16),
            (0, BarKind::Memory32, 8),
            (0, BarKind::Memory32, 48),
            (0, BarKind::Memory32, 1 << 32),
        ] {
            assert!(matches!(check_bar(index, kind, size), Err(PciError::Bar { .. })));
        }
        let mut needs = needs();
        needs.capabilities = vec![Capability { id: 9, body: vec![0; 64], live: false }; 3];
        let placed = PlacedPci { segment: 0, slot: 1, bars: Vec::new(), apertures: Vec::new() };
        assert!(matches!(ConfigSpace::new(&needs, &placed), Err(PciError::Capabilities { .. })));
    }
}
