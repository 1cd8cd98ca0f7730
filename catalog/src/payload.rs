//! What the machine boots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spec::{Refusal, Unsupported};

/// Longest kernel command line in bytes, without its terminating NUL.
pub const MAX_CMDLINE: usize = 65_535;

/// Kernel, initramfs and command line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PayloadSpec {
    /// A PVH ELF (`vmlinux`) or a bzImage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The kernel's command line, passed as given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The initial RAM file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Not supported yet.
    #[serde(skip_serializing_if = "spec::Value::is_absent")]
    pub firmware: Unsupported,
    /// Not supported yet.
    #[serde(skip_serializing_if = "spec::Value::is_absent")]
    pub igvm: Unsupported,
    /// Not supported yet.
    #[serde(skip_serializing_if = "spec::Value::is_absent")]
    pub host_data: Unsupported,
}

impl PayloadSpec {
    /// Checks that there is something to boot.
    ///
    /// # Errors
    /// No kernel, or a kind of payload that is not supported yet.
    pub fn check(&self) -> Result<(), Refusal> {
        for (used, name) in
            [(&self.firmware, "--firmware"), (&self.igvm, "--igvm"), (&self.host_data, "--host-data")]
        {
            if used.0 {
                return Err(Refusal::unsupported(name));
            }
        }
        if self.kernel.is_none() {
            return Err(nothing_to_boot());
        }
        match &self.cmdline {
            Some(c) if c.len() > MAX_CMDLINE => Err(Refusal::invalid(format!(
                "Kernel command line of {} bytes is longer than {MAX_CMDLINE}",
                c.len()
            ))),
            Some(c) if c.contains('\0') => Err(Refusal::invalid("Kernel command line contains a NUL byte")),
            _ => Ok(()),
        }
    }
}

/// The refusal of a machine without a payload.
pub fn nothing_to_boot() -> Refusal {
    Refusal::invalid("No bootitem provided: neither firmware nor kernel")
        .within("Payload configuration is not bootable")
}
