//! Whether this host has every processor feature that a saved guest was told of.
//!
//! A guest decides once which instructions it uses. One that is restored where an instruction is missing dies of it sooner or later,
//! so it is refused, with the name of the feature.

use hypervisor::x86_64::CpuidEntry;

/// A register of feature bits.
struct Features {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// Bits that do not say what the host has: they follow from the machine's configuration, or change while a guest runs.
    ours: u32,
    /// Names of bits, as `/proc/cpuinfo` has them, from bit 0; empty where there is none.
    names: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &CpuidEntry) -> u32 {
        match self {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        }
    }
}

/// TSC deadline, OSXSAVE, hypervisor.
const LEAF_1_ECX: u32 = 1 << 24 | 1 << 27 | 1 << 31;
/// MTRR, hyper-threading.
const LEAF_1_EDX: u32 = 1 << 12 | 1 << 28;
/// OSPKE.
const LEAF_7_ECX: u32 = 1 << 4;
/// The legacy way of telling that there are several cores.
const LEAF_AMD_ECX: u32 = 1 << 1;
/// Interrupt messages with 15 bits of destination, which the machine's size decides.
const LEAF_KVM_EAX: u32 = 1 << 15;

/// Names by bit, separated by blanks; `-` for a bit without one.
const FEATURES: &[Features] = &[
    Features {
        leaf: 1,
        subleaf: 0,
        register: Register::Ecx,
        ours: LEAF_1_ECX,
        names: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 \
                x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    },
    Features {
        leaf: 1,
        subleaf: 0,
        register: Register::Edx,
        ours: LEAF_1_EDX,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 \
                ss ht tm ia64 pbe",
    },
    Features {
        leaf: 7,
        subleaf: 0,
        register: Register::Ebx,
        ours: 0,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
                avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni \
                avx512bw avx512vl",
    },
    Features {
        leaf: 7,
        subleaf: 0,
        register: Register::Ecx,
        ours: LEAF_7_ECX,
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg \
                tme avx512_vpopcntdq - la57 - - - - - rdpid kl bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    },
    Features {
        leaf: 7,
        subleaf: 0,
        register: Register::Edx,
        ours: 0,
        names: "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
                rtm_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 \
                spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    },
    Features {
        leaf: 7,
        subleaf: 1,
        register: Register::Eax,
        ours: 0,
        names: "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - - - - - - amx_fp16 - avx_ifma - - \
                lam - - - - -",
    },
    Features { leaf: 0xd, subleaf: 0, register: Register::Eax, ours: 0, names: "x87 sse_state avx_state" },
    Features {
        leaf: 0xd,
        subleaf: 1,
        register: Register::Eax,
        ours: 0,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
    },
    Features {
        leaf: 0x4000_0001,
        subleaf: 0,
        register: Register::Eax,
        ours: LEAF_KVM_EAX,
        names: "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time kvm_pv_eoi \
                kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield \
                kvm_async_pf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control",
    },
    Features {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Register::Ecx,
        ours: LEAF_AMD_ECX,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 \
                tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    },
    Features {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Register::Edx,
        ours: 0,
        names: "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    },
    Features {
        leaf: 0x8000_0007,
        subleaf: 0,
        register: Register::Edx,
        ours: 0,
        names: "- - - - - - - - nonstop_tsc",
    },
    Features {
        leaf: 0x8000_0008,
        subleaf: 0,
        register: Register::Ebx,
        ours: 0,
        names: "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp - stibp_always_on - - - - - amd_ppin \
                amd_ssbd virt_ssbd - cppc amd_psfd",
    },
    Features {
        leaf: 0x8000_000a,
        subleaf: 0,
        register: Register::Edx,
        ours: 0,
        names: "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold avic - \
                v_vmsave_vmload vgif",
    },
    Features {
        leaf: 0x8000_0021,
        subleaf: 0,
        register: Register::Eax,
        ours: 0,
        names: "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr",
    },
];

/// The features that `seen`, the CPUID of a guest, tells of and that none of the lists `here` has: names where there are any. Such
/// lists are what the hypervisor says that it supports, and what a virtual CPU shows that was given no more; some hypervisors leave
/// in the latter what the processor has and they do not vouch for.
pub fn missing(seen: &[CpuidEntry], here: &[&[CpuidEntry]]) -> Vec<String> {
    let vendor = |list| register(list, 0, 0).map(|e: &CpuidEntry| [e.ebx, e.edx, e.ecx]);
    let mut missing = Vec::new();
    // A guest that leaves a syscall, or forwards a timer, does so in its vendor's way.
    if let Some(saw) = vendor(seen)
        && here.iter().filter_map(|list| vendor(list)).any(|has| has != saw)
    {
        missing.push(format!("vendor {}", vendor_name(saw)));
    }
    for features in FEATURES {
        let bits =
            |list| register(list, features.leaf, features.subleaf).map_or(0, |e| features.register.of(e));
        let has = here.iter().fold(0, |all, list| all | bits(list));
        let lacking = bits(seen) & !has & !features.ours;
        missing.extend((0..32).filter(|bit| lacking >> bit & 1 != 0).map(|bit| features.name(bit)));
    }
    missing
}

fn register(list: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
    list.iter().find(|e| e.function == leaf && e.index == subleaf)
}

fn vendor_name(registers: [u32; 3]) -> String {
    let bytes: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).escape_debug().to_string()
}

impl Features {
    fn name(&self, bit: u32) -> String {
        match self.names.split_ascii_whitespace().nth(bit as usize) {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!(
                "bit {bit} of {} of CPUID leaf {:#x}, subleaf {}",
                format!("{:?}", self.register).to_uppercase(),
                self.leaf,
                self.subleaf
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry { function, index, indexed: true, eax, ebx, ecx, edx }
    }

    #[test]
    fn names_stand_at_their_bits() {
        for (leaf, register, bit, name) in [
            (1, Register::Ecx, 28, "avx"),
            (1, Register::Ecx, 20, "sse4_2"),
            (1, Register::Edx, 26, "sse2"),
            (7, Register::Ebx, 5, "avx2"),
            (7, Register::Ebx, 16, "avx512f"),
            (7, Register::Ebx, 31, "avx512vl"),
            (7, Register::Ecx, 22, "rdpid"),
            (7, Register::Ecx, 31, "pks"),
            (7, Register::Edx, 24, "amx_tile"),
            (7, Register::Edx, 31, "spec_ctrl_ssbd"),
            (0x4000_0001, Register::Eax, 14, "kvm_async_pf_int"),
            (0x8000_0001, Register::Ecx, 2, "svm"),
            (0x8000_0001, Register::Ecx, 22, "topoext"),
            (0x8000_0001, Register::Edx, 29, "lm"),
            (0x8000_0007, Register::Edx, 8, "nonstop_tsc"),
            (0x8000_0008, Register::Ebx, 24, "amd_ssbd"),
        ] {
            let features = FEATURES.iter().find(|f| f.leaf == leaf && f.register == register).unwrap();
            assert_eq!(features.name(bit), name);
        }
    }

    #[test]
    fn what_the_host_lacks_is_named_and_what_the_machine_decides_is_not() {
        let seen = [
            entry(0, 0, [0x10, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            entry(1, 0, [0, 0, 1 << 28 | LEAF_1_ECX, LEAF_1_EDX]),
            entry(7, 0, [0, 1 << 5 | 1 << 16, LEAF_7_ECX, 0]),
            entry(7, 1, [1 << 30, 0, 0, 0]),
        ];
        assert_eq!(missing(&seen, &[&seen]), Vec::<String>::new());
        let host =
            [entry(0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]), entry(7, 0, [0, 1 << 5, 0, 0])];
        assert_eq!(
            missing(&seen, &[&host]),
            ["vendor GenuineIntel", "avx", "avx512f", "bit 30 of EAX of CPUID leaf 0x7, subleaf 1"]
        );
        let shown = [entry(7, 0, [0, 1 << 16, 0, 0])];
        assert!(!missing(&seen, &[&host, &shown]).contains(&"avx512f".to_owned()));
    }
}
