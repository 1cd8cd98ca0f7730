//! The machine's vCPUs: their ids and CPUID, and the state in which they start.

use std::sync::Arc;

use arch::x86_64::acpi::Cpu;
use arch::x86_64::boot::Entry;
use arch::x86_64::cpuid::{Config, Cpuid, HostCpu};
use arch::x86_64::registers;
use arch::x86_64::topology::Topology;
use catalog::CpusSpec;
use hypervisor::x86_64::CpuidEntry;
use hypervisor::{Hypervisor, Vm};
use spec::Refusal;

use crate::vcpus::Ready;

/// Ids above this need 32-bit x2APIC ids in interrupt messages; 255 is the broadcast id.
const LAST_NARROW_ID: u32 = 254;

/// What the vCPUs will be.
pub(super) struct Processors {
    supported: Arc<[CpuidEntry]>,
    config: Config,
    ids: Vec<u32>,
}

impl Processors {
    /// Lays the vCPUs out.
    pub(super) fn plan(
        spec: &CpusSpec,
        hypervisor: &dyn Hypervisor,
        supported: Arc<[CpuidEntry]>,
        phys_bits: u8,
    ) -> Result<Self, Refusal> {
        let capabilities = hypervisor.capabilities();
        let (boot, max) = (spec.boot_vcpus, spec.max());
        let topology = match &spec.topology {
            Some(t) => {
                Topology::new(t.threads_per_core, t.cores_per_die, t.dies_per_package, t.packages, max)
                    .map_err(|e| Refusal::invalid("CPU topology is not valid").because(e))?
            }
            // The catalog allows no more than fit.
            None => Topology::flat(u16::try_from(max).unwrap_or(u16::MAX)),
        };
        let ids: Vec<u32> = (0..boot).map(|index| topology.apic_id(index)).collect();
        let highest = ids.iter().copied().max().unwrap_or(0);
        if boot > capabilities.max_vcpus || highest >= capabilities.max_vcpu_id {
            return Err(Refusal::invalid(format!(
                "Too many CPUs: specified {boot} but this host's limit is {}",
                capabilities.max_vcpus
            )));
        }
        if highest > LAST_NARROW_ID && !capabilities.x2apic_32bit_ids {
            return Err(Refusal::invalid(format!(
                "Too many CPUs: APIC id {highest} is beyond {LAST_NARROW_ID}, all that this host's hypervisor can address"
            )));
        }
        let config = Config {
            topology,
            phys_bits,
            tsc_deadline: capabilities.tsc_deadline_timer,
            extended_dest_id: capabilities.x2apic_32bit_ids && highest > LAST_NARROW_ID,
            // Only a vCPU knows it.
            tsc_khz: None,
            nested: spec.nested,
            amx: spec.features.amx,
        };
        Ok(Processors { supported, config, ids })
    }

    /// Whether ids beyond 8 bits occur.
    pub(super) fn wide_ids(&self) -> bool {
        self.ids.iter().any(|id| *id > LAST_NARROW_ID)
    }

    /// The vCPUs, as the firmware tables list them.
    pub(super) fn list(&self) -> Vec<Cpu> {
        self.ids.iter().map(|id| Cpu { apic_id: *id, enabled: true }).collect()
    }

    /// Their APIC ids.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Creates the vCPUs present at boot, the first of them ready to enter the kernel.
    pub(super) fn create(
        mut self,
        vm: &dyn Vm,
        entry: Entry,
        spec: &CpusSpec,
    ) -> Result<Vec<Ready>, Refusal> {
        let create = |(index, id): (u32, &u32)| {
            let vcpu = vm.create_vcpu(*id).map_err(|e| failed(index, e))?;
            Ok(Ready { vcpu, host_cpus: spec.host_cpus(index).to_vec() })
        };
        let ready: Vec<Ready> = (0..).zip(&self.ids).map(create).collect::<Result<_, _>>()?;
        if let Some(first) = ready.first() {
            self.config.tsc_khz = first.vcpu.x86_64().tsc_khz().map_err(|e| failed(0, e))?;
        }
        let cpuid = Cpuid::new(&self.supported, &HostCpu::read(), &self.config);
        let msrs = registers::msrs();
        for (index, Ready { vcpu, .. }) in (0..).zip(&ready) {
            let prepare = || -> hypervisor::Result<()> {
                let state = vcpu.x86_64();
                state.set_cpuid(&cpuid.for_vcpu(index))?;
                state.set_msrs(&msrs)?;
                state.set_lapic(&registers::lapic(state.lapic()?))?;
                if index == 0 {
                    state.set_fpu(&registers::boot_fpu())?;
                    let reset = state.special_registers()?;
                    state.set_special_registers(&registers::boot_special_registers(reset))?;
                    state.set_registers(&registers::boot_registers(entry))?;
                }
                Ok(())
            };
            prepare().map_err(|e| failed(index, e))?;
        }
        Ok(ready)
    }
}

fn failed(index: u32, e: hypervisor::Error) -> Refusal {
    Refusal::host(format!("Cannot create vCPU {index}"), e)
}
