//! Bodies of requests that describe no machine and no device.

use serde::{Deserialize, Serialize};

/// The body of `vm.remove-device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveDevice {
    /// The device's name, or that of its node in the device tree.
    pub id: String,
}

/// The body of `vm.resize-disk`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeDisk {
    /// The disk's name.
    pub id: String,
    /// New size in bytes, a multiple of 512.
    pub desired_size: u64,
}

/// The body of `vm.wait-device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitDevice {
    /// The device's name, or that of its node in the device tree.
    pub id: String,
    /// What to wait for.
    pub until: Until,
    /// How long, in milliseconds; at most [`MAX_WAIT_MS`].
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// Longest wait in milliseconds.
pub const MAX_WAIT_MS: u64 = 600_000;
/// The wait of those who do not say how long, in milliseconds.
pub const WAIT_MS: u64 = 10_000;

fn default_wait_ms() -> u64 {
    WAIT_MS
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// A driver of the guest uses the device.
    Ready,
    /// The device is gone.
    Removed,
}
