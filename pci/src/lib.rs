//! PCI as the guest sees it: one bus per segment, functions with configuration space, BARs and MSI-X.
//!
//! A board makes a [`Segment`] of what its hypervisor and its memory space offer, claims [`Ecam`] and [`ConfigPorts`] for it, and
//! plugs devices in with a [`Reservation`]. Whenever a register write answers with [`device::Effect::Decode`] it calls
//! [`Segment::sync`]. Nothing else here needs the board.
//!
//! This crate knows no hypervisor and no particular device.

mod access;
mod allocator;
mod bridge;
mod config;
mod error;
pub mod fake;
mod function;
mod msix;
mod placement;
pub mod regs;
mod segment;
mod state;
#[cfg(test)]
mod tests;

pub use access::{CONFIG_PORTS, CONFIG_PORTS_LENGTH, ConfigPorts, ECAM_LENGTH, Ecam};
pub use allocator::BarAllocator;
pub use error::PciError;
pub use function::Function;
pub use msix::{MsiSource, Msix};
pub use placement::{Plugged, Reservation};
pub use segment::{Doorbells, SLOTS, Segment, SegmentGrant};
