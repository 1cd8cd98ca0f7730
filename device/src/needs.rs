//! What a device asks of the board, as plain data.

use crate::ApertureNeed;

/// A part of a device's register space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Region {
    /// The n-th of [`Needs::windows`].
    Window(u8),
    /// A base address register.
    Bar(u8),
}

/// Everything a device needs to be plugged in.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Present if the device is a PCI function.
    pub pci: Option<PciNeeds>,
    /// Fixed or freely placed ranges of ports or memory.
    pub windows: Vec<WindowNeed>,
    /// Inputs of the interrupt controller.
    pub lines: Vec<LineNeed>,
    /// Registers whose writes should signal an eventfd instead of stopping the vCPU.
    pub doorbells: Vec<DoorbellNeed>,
    /// System calls of the device's own threads, among those of its kind ([`crate::Calls::own`]).
    pub calls: Vec<sandbox::Set>,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Span {
    /// First address or offset.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Span {
    /// One past the last address; saturates, so that an impossible span overlaps everything behind its base.
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.length)
    }

    /// Whether the two share an address.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }

    /// Whether all of `other` lies in this span.
    pub const fn contains(&self, other: &Self) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }
}

/// A window of ports or memory outside PCI.
#[derive(Clone, Copy, Debug)]
pub struct WindowNeed {
    /// Ports or memory.
    pub space: crate::Space,
    /// The address the platform prescribes; `None` lets the board choose in the platform device area (memory only).
    pub base: Option<u64>,
    /// Length in bytes.
    pub length: u64,
}

/// An input of the interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineNeed {
    /// The pin that the platform prescribes.
    pub pin: u8,
}

/// A register that becomes an eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorbellNeed {
    /// Where it is.
    pub region: Region,
    /// Offset within the region.
    pub offset: u64,
}

/// A PCI function's identity (PCI Local Bus 3.0 §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class, subclass, programming interface, as 0xCCSSPP.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// How a BAR may be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// Anywhere; takes two registers.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarNeed {
    /// Register number, 0 to 5.
    pub index: u8,
    /// Size in bytes: a power of two, at least 16.
    pub size: u64,
    /// Width.
    pub kind: BarKind,
}

/// A capability of the configuration space, without its two-byte header.
#[derive(Clone, Debug)]
pub struct Capability {
    /// Capability ID.
    pub id: u8,
    /// The bytes after ID and next pointer.
    pub body: Vec<u8>,
    /// Whether reads and writes of the body go to [`crate::Registers`] as a [`crate::grant::ConfigWindow`].
    pub live: bool,
}

/// MSI-X structures; the PCI layer serves table and pending bits itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixNeed {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR that holds table and pending bits.
    pub bar: u8,
    /// Offset of the table, a multiple of 8.
    pub table: u32,
    /// Offset of the pending bits, a multiple of 8.
    pub pending: u32,
}

/// What a PCI function needs.
#[derive(Clone, Debug)]
pub struct PciNeeds {
    /// Identity.
    pub identity: PciIdentity,
    /// BARs.
    pub bars: Vec<BarNeed>,
    /// Capabilities in the order of the chain; MSI-X comes after them.
    pub capabilities: Vec<Capability>,
    /// MSI-X, if the function interrupts.
    pub msix: Option<MsixNeed>,
    /// Room for memory of its own in the segment's 64-bit window, beside BARs.
    pub apertures: Vec<ApertureNeed>,
}
