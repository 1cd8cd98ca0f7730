//! The machine's vCPUs: their ids and CPUID, and the state in which they start.

use std::sync::Arc;

use arch::x86_64::acpi::Cpu;
use arch::x86_64::boot::Entry;
use arch::x86_64::cpuid::{Config, Cpuid, HostCpu, compat};
use arch::x86_64::registers;
use arch::x86_64::topology::Topology;
use arch::x86_64::vcpu_state::VcpuState;
use catalog::CpusSpec;
use device::Node;
use hypervisor::x86_64::CpuidEntry;
use hypervisor::{Capabilities, Hypervisor, Vm};
use spec::{Kind, Refusal};

use super::saved;
use crate::vcpus::{Ready, Vcpus};

/// Ids above this need 32-bit x2APIC ids in interrupt messages; 255 is the broadcast id.
const LAST_NARROW_ID: u32 = 254;

/// The most MSRs that a message names.
const MSRS_NAMED: usize = 16;

/// Which vCPUs there will be.
pub(super) struct Layout {
    topology: Topology,
    ids: Vec<u32>,
}

impl Layout {
    /// Lays the vCPUs out.
    pub(super) fn new(spec: &CpusSpec, capabilities: &Capabilities) -> Result<Self, Refusal> {
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
        Ok(Layout { topology, ids })
    }

    /// Whether ids beyond 8 bits occur.
    pub(super) fn wide_ids(&self) -> bool {
        self.ids.iter().any(|id| *id > LAST_NARROW_ID)
    }
}

/// What the vCPUs will be.
pub(super) struct Processors {
    supported: Arc<[CpuidEntry]>,
    config: Config,
    ids: Vec<u32>,
}

impl Processors {
    /// These vCPUs, of what the host supports, with addresses of `phys_bits`.
    pub(super) fn new(
        layout: Layout,
        spec: &CpusSpec,
        capabilities: &Capabilities,
        supported: Arc<[CpuidEntry]>,
        phys_bits: u8,
    ) -> Self {
        let extended_dest_id = capabilities.x2apic_32bit_ids && layout.wide_ids();
        let Layout { topology, ids } = layout;
        let config = Config {
            topology,
            phys_bits,
            tsc_deadline: capabilities.tsc_deadline_timer,
            extended_dest_id,
            // Only a vCPU knows it.
            tsc_khz: None,
            nested: spec.nested,
            amx: spec.features.amx,
        };
        Processors { supported, config, ids }
    }

    /// The vCPUs, as the firmware tables list them.
    pub(super) fn list(&self) -> Vec<Cpu> {
        self.ids.iter().map(|id| Cpu { apic_id: *id, enabled: true }).collect()
    }

    /// Their APIC ids.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// vCPUs as they are after power-on.
    fn new_vcpus(&self, vm: &dyn Vm, spec: &CpusSpec) -> Result<Vec<Ready>, Refusal> {
        let create = |(index, id): (u32, &u32)| {
            let vcpu = vm.create_vcpu(*id).map_err(|e| failed(index, e))?;
            Ok(Ready { vcpu, host_cpus: spec.host_cpus(index).to_vec() })
        };
        (0..).zip(&self.ids).map(create).collect()
    }

    /// Creates the vCPUs present at boot, the first of them ready to enter the kernel.
    pub(super) fn create(
        mut self,
        vm: &dyn Vm,
        entry: Entry,
        spec: &CpusSpec,
    ) -> Result<Vec<Ready>, Refusal> {
        let ready = self.new_vcpus(vm, spec)?;
        if let Some(first) = ready.first() {
            self.config.tsc_khz = first.vcpu.x86_64().tsc_khz().map_err(|e| failed(0, e))?;
        }
        let cpuid = Cpuid::new(&self.supported, &HostCpu::read(&self.supported), &self.config);
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

/// vCPUs of a saved machine.
impl Processors {
    /// Refuses states of vCPUs that this host cannot go on with.
    fn check(&self, states: &[VcpuState], ready: &[Ready]) -> Result<(), Refusal> {
        if states.len() != self.ids.len() {
            return Err(Refusal::invalid(format!(
                "The machine has {} vCPUs, and the state of {} was saved",
                self.ids.len(),
                states.len()
            )));
        }
        for (index, (state, Ready { vcpu, .. })) in (0..).zip(states.iter().zip(ready)) {
            let shown = || {
                vcpu.x86_64().set_cpuid(&self.supported)?;
                vcpu.x86_64().cpuid()
            };
            let shown = shown().map_err(|e| failed(index, e))?;
            let missing = compat::missing(&state.cpuid, &[&self.supported, &shown]);
            if !missing.is_empty() {
                return Err(Refusal::invalid(format!(
                    "This host's processor lacks what the guest was told it has: {}",
                    missing.join(", ")
                ))
                .within(format!("Cannot restore vCPU {index}")));
            }
        }
        Ok(())
    }

    /// Creates vCPUs that go on from these states, which were saved at `taken` (nanoseconds since 1970).
    pub(super) fn restore(
        self,
        vm: &dyn Vm,
        nodes: Vec<Node>,
        taken: u64,
        spec: &CpusSpec,
    ) -> Result<Vec<Ready>, Refusal> {
        let read = |node: Node| node.read().map_err(|e| Refusal::invalid("Cannot restore a vCPU").because(e));
        let mut states: Vec<VcpuState> = nodes.into_iter().map(read).collect::<Result<_, _>>()?;
        let ready = self.new_vcpus(vm, spec)?;
        self.check(&states, &ready)?;
        // One moment for all: their counters shall go on together.
        let passed = saved::since(taken);
        for (index, (state, Ready { vcpu, .. })) in (0..).zip(states.iter_mut().zip(&ready)) {
            let failed = |e| Refusal::invalid(format!("Cannot restore vCPU {index}")).because(e);
            state.advance_tsc(passed);
            let refused = state.load(vcpu.x86_64()).map_err(failed)?;
            if !refused.is_empty() {
                log::warn!(
                    "vCPU {index}: this host does not take the saved values of {} MSRs: {:x?}",
                    refused.len(),
                    &refused[..refused.len().min(MSRS_NAMED)]
                );
            }
        }
        Ok(ready)
    }
}

/// The state of every vCPU; all of them are paused.
pub(super) fn save(vcpus: &Vcpus, hypervisor: &dyn Hypervisor) -> Result<Vec<Node>, Refusal> {
    let refused = |e: hypervisor::Error| Refusal::host("Cannot save the vCPUs", e);
    let msrs = hypervisor.msr_indices().map_err(refused)?;
    let states = vcpus
        .ask(move |_, vcpu| VcpuState::save(vcpu.x86_64(), &msrs))
        .map_err(|e| Refusal::host("Cannot save the vCPUs", e))?;
    let node = |(index, state): (u32, hypervisor::Result<VcpuState>)| {
        let state = state.map_err(|e| Refusal::host(format!("Cannot save vCPU {index}"), e))?;
        if state.is_hypervisor() {
            return Err(Refusal::unsupported(format!(
                "Saving a guest that runs virtual machines of its own (vCPU {index} has virtualisation switched on)"
            )));
        }
        Node::of(&state).map_err(|e| Refusal::new(Kind::Bug, format!("Cannot save vCPU {index}")).because(e))
    };
    (0..).zip(states).map(node).collect()
}

fn failed(index: u32, e: hypervisor::Error) -> Refusal {
    Refusal::host(format!("Cannot create vCPU {index}"), e)
}
