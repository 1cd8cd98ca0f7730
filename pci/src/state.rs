//! What is saved of a function: the registers that the guest can change, and where its BARs have room.
//!
//! Not saved: which doorbells are in place. A doorbell comes into use when it is first rung, here as after boot.

use device::State;
use serde::{Deserialize, Serialize};

/// A function without its device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionState {
    /// What the guest knows the function by; the present one must be the same.
    pub(crate) identity: Identity,
    pub(crate) command: u16,
    pub(crate) cache_line_size: u8,
    pub(crate) interrupt_line: u8,
    /// In the order of the device's needs.
    pub(crate) bars: Vec<BarState>,
}

/// As [`device::PciIdentity`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    pub(crate) class: u32,
    pub(crate) subsystem_vendor: u16,
    pub(crate) subsystem: u16,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BarState {
    pub(crate) index: u8,
    /// The address in the registers, whatever the guest wrote there.
    pub(crate) base: u64,
    /// The room that is kept for it: another one while it is being sized, none if it was put onto another BAR.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) room: Option<u64>,
}

impl State for FunctionState {
    const KIND: &'static str = "pci-function";
}

/// MSI-X table and pending bits.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MsixState {
    pub(crate) enabled: bool,
    pub(crate) masked: bool,
    /// One a vector.
    pub(crate) entries: Vec<MsixEntry>,
    /// Vectors that were signalled while masked, in order.
    pub(crate) pending: Vec<u16>,
}

/// A table entry as the guest wrote it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MsixEntry {
    pub(crate) address: u64,
    pub(crate) data: u32,
    pub(crate) control: u32,
}

impl State for MsixState {
    const KIND: &'static str = "msix";
}

/// The address register of mechanism #1.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortsState {
    pub(crate) address: u32,
}

impl State for PortsState {
    const KIND: &'static str = "pci-config-ports";
}
