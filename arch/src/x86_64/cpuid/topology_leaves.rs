//! The leaves that tell threads, cores, dies and packages apart: 1, 4, 0xb and 0x1f of Intel, 0x80000008, 0x8000001d and
//! 0x8000001e of AMD.
//!
//! [`describe`] writes what all vCPUs have in common, [`identify`] the APIC id of one.

use hypervisor::x86_64::CpuidEntry;

use super::host::Vendor;
use crate::x86_64::topology::Topology;

const LEAF_MAX: u32 = 0x0;
const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHE: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHE: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
/// AMD's own newer topology leaf. It would contradict the others, and nobody needs it beside 0xb.
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

/// Leaf 1, EDX: EBX counts logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001, ECX: several cores, no threads.
const CMP_LEGACY: u32 = 1 << 1;

/// Levels of leaves 0xb and 0x1f (SDM volume 2, CPUID).
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;
const LEVEL_DIE: u32 = 5;

pub(super) fn describe(entries: &mut Vec<CpuidEntry>, vendor: Vendor, t: &Topology) {
    let v2_there = entries.iter().any(|e| e.function == LEAF_MAX && e.eax >= LEAF_TOPOLOGY_V2);
    let v2 = vendor == Vendor::Intel && (t.dies() > 1 || v2_there);
    entries.retain(|e| ![LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_AMD_TOPOLOGY_V2].contains(&e.function));
    for entry in entries.iter_mut() {
        match entry.function {
            LEAF_MAX => entry.eax = entry.eax.max(if v2 { LEAF_TOPOLOGY_V2 } else { LEAF_TOPOLOGY }),
            LEAF_FEATURES => {
                // The field has 8 bits; 0xb is what counts beyond.
                let logical = (1u32 << t.package_shift()).min(255);
                entry.ebx = entry.ebx & 0x0000_ffff | logical << 16;
                entry.edx = if t.package_threads() > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            LEAF_CACHE if entry.eax & 0x1f != 0 => {
                let cores = (1u32 << (t.package_shift() - t.core_shift())) - 1;
                let sharing = cache_ids(entry, t) - 1;
                entry.eax = entry.eax & 0x3fff | sharing.min(0xfff) << 14 | cores.min(0x3f) << 26;
            }
            LEAF_AMD_FEATURES if vendor == Vendor::Amd => {
                let legacy = t.package_threads() > 1 && t.threads() == 1;
                entry.ecx = if legacy { entry.ecx | CMP_LEGACY } else { entry.ecx & !CMP_LEGACY };
            }
            LEAF_AMD_SIZES if vendor == Vendor::Amd => {
                let count = (t.package_threads() - 1).min(0xff);
                entry.ecx = entry.ecx & !0xf0ff | count | t.package_shift().min(0xf) << 12;
            }
            LEAF_AMD_CACHE if entry.eax & 0x1f != 0 => {
                // Here it is a number of processors, not of ids.
                let sharing = if cache_level(entry) < 3 { t.threads() } else { t.die_threads() } - 1;
                entry.eax = entry.eax & !(0xfff << 14) | sharing.min(0xfff) << 14;
            }
            LEAF_AMD_TOPOLOGY => {
                entry.eax = 0;
                entry.ebx = (t.threads() - 1).min(0xff) << 8;
                // A node is a die: at most 8 in a package.
                entry.ecx = (t.dies() - 1).min(7) << 8;
                entry.edx = 0;
            }
            _ => {}
        }
    }
    let smt = (t.core_shift(), t.threads(), LEVEL_SMT);
    let last = (0, 0, 0);
    push_levels(entries, LEAF_TOPOLOGY, &[smt, (t.package_shift(), t.package_threads(), LEVEL_CORE), last]);
    if v2 {
        let core = (t.die_shift(), t.die_threads(), LEVEL_CORE);
        let die = (t.package_shift(), t.package_threads(), LEVEL_DIE);
        if t.dies() > 1 {
            push_levels(entries, LEAF_TOPOLOGY_V2, &[smt, core, die, last]);
        } else {
            push_levels(entries, LEAF_TOPOLOGY_V2, &[smt, core, last]);
        }
    }
}

/// `levels`: bits of the APIC id below the next level, threads in one of this level, type of the level.
fn push_levels(entries: &mut Vec<CpuidEntry>, function: u32, levels: &[(u32, u32, u32)]) {
    for (index, &(eax, ebx, level)) in (0..).zip(levels) {
        entries.push(CpuidEntry {
            function,
            index,
            indexed: true,
            eax,
            ebx,
            ecx: level << 8 | index,
            edx: 0,
        });
    }
}

fn cache_level(entry: &CpuidEntry) -> u32 {
    entry.eax >> 5 & 7
}

/// Number of APIC ids that share a cache: those of a core up to level 2, those of a die above.
fn cache_ids(entry: &CpuidEntry, t: &Topology) -> u32 {
    1 << if cache_level(entry) < 3 { t.core_shift() } else { t.die_shift() }
}

pub(super) fn identify(entries: &mut [CpuidEntry], t: &Topology, apic_id: u32) {
    for entry in entries {
        match entry.function {
            LEAF_FEATURES => entry.ebx = entry.ebx & 0x00ff_ffff | apic_id << 24,
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => entry.edx = apic_id,
            LEAF_AMD_TOPOLOGY => {
                let core = apic_id >> t.core_shift();
                let node = apic_id >> t.die_shift();
                entry.eax = apic_id;
                entry.ebx = entry.ebx & !0xff | core & 0xff;
                entry.ecx = entry.ecx & !0xff | node & 0xff;
            }
            _ => {}
        }
    }
}
