//! What the CPUID instruction answers.
//!
//! [`Cpuid::new`] takes what the hypervisor supports and computes, once per machine, everything that is the same on all vCPUs;
//! [`Cpuid::for_vcpu`] then only fills in APIC ids. Both are pure: what must be asked of the host's processor is in
//! [`HostCpu`]. Nothing here ever turns on an instruction set that the hypervisor did not list.

pub mod compat;
mod host;
#[cfg(test)]
mod tests;
mod topology_leaves;

use hypervisor::x86_64::CpuidEntry;

use super::topology::Topology;

pub use host::{HostCpu, Vendor};

const LEAF_FEATURES: u32 = 0x1;
const LEAF_EXTENDED_FEATURES: u32 = 0x7;
const LEAF_XSAVE: u32 = 0xd;
const LEAF_TILE: u32 = 0x1d;
const LEAF_TMUL: u32 = 0x1e;
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_TIMING: u32 = 0x4000_0010;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_BRAND: u32 = 0x8000_0002;
const LEAF_AMD_CACHE: u32 = 0x8000_0005;
const LEAF_POWER: u32 = 0x8000_0007;
const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAF_SVM: u32 = 0x8000_000a;

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX.
const MTRR: u32 = 1 << 12;
/// Leaf 0x80000001, ECX.
const SVM: u32 = 1 << 2;
/// Leaf 0x80000007, EDX.
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x40000001, EAX.
const MSI_EXT_DEST_ID: u32 = 1 << 15;

/// Leaf 7, subleaf 0, EDX: AMX-BF16, AMX-TILE, AMX-INT8.
const AMX_7_0_EDX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// Leaf 7, subleaf 1, EAX: AMX-FP16.
const AMX_7_1_EAX: u32 = 1 << 21;
/// Leaf 7, subleaf 1, EDX: AMX-COMPLEX.
const AMX_7_1_EDX: u32 = 1 << 8;
/// Leaf 0xd, subleaf 0, EAX: XTILECFG and XTILEDATA, which are also the subleaves that describe them.
const XTILE: u32 = 1 << 17 | 1 << 18;
/// Legacy region and header of the XSAVE area, which precede all other components.
const XSAVE_BASE: u32 = 576;

/// KVM's local APIC timer runs at 1 GHz: leaf 0x40000010, EBX, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// What a machine's configuration says about CPUID.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Arrangement of vCPUs.
    pub topology: Topology,
    /// Width of the guest's physical addresses: at most what the hypervisor can map.
    pub phys_bits: u8,
    /// The hypervisor's local APIC has the TSC deadline mode.
    pub tsc_deadline: bool,
    /// MSI destinations can have 15 bits: needs 32-bit ids in the hypervisor's MSI routes.
    pub extended_dest_id: bool,
    /// Frequency of the guest's TSC, if known. Told to the guest only if its TSC is invariant.
    pub tsc_khz: Option<u32>,
    /// Let the guest run guests.
    pub nested: bool,
    /// Let the guest use AMX.
    pub amx: bool,
}

/// CPUID of a machine, but for what differs between its vCPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpuid {
    entries: Vec<CpuidEntry>,
    topology: Topology,
}

impl Cpuid {
    /// Changes `supported`, the list that the hypervisor gives, to what `config` wants.
    pub fn new(supported: &[CpuidEntry], host: &HostCpu, config: &Config) -> Self {
        let mut entries = Vec::with_capacity(supported.len() + 16);
        entries.extend_from_slice(supported);
        if !config.amx {
            mask_amx(&mut entries);
        }
        for entry in &mut entries {
            adjust(entry, host, config);
        }
        for (i, brand) in host.brand.iter().enumerate() {
            replace(&mut entries, leaf(LEAF_BRAND + i as u32, *brand));
        }
        timing(&mut entries, config);
        topology_leaves::describe(&mut entries, host.vendor, &config.topology);
        Cpuid { entries, topology: config.topology }
    }

    /// The list for vCPU `index`.
    pub fn for_vcpu(&self, index: u32) -> Vec<CpuidEntry> {
        let mut entries = self.entries.clone();
        topology_leaves::identify(&mut entries, &self.topology, self.topology.apic_id(index));
        entries
    }

    /// What is the same on all vCPUs; APIC ids are 0.
    pub fn common(&self) -> &[CpuidEntry] {
        &self.entries
    }
}

/// Changes that concern one entry alone.
fn adjust(entry: &mut CpuidEntry, host: &HostCpu, config: &Config) {
    match entry.function {
        LEAF_FEATURES => {
            entry.ecx |= HYPERVISOR;
            entry.ecx = with(entry.ecx, TSC_DEADLINE, config.tsc_deadline);
            entry.edx |= MTRR;
            if !config.nested {
                entry.ecx &= !VMX;
            }
        }
        LEAF_HYPERVISOR => entry.eax = entry.eax.max(LEAF_KVM_FEATURES),
        LEAF_KVM_FEATURES => entry.eax = with(entry.eax, MSI_EXT_DEST_ID, config.extended_dest_id),
        LEAF_AMD_FEATURES if !config.nested => entry.ecx &= !SVM,
        LEAF_SVM if !config.nested => clear(entry),
        LEAF_AMD_CACHE | 0x8000_0006 if [entry.eax, entry.ebx, entry.ecx, entry.edx] == [0; 4] => {
            let [eax, ebx, ecx, edx] = host.cache[(entry.function - LEAF_AMD_CACHE) as usize];
            *entry = CpuidEntry { eax, ebx, ecx, edx, ..*entry };
        }
        LEAF_ADDRESS_SIZES => {
            let [_, linear, guest, reserved] = entry.eax.to_le_bytes();
            entry.eax = u32::from_le_bytes([config.phys_bits, linear, guest.min(config.phys_bits), reserved]);
        }
        _ => {}
    }
}

fn mask_amx(entries: &mut Vec<CpuidEntry>) {
    let was_there = entries.iter().any(|e| e.function == LEAF_XSAVE && e.index == 0 && e.eax & XTILE != 0);
    entries.retain(|e| {
        let tile_component =
            e.function == LEAF_XSAVE && e.index < 32 && e.index >= 2 && XTILE >> e.index & 1 != 0;
        !tile_component && e.function != LEAF_TILE && e.function != LEAF_TMUL
    });
    for entry in entries.iter_mut() {
        match (entry.function, entry.index) {
            (LEAF_EXTENDED_FEATURES, 0) => entry.edx &= !AMX_7_0_EDX,
            (LEAF_EXTENDED_FEATURES, 1) => {
                entry.eax &= !AMX_7_1_EAX;
                entry.edx &= !AMX_7_1_EDX;
            }
            (LEAF_XSAVE, 0) => entry.eax &= !XTILE,
            _ => {}
        }
    }
    if !was_there {
        return;
    }
    // The largest XSAVE area shrinks to the end of the last component that is left (EBX: offset, EAX: size).
    let end = entries
        .iter()
        .filter(|e| e.function == LEAF_XSAVE && e.index >= 2)
        .map(|e| e.ebx.saturating_add(e.eax))
        .fold(XSAVE_BASE, u32::max);
    for entry in entries.iter_mut().filter(|e| e.function == LEAF_XSAVE && e.index == 0) {
        entry.ecx = end;
    }
}

/// The leaf by which VMware and KVM guests learn their clocks' frequencies without measuring.
fn timing(entries: &mut Vec<CpuidEntry>, config: &Config) {
    let invariant = entries.iter().any(|e| e.function == LEAF_POWER && e.edx & INVARIANT_TSC != 0);
    let signature = entries.iter_mut().find(|e| e.function == LEAF_HYPERVISOR);
    if let (true, Some(tsc_khz), Some(signature)) = (invariant, config.tsc_khz, signature) {
        signature.eax = signature.eax.max(LEAF_TIMING);
        replace(entries, leaf(LEAF_TIMING, [tsc_khz, APIC_BUS_KHZ, 0, 0]));
    }
}

fn with(value: u32, bit: u32, set: bool) -> u32 {
    if set { value | bit } else { value & !bit }
}

fn clear(entry: &mut CpuidEntry) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index: 0, indexed: false, eax, ebx, ecx, edx }
}

/// Puts `entry` in place of all entries of its leaf and subleaf.
fn replace(entries: &mut Vec<CpuidEntry>, entry: CpuidEntry) {
    match entries.iter_mut().find(|e| e.function == entry.function && e.index == entry.index) {
        Some(found) => *found = entry,
        None => entries.push(entry),
    }
}
