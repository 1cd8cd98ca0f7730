//! A machine as a value: what [`super::Machine::save`] gives and [`super::Machine::restore`] goes on from.
//!
//! Memory is not part of it, nor the description of the machine; they are files of their own. Read back, all of it is untrusted.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use device::{Node, Placed, State};
use hypervisor::ClockState;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMachine {
    /// Width of the guest's physical addresses, which decides where everything is.
    pub(super) phys_bits: u8,
    /// When the vCPUs were saved: nanoseconds since 1970.
    pub(super) taken: u64,
    /// The paravirtual clock when it stood still, with the real time of that moment; absent if the host could not tell.
    pub(super) clock: Option<ClockState>,
    /// A vCPU's state each, in the order of their indices.
    pub(super) cpus: Vec<Node>,
    /// Devices and what they are plugged into.
    pub(super) board: SavedBoard,
    /// Number of the next automatic name.
    pub(super) next_name: u64,
}

impl State for SavedMachine {
    const KIND: &'static str = "machine";
}

/// Devices and what they are plugged into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedBoard {
    /// Devices by their names.
    pub(super) devices: BTreeMap<String, SavedDevice>,
    /// The host bridge of segment 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host_bridge: Option<Node>,
    /// The ports of PCI's configuration mechanism.
    pub(super) config_ports: Node,
}

/// A device in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedDevice {
    /// Where it was put.
    pub(super) placed: Placed,
    /// Its state, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<Node>,
    /// State of the PCI function it sits on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) function: Option<Node>,
}

/// Nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds that have passed since `then`; none if the host's clock was set back.
pub(super) fn since(then: u64) -> u64 {
    now().saturating_sub(then)
}
