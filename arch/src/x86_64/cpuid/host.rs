//! What the host's own processor answers, where the hypervisor's list is known to say nothing.

use std::arch::x86_64::__cpuid;

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
    /// Asks the processor on which it runs. In a virtual machine each question is an exit, so ask once.
    pub fn read() -> Self {
        let [_, b, c, d] = ask(0);
        let vendor = match (&b.to_le_bytes(), &d.to_le_bytes(), &c.to_le_bytes()) {
            (b"Genu", b"ineI", b"ntel") => Vendor::Intel,
            (b"Auth", b"enti", b"cAMD") | (b"Hygo", b"nGen", b"uine") => Vendor::Amd,
            _ => Vendor::Other,
        };
        let [max, ..] = ask(0x8000_0000);
        let extended = |leaf| if leaf <= max { ask(leaf) } else { [0; 4] };
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
