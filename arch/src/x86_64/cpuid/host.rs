//! What the host's own processor answers, where the hypervisor's list is known to say nothing.

use std::arch::x86_64::__cpuid;

use hypervisor::x86_64::CpuidEntry;

/// Who made the processor: leaves 4 and 0x8000001d are laid out by vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// "GenuineIntel".
    Intel,
    /// "AuthenticAMD" and "HygonGenuine".
    Amd,
    /// Any other; treated by leaf number only.
    Other,
}

/// Answers of the host's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCpu {
    /// Who made it.
    pub vendor: Vendor,
    /// Brand string: leaves 0x80000002 to 0x80000004.
    pub brand: [[u32; 4]; 3],
    /// Caches and TLBs: leaves 0x80000005 and 0x80000006.
    pub cache: [[u32; 4]; 2],
}

impl HostCpu {
    /// Takes what the hypervisor's list says, and asks the processor on which it runs for the rest. In a virtual machine each question is
    /// an exit, so ask once.
    pub fn read(supported: &[CpuidEntry]) -> Self {
        let listed = |leaf| {
            let entry = supported.iter().find(|e| e.function == leaf);
            entry.map(|e| [e.eax, e.ebx, e.ecx, e.edx]).filter(|registers| *registers != [0; 4])
        };
        let [_, b, c, d] = listed(0).unwrap_or_else(|| ask(0));
        let vendor = match (&b.to_le_bytes(), &d.to_le_bytes(), &c.to_le_bytes()) {
            (b"Genu", b"ineI", b"ntel") => Vendor::Intel,
            (b"Auth", b"enti", b"cAMD") | (b"Hygo", b"nGen", b"uine") => Vendor::Amd,
            _ => Vendor::Other,
        };
        // What a hypervisor lists ends where the processor does, or before.
        let [max, ..] = listed(0x8000_0000).unwrap_or_else(|| ask(0x8000_0000));
        let extended = |leaf| {
            let known = listed(leaf).or_else(|| (leaf <= max).then(|| ask(leaf)));
            known.unwrap_or_default()
        };
        HostCpu {
            vendor,
            brand: [0x8000_0002, 0x8000_0003, 0x8000_0004].map(extended),
            cache: [0x8000_0005, 0x8000_0006].map(extended),
        }
    }
}

fn ask(leaf: u32) -> [u32; 4] {
    let answer = __cpuid(leaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}
