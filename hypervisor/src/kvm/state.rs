//! A vCPU's state: the x86-64 facet, one ioctl per method.

use std::io;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_mp_state,
    kvm_msr_entry, kvm_xcrs, kvm_xsave,
};

use super::convert::{mp_state_from_kvm, mp_state_to_kvm};
use super::vcpu::KvmVcpu;
use crate::contract::X86Vcpu;
use crate::error::{Error, Result, refused};
use crate::x86_64::{
    CpuidEntry, DebugRegisters, FpuState, LapicState, MpState, MsrEntry, SpecialRegisters, StandardRegisters,
    VcpuEvents, XsaveArea,
};

/// Size of the area that `KVM_GET_XSAVE` gives; features beyond (AMX) need the second form of the ioctl.
pub(super) const XSAVE_MIN_SIZE: u32 = size_of::<kvm_xsave>() as u32;

/// The most entries that KVM takes in one request: fewer than its `MAX_IO_MSRS`.
const MSR_BATCH: usize = KVM_MAX_MSR_ENTRIES - 1;

/// An MSR request: transfers some from the front and returns how many, as KVM does.
type Transfer<'a> = dyn Fn(&mut Msrs) -> std::result::Result<usize, vmm_sys_util::errno::Error> + 'a;

/// Transfers all entries, in as few requests as possible. One that KVM stops at is skipped: `sort` is told of each.
fn transfer_msrs(
    verb: &'static str,
    entries: &[kvm_msr_entry],
    transfer: &Transfer<'_>,
    mut sort: impl FnMut(&kvm_msr_entry, bool),
) -> Result<()> {
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let batch = &rest[..rest.len().min(MSR_BATCH)];
        let failed = |source| Error::Msr { verb, index: first.index, source };
        let mut request = Msrs::from_entries(batch).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        let done = transfer(&mut request).map_err(|e| failed(e.into()))?.min(batch.len());
        request.as_slice()[..done].iter().for_each(|entry| sort(entry, true));
        if let Some(stuck) = batch.get(done) {
            log::debug!("KVM cannot {verb} MSR {:#x}: skipped", stuck.index);
            sort(stuck, false);
        }
        rest = &rest[(done + 1).min(batch.len())..];
    }
    Ok(())
}

impl X86Vcpu for KvmVcpu {
    fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<()> {
        let entries: Vec<kvm_cpuid_entry2> = entries.iter().map(Into::into).collect();
        let table = CpuId::from_entries(&entries).map_err(|_| Error::StateShape {
            what: "CPUID",
            unit: "entries",
            found: entries.len(),
            expected: KVM_MAX_CPUID_ENTRIES,
        })?;
        self.fd.set_cpuid2(&table).map_err(refused("set a vCPU's CPUID"))
    }

    fn cpuid(&self) -> Result<Vec<CpuidEntry>> {
        let table = self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(refused("get a vCPU's CPUID"))?;
        Ok(table.as_slice().iter().map(Into::into).collect())
    }

    fn registers(&self) -> Result<StandardRegisters> {
        self.fd.get_regs().map(|r| (&r).into()).map_err(refused("get a vCPU's registers"))
    }

    fn set_registers(&self, registers: &StandardRegisters) -> Result<()> {
        self.fd.set_regs(&registers.into()).map_err(refused("set a vCPU's registers"))
    }

    fn special_registers(&self) -> Result<SpecialRegisters> {
        self.fd.get_sregs().map(|r| (&r).into()).map_err(refused("get a vCPU's special registers"))
    }

    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()> {
        self.fd.set_sregs(&registers.into()).map_err(refused("set a vCPU's special registers"))
    }

    fn fpu(&self) -> Result<FpuState> {
        self.fd.get_fpu().map(|fpu| (&fpu).into()).map_err(refused("get a vCPU's FPU state"))
    }

    fn set_fpu(&self, fpu: &FpuState) -> Result<()> {
        self.fd.set_fpu(&fpu.into()).map_err(refused("set a vCPU's FPU state"))
    }

    fn msrs(&self, indices: &[u32]) -> Result<Vec<MsrEntry>> {
        let wanted: Vec<_> =
            indices.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut found = Vec::with_capacity(wanted.len());
        transfer_msrs("read", &wanted, &|request| self.fd.get_msrs(request), |entry, known| {
            if known {
                found.push(entry.into());
            }
        })?;
        Ok(found)
    }

    fn set_msrs(&self, entries: &[MsrEntry]) -> Result<Vec<u32>> {
        let entries: Vec<kvm_msr_entry> = entries.iter().map(Into::into).collect();
        let mut skipped = Vec::new();
        transfer_msrs("write", &entries, &|request| self.fd.set_msrs(request), |entry, taken| {
            if !taken {
                skipped.push(entry.index);
            }
        })?;
        Ok(skipped)
    }

    fn lapic(&self) -> Result<LapicState> {
        self.fd.get_lapic().map(|lapic| (&lapic).into()).map_err(refused("get a vCPU's local APIC"))
    }

    fn set_lapic(&self, lapic: &LapicState) -> Result<()> {
        self.fd.set_lapic(&lapic.into()).map_err(refused("set a vCPU's local APIC"))
    }

    fn mp_state(&self) -> Result<MpState> {
        let operation = "get a vCPU's activity";
        let state = self.fd.get_mp_state().map_err(refused(operation))?;
        mp_state_from_kvm(state.mp_state)
            .ok_or_else(|| refused(operation)(io::Error::from(io::ErrorKind::InvalidData)))
    }

    fn set_mp_state(&self, state: MpState) -> Result<()> {
        let state = kvm_mp_state { mp_state: mp_state_to_kvm(state) };
        self.fd.set_mp_state(state).map_err(refused("set a vCPU's activity"))
    }

    fn events(&self) -> Result<VcpuEvents> {
        self.fd
            .get_vcpu_events()
            .map(|events| (&events).into())
            .map_err(refused("get a vCPU's pending events"))
    }

    fn set_events(&self, events: &VcpuEvents) -> Result<()> {
        self.fd.set_vcpu_events(&events.into()).map_err(refused("set a vCPU's pending events"))
    }

    fn debug_registers(&self) -> Result<DebugRegisters> {
        self.fd.get_debug_regs().map(|r| (&r).into()).map_err(refused("get a vCPU's debug registers"))
    }

    fn set_debug_registers(&self, registers: &DebugRegisters) -> Result<()> {
        self.fd.set_debug_regs(&registers.into()).map_err(refused("set a vCPU's debug registers"))
    }

    fn xsave(&self) -> Result<XsaveArea> {
        let failed = "get a vCPU's extended state";
        let mut area = self.new_xsave().map_err(refused(failed))?;
        if self.capabilities.xsave_size > XSAVE_MIN_SIZE {
            // SAFETY: the area has room for what KVM said its size is.
            unsafe { self.fd.get_xsave2(&mut area) }.map_err(refused(failed))?;
        } else {
            let fixed = self.fd.get_xsave().map_err(refused(failed))?;
            // SAFETY: only the fixed part is replaced; the length, which says what follows it, stays.
            unsafe { area.as_mut_fam_struct() }.xsave = fixed;
        }
        let words = area.as_fam_struct_ref().xsave.region.iter().chain(area.as_slice());
        Ok(XsaveArea(words.flat_map(|word| word.to_le_bytes()).collect()))
    }

    fn set_xsave(&self, area: &XsaveArea) -> Result<()> {
        let failed = "set a vCPU's extended state";
        let expected = self.capabilities.xsave_size as usize;
        if area.0.len() != expected {
            return Err(Error::StateShape {
                what: "the extended state",
                unit: "bytes",
                found: area.0.len(),
                expected,
            });
        }
        let mut target = self.new_xsave().map_err(refused(failed))?;
        let (fixed, rest) = area.0.split_at(XSAVE_MIN_SIZE as usize);
        // SAFETY: the length is not touched.
        copy_words(fixed, &mut unsafe { target.as_mut_fam_struct() }.xsave.region);
        copy_words(rest, target.as_mut_slice());
        // SAFETY: the area is as large as KVM said that it reads.
        unsafe { self.fd.set_xsave2(&target) }.map_err(refused(failed))
    }

    fn xcr0(&self) -> Result<Option<u64>> {
        let registers = match self.fd.get_xcrs() {
            Ok(registers) => registers,
            // KVM's word for a processor without XSAVE.
            Err(error) if error.errno() == libc::EINVAL => return Ok(None),
            Err(error) => return Err(refused("get a vCPU's XCR0")(error)),
        };
        let count = (registers.nr_xcrs as usize).min(registers.xcrs.len());
        Ok(registers.xcrs[..count].iter().find(|register| register.xcr == 0).map(|register| register.value))
    }

    fn set_xcr0(&self, value: u64) -> Result<()> {
        let mut registers = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        registers.xcrs[0].value = value;
        self.fd.set_xcrs(&registers).map_err(refused("set a vCPU's XCR0"))
    }

    fn tsc_khz(&self) -> Result<Option<u32>> {
        if !self.capabilities.tsc_frequency {
            return Ok(None);
        }
        match self.fd.get_tsc_khz() {
            Ok(khz) => Ok(Some(khz)),
            // KVM's word for a host whose TSC is not stable.
            Err(error) if error.errno() == libc::EIO => Ok(None),
            Err(error) => Err(refused("get a vCPU's TSC frequency")(error)),
        }
    }

    fn set_tsc_khz(&self, khz: u32) -> Result<()> {
        if !self.capabilities.tsc_control {
            return Err(Error::Unsupported("another TSC frequency than its own (KVM_CAP_TSC_CONTROL)"));
        }
        self.fd.set_tsc_khz(khz).map_err(refused("set a vCPU's TSC frequency"))
    }

    fn notify_paused(&self) -> Result<()> {
        match self.fd.kvmclock_ctrl() {
            // The guest uses no paravirtual clock: nothing to tell.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            answer => answer.map_err(refused("tell a vCPU's clock that it was paused")),
        }
    }

    fn nmi(&self) -> Result<()> {
        self.fd.nmi().map_err(refused("queue an NMI"))
    }
}

impl KvmVcpu {
    /// A zeroed area as large as KVM's answer can be.
    fn new_xsave(&self) -> io::Result<Xsave> {
        let extra = self.capabilities.xsave_size.saturating_sub(XSAVE_MIN_SIZE).div_ceil(4);
        Xsave::new(extra as usize).map_err(|_| io::ErrorKind::OutOfMemory.into())
    }
}

/// Fills `words` from little-endian `bytes`.
fn copy_words(bytes: &[u8], words: &mut [u32]) {
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
}
