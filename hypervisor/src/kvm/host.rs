//! Facts about the processor this program runs on, asked of the processor itself.

use core::arch::x86_64::__cpuid;

/// Who made the processor, as far as KVM's modules are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// `kvm_amd` serves it (AMD and Hygon).
    Amd,
    /// `kvm_intel` serves it (Intel and Zhaoxin).
    Intel,
    /// Unknown.
    Other,
}

/// Who made this host's processor.
pub(crate) fn vendor() -> Vendor {
    let leaf = __cpuid(0);
    let mut name = [0; 12];
    name[..4].copy_from_slice(&leaf.ebx.to_le_bytes());
    name[4..8].copy_from_slice(&leaf.edx.to_le_bytes());
    name[8..].copy_from_slice(&leaf.ecx.to_le_bytes());
    match &name {
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        b"GenuineIntel" | b"CentaurHauls" | b"  Shanghai  " => Vendor::Intel,
        _ => Vendor::Other,
    }
}
