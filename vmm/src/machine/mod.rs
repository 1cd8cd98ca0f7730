//! A machine: put together from top to bottom, run, paused, and taken apart by dropping it.
//!
//! The order of fields is the order of taking apart: vCPUs end first, then devices with their threads, then memory, then the
//! hypervisor's VM.

mod apertures;
mod board;
mod clock;
mod exits;
mod firmware;
mod glue;
mod hotplug;
mod names;
mod processors;
mod restore;
pub mod saved;
mod site;
mod tree;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::DeviceNode;
use arch::x86_64::boot::{self, Backing, Initramfs, Kernel};
use arch::x86_64::layout::{self, MemoryMap};
use catalog::VmSpec;
use device::grant::Ring;
use device::{Counters, Span};
use hypervisor::{Vm, VmOptions};
use spec::{Kind, Refusal};

use crate::core_scheduling::Cookie;
use crate::ram::{self, Slots};
use crate::vcpus::Vcpus;
use board::Board;
use clock::Clock;
use exits::GuestExits;
use processors::{Layout, Processors};

pub use names::Names;
pub use restore::SNAPSHOT_MARK;
pub use site::Site;

/// See the module.
pub struct Machine {
    vcpus: Vcpus,
    board: Board,
    clock: Clock,
    /// It goes on from a saved state, and the guest was not told yet.
    renewed: AtomicBool,
    phys_bits: u8,
    slots: Slots,
}

/// What stands before memory and devices.
struct Base {
    map: MemoryMap,
    processors: Processors,
    vm: Arc<dyn Vm>,
}

impl Base {
    /// Lays out the address space and the vCPUs, and creates the VM. `phys_bits` is the width of the guest's addresses where that is
    /// settled.
    fn new(spec: &VmSpec, site: &Site<'_>, phys_bits: Option<u8>) -> Result<Base, Refusal> {
        let hypervisor = site.hypervisor.clone();
        let layout = Layout::new(&spec.cpus, hypervisor.capabilities())?;
        let options = VmOptions { x2apic_32bit_ids: layout.wide_ids() };
        let vm = hypervisor.create_vm(&options).map_err(|e| Refusal::host("Cannot create the VM", e))?;
        let supported = hypervisor
            .supported_cpuid()
            .map_err(|e| Refusal::host("Cannot ask the hypervisor for CPUID", e))?;
        let host_bits = hypervisor
            .physical_address_bits()
            .map_err(|e| Refusal::host("Cannot ask the hypervisor for its address width", e))?;
        let phys_bits = match phys_bits {
            Some(bits) if bits > host_bits => {
                return Err(Refusal::invalid(format!(
                    "The guest was told of {bits} bits of physical address, and this host has {host_bits}"
                )));
            }
            Some(bits) => bits,
            None => host_bits.min(spec.cpus.max_phys_bits),
        };
        let map = MemoryMap::new(spec.memory.size.0, phys_bits)
            .map_err(|e| Refusal::invalid("Memory configuration is not valid").because(e))?;
        let capabilities = hypervisor.capabilities();
        let processors = Processors::new(layout, &spec.cpus, capabilities, supported, phys_bits);
        Ok(Base { map, processors, vm })
    }

    fn spans(&self) -> Vec<Span> {
        self.map.ram().collect()
    }
}

impl Machine {
    /// Builds the machine; nothing of it runs yet. What was chosen automatically is written back into `spec`.
    ///
    /// # Errors
    /// The first thing that could not be had; what was built before is gone again.
    pub fn build(spec: &mut VmSpec, site: Site<'_>, names: &mut Names) -> Result<Machine, Refusal> {
        let payload = spec.payload.clone().unwrap_or_default();
        let kernel = payload.kernel.as_deref().ok_or_else(catalog::payload::nothing_to_boot)?;
        let kernel = Kernel::open(kernel).map_err(|e| boot_error("Cannot load the kernel", e))?;
        let initramfs = payload
            .initramfs
            .as_deref()
            .map(Initramfs::open)
            .transpose()
            .map_err(|e| boot_error("Cannot load the initramfs", e))?;

        let base = Base::new(spec, &site, None)?;
        let memory = ram::map(&spec.memory, &base.spans()).map_err(no_memory)?;
        let slots = Slots::map(base.vm.clone(), &memory).map_err(no_memory)?;

        let clock = Clock::new(base.vm.clone(), site.hypervisor.capabilities());
        let mut board = Board::new(&site, &base, &spec.segment_weights(), memory.clone(), None)?;
        board.add_platform(spec.memory.size.0)?;
        board.add_devices(spec, site.kept, names)?;

        let Base { map, processors, vm } = base;
        firmware::write(&board, &processors, spec.platform.as_ref(), &memory.map())?;
        let plan = boot::plan(
            &kernel,
            initramfs.as_ref(),
            payload.cmdline.unwrap_or_default().as_bytes(),
            &map,
            Some(layout::RSDP),
        )
        .map_err(|e| boot_error("Cannot load the kernel", e))?;
        let backing = if spec.memory.is_shared() { Backing::Other } else { Backing::PrivateAnonymous };
        let loaded =
            plan.load(&*memory.map(), backing).map_err(|e| boot_error("Cannot load the kernel", e))?;
        log::debug!("boot files: {} bytes mapped, {} bytes copied", loaded.mapped, loaded.copied);

        let ready = processors.create(&*vm, plan.entry, &spec.cpus)?;
        let exits = Arc::new(GuestExits::new(&board, site.events.clone()));
        let vcpus = Vcpus::start(ready, exits, site.events, Cookie::new(spec.cpus.core_scheduling))
            .map_err(|e| Refusal::host("Cannot start the vCPUs", e))?;
        let renewed = AtomicBool::new(false);
        Ok(Machine { vcpus, board, clock, renewed, phys_bits: map.phys_bits, slots })
    }

    /// Lets devices and vCPUs run: at first and after a pause.
    ///
    /// # Errors
    /// A device could not be started, or the clock not be set.
    pub fn resume(&self) -> Result<(), Refusal> {
        self.clock.go_on()?;
        if let Err(e) = self.board.start() {
            self.clock.stop()?;
            return Err(e);
        }
        if self.renewed.swap(false, Ordering::Relaxed) {
            self.board.ring(Ring::Generation)?;
        }
        self.vcpus.resume();
        // What devices began meanwhile is nothing that the guest waits for.
        let settled = self.board.settle();
        if settled.is_err() {
            self.stand_still()?;
        }
        settled
    }

    fn stand_still(&self) -> Result<(), Refusal> {
        self.vcpus.pause();
        self.clock.stop().and_then(|()| self.board.stop())
    }

    /// Stops vCPUs, the clock and devices; when it returns, nothing changes guest memory any more.
    ///
    /// # Errors
    /// A device could not be stopped, or the clock not be read; the machine runs on.
    pub fn pause(&self) -> Result<(), Refusal> {
        let stopped = self.stand_still();
        if stopped.is_err() {
            self.resume()?;
        }
        stopped
    }

    /// Presses the ACPI power button.
    ///
    /// # Errors
    /// The machine has none.
    pub fn power_button(&self) -> Result<(), Refusal> {
        self.board.press_power_button()
    }

    /// Sends every vCPU a non-maskable interrupt.
    ///
    /// # Errors
    /// None today; a machine of another architecture may have no such interrupt.
    pub fn nmi(&self) -> Result<(), Refusal> {
        self.vcpus.nmi();
        Ok(())
    }

    /// The user's terminal has another size.
    pub fn terminal_resized(&self) {
        self.board.terminal_resized();
    }

    /// What each device counted, by its id.
    pub fn counters(&self) -> BTreeMap<String, Counters> {
        self.board.counters()
    }

    /// The devices and what they occupy.
    pub fn device_tree(&self) -> BTreeMap<String, DeviceNode> {
        self.board.tree()
    }
}

fn no_memory(e: ram::RamError) -> Refusal {
    Refusal::host("Cannot set up guest memory", e)
}

/// A refusal over boot files: what is wrong with the file is the user's, what the host refuses is the host's.
fn boot_error(message: &str, e: arch::Error) -> Refusal {
    Refusal::new(Kind::Invalid, message).because(e)
}
