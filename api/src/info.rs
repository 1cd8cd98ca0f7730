//! What `vm.info` and `vmm.ping` tell.

use std::collections::BTreeMap;

use catalog::VmSpec;
use serde::{Deserialize, Serialize};

/// The state of the machine, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Described, not running.
    Created,
    /// Running.
    Running,
    /// Stopped, to be continued.
    Paused,
    /// Shut down.
    Shutdown,
}

/// The answer to `vm.info`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmInfo {
    /// The description, completed with what was chosen automatically.
    pub config: VmSpec,
    /// The state.
    pub state: VmState,
    /// Memory in bytes.
    pub memory_actual_size: u64,
    /// Devices by id; absent while nothing is built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_tree: Option<BTreeMap<String, DeviceNode>>,
    /// How far something is that takes its time; absent while there is no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// How far something is that takes its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is: `snapshot`.
    pub operation: String,
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes to deal with, as far as known.
    pub total: u64,
    /// Bytes a second since it began.
    pub bytes_per_second: u64,
}

/// A device in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// The device's name.
    pub id: String,
    /// Addresses and interrupts.
    pub resources: Vec<Resource>,
    /// The device it sits on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Devices that sit on it.
    pub children: Vec<String>,
    /// PCI address as `ssss:bb:dd.f`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_bdf: Option<String>,
}

/// A device on PCI: the answer to `vm.add-…`, and what its events tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDeviceInfo {
    /// The device's name.
    pub id: String,
    /// PCI address as `ssss:bb:dd.f`.
    pub bdf: String,
}

/// A PCI address as clients see it: bus 0, function 0.
pub fn bdf(segment: u16, slot: u8) -> String {
    format!("{segment:04x}:00:{slot:02x}.0")
}

/// Something a device occupies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Resource {
    PioAddressRange { base: u64, size: u64 },
    MmioAddressRange { base: u64, size: u64 },
    PciBar { index: u8, base: u64, size: u64, type_: BarType, prefetchable: bool },
    LegacyIrq(u32),
}

/// The kind of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum BarType {
    Mmio32,
    Mmio64,
}

/// The answer to `vmm.ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmPing {
    /// Version with its revision.
    pub build_version: String,
    /// Version.
    pub version: String,
    /// Process id.
    pub pid: i32,
    /// Compiled-in features.
    pub features: Vec<String>,
}
