//! From the neutral state of [`crate::x86_64`] to KVM's structures and back.

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    KVM_VCPUEVENT_VALID_SMM, KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable,
    kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};

use crate::x86_64::{
    CpuidEntry, DebugRegisters, DescriptorTable, FpuState, LapicState, MpState, MsrEntry, PendingException,
    PendingInterrupt, PendingNmi, Segment, SmmState, SpecialRegisters, StandardRegisters, VcpuEvents,
};

impl From<&kvm_cpuid_entry2> for CpuidEntry {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        CpuidEntry {
            function: entry.function,
            index: entry.index,
            indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        }
    }
}

impl From<&CpuidEntry> for kvm_cpuid_entry2 {
    fn from(entry: &CpuidEntry) -> Self {
        kvm_cpuid_entry2 {
            function: entry.function,
            index: entry.index,
            flags: if entry.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..Default::default()
        }
    }
}

/// Structures whose fields have the same names on both sides.
macro_rules! same_fields {
    ($ours:ty, $kvm:ty, { $($field:ident),+ $(,)? }) => {
        impl From<&$kvm> for $ours {
            fn from(from: &$kvm) -> Self {
                Self { $($field: from.$field.into()),+ }
            }
        }
        impl From<&$ours> for $kvm {
            #[allow(clippy::needless_update, reason = "not all of KVM's structures have more fields")]
            fn from(from: &$ours) -> Self {
                Self { $($field: from.$field.into(),)+ ..Default::default() }
            }
        }
    };
}

same_fields!(StandardRegisters, kvm_regs, {
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
});
same_fields!(DescriptorTable, kvm_dtable, { base, limit });
same_fields!(MsrEntry, kvm_msr_entry, { index, data });

impl From<&kvm_segment> for Segment {
    fn from(segment: &kvm_segment) -> Self {
        Segment {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            type_: segment.type_,
            dpl: segment.dpl,
            present: segment.present != 0,
            db: segment.db != 0,
            s: segment.s != 0,
            l: segment.l != 0,
            g: segment.g != 0,
            avl: segment.avl != 0,
            unusable: segment.unusable != 0,
        }
    }
}

impl From<&Segment> for kvm_segment {
    fn from(segment: &Segment) -> Self {
        kvm_segment {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            type_: segment.type_,
            dpl: segment.dpl,
            present: segment.present.into(),
            db: segment.db.into(),
            s: segment.s.into(),
            l: segment.l.into(),
            g: segment.g.into(),
            avl: segment.avl.into(),
            unusable: segment.unusable.into(),
            padding: 0,
        }
    }
}

impl From<&kvm_sregs> for SpecialRegisters {
    fn from(sregs: &kvm_sregs) -> Self {
        SpecialRegisters {
            cs: (&sregs.cs).into(),
            ds: (&sregs.ds).into(),
            es: (&sregs.es).into(),
            fs: (&sregs.fs).into(),
            gs: (&sregs.gs).into(),
            ss: (&sregs.ss).into(),
            tr: (&sregs.tr).into(),
            ldt: (&sregs.ldt).into(),
            gdt: (&sregs.gdt).into(),
            idt: (&sregs.idt).into(),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
            pending_interrupt: sregs.interrupt_bitmap,
        }
    }
}

impl From<&SpecialRegisters> for kvm_sregs {
    fn from(special: &SpecialRegisters) -> Self {
        kvm_sregs {
            cs: (&special.cs).into(),
            ds: (&special.ds).into(),
            es: (&special.es).into(),
            fs: (&special.fs).into(),
            gs: (&special.gs).into(),
            ss: (&special.ss).into(),
            tr: (&special.tr).into(),
            ldt: (&special.ldt).into(),
            gdt: (&special.gdt).into(),
            idt: (&special.idt).into(),
            cr0: special.cr0,
            cr2: special.cr2,
            cr3: special.cr3,
            cr4: special.cr4,
            cr8: special.cr8,
            efer: special.efer,
            apic_base: special.apic_base,
            interrupt_bitmap: special.pending_interrupt,
        }
    }
}

impl From<&kvm_fpu> for FpuState {
    fn from(fpu: &kvm_fpu) -> Self {
        FpuState {
            st: fpu.fpr,
            xmm: fpu.xmm,
            fcw: fpu.fcw,
            fsw: fpu.fsw,
            ftw: fpu.ftwx,
            last_opcode: fpu.last_opcode,
            last_ip: fpu.last_ip,
            last_dp: fpu.last_dp,
            mxcsr: fpu.mxcsr,
        }
    }
}

impl From<&FpuState> for kvm_fpu {
    fn from(fpu: &FpuState) -> Self {
        kvm_fpu {
            fpr: fpu.st,
            xmm: fpu.xmm,
            fcw: fpu.fcw,
            fsw: fpu.fsw,
            ftwx: fpu.ftw,
            last_opcode: fpu.last_opcode,
            last_ip: fpu.last_ip,
            last_dp: fpu.last_dp,
            mxcsr: fpu.mxcsr,
            ..Default::default()
        }
    }
}

impl From<&kvm_lapic_state> for LapicState {
    fn from(lapic: &kvm_lapic_state) -> Self {
        // KVM's array is of C's `char`; each register is the first four of sixteen bytes.
        LapicState::new(std::array::from_fn(|register| {
            u32::from_le_bytes(std::array::from_fn(|byte| lapic.regs[register * 16 + byte].cast_unsigned()))
        }))
    }
}

impl From<&LapicState> for kvm_lapic_state {
    fn from(lapic: &LapicState) -> Self {
        let mut state = kvm_lapic_state::default();
        for (chunk, register) in state.regs.chunks_exact_mut(16).zip(lapic.registers()) {
            for (slot, byte) in chunk.iter_mut().zip(register.to_le_bytes()) {
                *slot = byte.cast_signed();
            }
        }
        state
    }
}

/// KVM's number for a state.
pub(super) fn mp_state_to_kvm(state: MpState) -> u32 {
    match state {
        MpState::Runnable => KVM_MP_STATE_RUNNABLE,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::SipiReceived => KVM_MP_STATE_SIPI_RECEIVED,
    }
}

/// The state that KVM means; `None` for numbers that no x86 vCPU has.
pub(super) fn mp_state_from_kvm(state: u32) -> Option<MpState> {
    Some(match state {
        KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        KVM_MP_STATE_HALTED => MpState::Halted,
        KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
        _ => return None,
    })
}

impl From<&kvm_vcpu_events> for VcpuEvents {
    fn from(events: &kvm_vcpu_events) -> Self {
        let valid = |flag| events.flags & flag != 0;
        VcpuEvents {
            exception: PendingException {
                injected: events.exception.injected != 0,
                pending: events.exception.pending != 0,
                vector: events.exception.nr,
                error_code: (events.exception.has_error_code != 0).then_some(events.exception.error_code),
                payload: (valid(KVM_VCPUEVENT_VALID_PAYLOAD) && events.exception_has_payload != 0)
                    .then_some(events.exception_payload),
            },
            interrupt: PendingInterrupt {
                injected: events.interrupt.injected != 0,
                vector: events.interrupt.nr,
                soft: events.interrupt.soft != 0,
                shadow: if valid(KVM_VCPUEVENT_VALID_SHADOW) { events.interrupt.shadow } else { 0 },
            },
            nmi: PendingNmi {
                injected: events.nmi.injected != 0,
                pending: events.nmi.pending != 0,
                masked: events.nmi.masked != 0,
            },
            sipi_vector: if valid(KVM_VCPUEVENT_VALID_SIPI_VECTOR) { events.sipi_vector } else { 0 },
            smi: if valid(KVM_VCPUEVENT_VALID_SMM) {
                SmmState {
                    in_smm: events.smi.smm != 0,
                    pending: events.smi.pending != 0,
                    inside_nmi: events.smi.smm_inside_nmi != 0,
                    latched_init: events.smi.latched_init != 0,
                }
            } else {
                SmmState::default()
            },
            triple_fault_pending: valid(KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && events.triple_fault.pending != 0,
        }
    }
}

impl From<&VcpuEvents> for kvm_vcpu_events {
    fn from(events: &VcpuEvents) -> Self {
        let mut out = kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
            ..Default::default()
        };
        out.exception.injected = events.exception.injected.into();
        out.exception.nr = events.exception.vector;
        out.exception.has_error_code = events.exception.error_code.is_some().into();
        out.exception.error_code = events.exception.error_code.unwrap_or(0);
        // Without the payload capability, KVM takes an exception as injected and has no word for "pending".
        if let Some(payload) = events.exception.payload {
            out.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
            out.exception.pending = events.exception.pending.into();
            out.exception_has_payload = 1;
            out.exception_payload = payload;
        }
        out.interrupt.injected = events.interrupt.injected.into();
        out.interrupt.nr = events.interrupt.vector;
        out.interrupt.soft = events.interrupt.soft.into();
        out.interrupt.shadow = events.interrupt.shadow;
        out.nmi.injected = events.nmi.injected.into();
        out.nmi.pending = events.nmi.pending.into();
        out.nmi.masked = events.nmi.masked.into();
        if events.sipi_vector != 0 {
            out.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
            out.sipi_vector = events.sipi_vector;
        }
        // Machines without SMM (KVM may be built so) are left alone unless there is something to say.
        if events.smi != SmmState::default() {
            out.flags |= KVM_VCPUEVENT_VALID_SMM;
            out.smi.smm = events.smi.in_smm.into();
            out.smi.pending = events.smi.pending.into();
            out.smi.smm_inside_nmi = events.smi.inside_nmi.into();
            out.smi.latched_init = events.smi.latched_init.into();
        }
        if events.triple_fault_pending {
            out.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
            out.triple_fault.pending = 1;
        }
        out
    }
}

impl From<&kvm_debugregs> for DebugRegisters {
    fn from(registers: &kvm_debugregs) -> Self {
        DebugRegisters { db: registers.db, dr6: registers.dr6, dr7: registers.dr7 }
    }
}

impl From<&DebugRegisters> for kvm_debugregs {
    fn from(registers: &DebugRegisters) -> Self {
        kvm_debugregs { db: registers.db, dr6: registers.dr6, dr7: registers.dr7, ..Default::default() }
    }
}
