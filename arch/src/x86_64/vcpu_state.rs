//! All of a vCPU's state as one value: taken from a vCPU that stands still, and given to a new one.
//!
//! The order in which a hypervisor takes the pieces matters (the CPUID first, for it decides what the others may be; the APIC's
//! mode before its registers; the timer's deadline after both) and is known here alone.

use hypervisor::x86_64::{
    CpuidEntry, DebugRegisters, LapicState, MpState, MsrEntry, SpecialRegisters, StandardRegisters,
    VcpuEvents, XsaveArea,
};
use hypervisor::{Error, Result, X86Vcpu};
use serde::{Deserialize, Serialize};

/// Time stamp counter.
const MSR_TSC: u32 = 0x10;
/// Deadline of the APIC's timer, by the time stamp counter.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The most MSRs that a vCPU may have been saved with. Hosts have a few hundred; each costs a call of the hypervisor if it is refused.
pub const MAX_MSRS: usize = 2048;
/// What two measurements of one counter's frequency differ by at most, in parts per million; KVM's own measure.
const TSC_TOLERANCE: u64 = 250;
/// CR4.VMXE: the guest may be in VMX operation (SDM volume 3, 24.7).
const CR4_VMXE: u64 = 1 << 13;
/// EFER.SVME: the guest may run guests (AMD APM volume 2, 15.4).
const EFER_SVME: u64 = 1 << 12;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct VcpuState {
    pub cpuid: Vec<CpuidEntry>,
    /// Frequency of the time stamp counter in kHz, if the host can tell.
    pub tsc_khz: Option<u32>,
    pub special: SpecialRegisters,
    pub registers: StandardRegisters,
    pub xcr0: Option<u64>,
    pub xsave: XsaveArea,
    pub debug: DebugRegisters,
    pub lapic: LapicState,
    pub msrs: Vec<MsrEntry>,
    pub events: VcpuEvents,
    pub mp_state: MpState,
}

impl device::State for VcpuState {
    const KIND: &'static str = "x86-vcpu";
}

impl VcpuState {
    /// The state of a vCPU that does not run. `msrs` are the numbers of the MSRs that belong to it.
    ///
    /// # Errors
    /// What the hypervisor refused to tell.
    pub fn save(vcpu: &dyn X86Vcpu, msrs: &[u32]) -> Result<VcpuState> {
        // The activity first: asking for it lets the hypervisor settle a pending INIT or SIPI.
        let mp_state = vcpu.mp_state()?;
        Ok(VcpuState {
            mp_state,
            cpuid: vcpu.cpuid()?,
            tsc_khz: vcpu.tsc_khz()?,
            special: vcpu.special_registers()?,
            registers: vcpu.registers()?,
            xcr0: vcpu.xcr0()?,
            xsave: vcpu.xsave()?,
            debug: vcpu.debug_registers()?,
            lapic: vcpu.lapic()?,
            msrs: vcpu.msrs(msrs)?,
            events: vcpu.events()?,
        })
    }

    /// Gives the state to a new vCPU. Returns the numbers of MSRs that the host refused and that do not have their value already.
    ///
    /// # Errors
    /// More than [`MAX_MSRS`] MSRs, and what the hypervisor refused.
    pub fn load(&self, vcpu: &dyn X86Vcpu) -> Result<Vec<u32>> {
        if self.msrs.len() > MAX_MSRS {
            let (found, expected) = (self.msrs.len(), MAX_MSRS);
            return Err(Error::StateShape { what: "the MSR list", unit: "entries", found, expected });
        }
        vcpu.set_cpuid(&self.cpuid)?;
        vcpu.set_special_registers(&self.special)?;
        vcpu.set_registers(&self.registers)?;
        if let Some(xcr0) = self.xcr0 {
            vcpu.set_xcr0(xcr0)?;
        }
        vcpu.set_xsave(&self.xsave)?;
        vcpu.set_debug_registers(&self.debug)?;
        vcpu.set_lapic(&self.lapic)?;
        if let Some(other) = self.other_tsc_khz(vcpu.tsc_khz()?) {
            vcpu.set_tsc_khz(other)?;
        }
        let mut refused = vcpu.set_msrs(&self.ordered_msrs())?;
        if !refused.is_empty() {
            let present = vcpu.msrs(&refused)?;
            refused.retain(|index| {
                let saved = self.msrs.iter().find(|m| m.index == *index);
                saved.is_some() && present.iter().find(|m| m.index == *index) != saved
            });
        }
        vcpu.set_events(&self.events)?;
        vcpu.set_mp_state(self.mp_state)?;
        Ok(refused)
    }

    /// The frequency of the guest's time stamp counter, if this host's is another. The guest has measured it and goes by it.
    fn other_tsc_khz(&self, here: Option<u32>) -> Option<u32> {
        let (saved, here) = (self.tsc_khz?, here?);
        (u64::from(saved.abs_diff(here)) * 1_000_000 > u64::from(here) * TSC_TOLERANCE).then_some(saved)
    }

    /// The counter before everything that depends on it, the deadline after everything that it depends on.
    fn ordered_msrs(&self) -> Vec<MsrEntry> {
        let mut msrs = self.msrs.clone();
        msrs.sort_by_key(|m| match m.index {
            MSR_TSC => 0,
            MSR_TSC_DEADLINE => 2,
            _ => 1,
        });
        msrs
    }

    /// Lets the time stamp counter go on by this many nanoseconds, if its frequency is known.
    pub fn advance_tsc(&mut self, nanoseconds: u64) {
        let Some(khz) = self.tsc_khz else { return };
        // 2^64 ns are 584 years: the product fits 128 bits, and the counter wraps as it does in a processor.
        let ticks = (u128::from(nanoseconds) * u128::from(khz) / 1_000_000) as u64;
        if let Some(tsc) = self.msrs.iter_mut().find(|m| m.index == MSR_TSC) {
            tsc.data = tsc.data.wrapping_add(ticks);
        }
    }

    /// Whether the guest may be running guests of its own, whose state is not part of this.
    pub fn is_hypervisor(&self) -> bool {
        self.special.cr4 & CR4_VMXE != 0 || self.special.efer & EFER_SVME != 0
    }
}

#[cfg(test)]
#[path = "vcpu_state_tests.rs"]
mod tests;
