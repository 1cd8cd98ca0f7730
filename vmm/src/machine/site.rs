//! What a machine is built with: what the process has for it, and what is done beside the building.
//!
//! A machine starts sooner if what takes the kernel long is done by another thread meanwhile. It is the one that starts devices' threads,
//! which is there anyway and has nothing to do yet.

use std::sync::Arc;

use arch::x86_64::cpuid::HostCpu;
use device::{Events, Kept, Meanwhile, Ram, Threads};
use hypervisor::x86_64::CpuidEntry;
use hypervisor::{Hypervisor, Vm};
use spec::Refusal;

use super::no_memory;
use crate::confined;
use crate::ram::{RamError, Slots};

/// See the module.
pub struct Site<'a> {
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) threads: Threads,
    pub(super) events: Arc<dyn Events>,
    pub(super) kept: &'a Kept,
    leaves: Meanwhile<hypervisor::Result<Arc<[CpuidEntry]>>>,
}

impl<'a> Site<'a> {
    /// Begins to ask what the host supports. The process is kept to the machine's paths already.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn new(
        hypervisor: &Arc<dyn Hypervisor>,
        events: Arc<dyn Events>,
        kept: &'a Kept,
    ) -> Result<Self, Refusal> {
        let threads = confined::threads()?;
        let asked = hypervisor.clone();
        let leaves = threads.meanwhile(move || asked.supported_cpuid());
        Ok(Site { hypervisor: hypervisor.clone(), threads, events, kept, leaves })
    }

    /// The CPUID leaves that a guest can have here; for one machine.
    pub(super) fn supported_cpuid(&mut self) -> Result<Arc<[CpuidEntry]>, Refusal> {
        let leaves = self.leaves.get().map_err(not_done)?;
        leaves.map_err(|e| Refusal::host("Cannot ask the hypervisor for CPUID", e))
    }

    /// Begins to ask the processor itself for what is not in this list.
    pub(super) fn ask_processor(&self, supported: Arc<[CpuidEntry]>) -> Meanwhile<HostCpu> {
        self.threads.meanwhile(move || HostCpu::read(&supported))
    }

    /// Begins to give memory to the guest; no vCPU may run before that is done.
    pub(super) fn give(&self, vm: &Arc<dyn Vm>, ram: &Ram) -> Giving {
        let (vm, ram) = (vm.clone(), ram.clone());
        Giving(self.threads.meanwhile(move || Slots::map(vm, &ram)))
    }
}

/// Memory that the guest is about to have.
pub(super) struct Giving(Meanwhile<Result<Slots, RamError>>);

impl Giving {
    /// Waits until the guest has it.
    pub(super) fn got(mut self) -> Result<Slots, Refusal> {
        self.0.get().map_err(not_done)?.map_err(no_memory)
    }
}

pub(super) fn not_done(e: std::io::Error) -> Refusal {
    Refusal::host("Cannot prepare the VM", e)
}
