//! A machine that is saved, and one that goes on from there.
//!
//! Saving changes nothing that the guest could see: the machine is paused and stays so. Restoring builds the machine as for a boot, but every device takes
//! the place that it had and loads its state before the guest can see it, and no firmware table or kernel is written: they are in
//! memory already.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arch::x86_64::layout::VM_GENERATION;
use catalog::VmSpec;
use device::{Node, Ram, Span};
use hypervisor::Hypervisor;
use spec::{Kind, Refusal};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::board::Board;
use super::clock::Clock;
use super::exits::GuestExits;
use super::saved::{self, SavedMachine};
use super::{Base, Machine, Names, Site, no_memory, processors};
use crate::core_scheduling::Cookie;
use crate::ram::Slots;
use crate::vcpus::Vcpus;

/// Where the moment of a snapshot is written in guest memory: in the page of the generation ID.
pub const SNAPSHOT_MARK: u64 = VM_GENERATION + 0x100;

impl Machine {
    /// The machine's state, apart from its memory. It is paused.
    ///
    /// # Errors
    /// A state that cannot be told, or a device that is about to leave.
    pub fn save(&self, hypervisor: &dyn Hypervisor, names: &Names) -> Result<Node, Refusal> {
        if let Some(leaving) = self.leaving().first() {
            return Err(Refusal::new(
                Kind::Conflict,
                format!("The guest was asked to let go of device {:?} and has not yet", leaving.id),
            ));
        }
        let board = self.board.save()?;
        let taken = saved::now();
        // Behind the generation ID, where no guest looks: by it the memory of one snapshot is told from that of another.
        self.ram()
            .map()
            .write_obj(taken, GuestAddress(SNAPSHOT_MARK))
            .map_err(|e| Refusal::new(Kind::Bug, "Cannot mark the snapshot").because(e))?;
        let machine = SavedMachine {
            phys_bits: self.phys_bits,
            taken,
            clock: self.clock.save(),
            cpus: processors::save(&self.vcpus, hypervisor)?,
            board,
            next_name: names.next(),
        };
        Node::of(&machine).map_err(|e| Refusal::new(Kind::Bug, "Cannot save the machine").because(e))
    }

    /// Guest memory.
    pub fn ram(&self) -> &Ram {
        self.slots.ram()
    }

    /// Builds a machine that goes on from a saved state. `ram` holds its memory; nothing of it runs yet.
    ///
    /// # Errors
    /// A state that is none of this machine, a host that lacks something that the guest relies on, or what a device needs and
    /// cannot have; what was built before is gone again.
    pub fn restore(
        spec: &mut VmSpec,
        node: Node,
        ram: Ram,
        site: Site<'_>,
        names: &mut Names,
    ) -> Result<Machine, Refusal> {
        let machine: SavedMachine =
            node.read().map_err(|e| Refusal::invalid("The saved machine cannot be understood").because(e))?;
        let SavedMachine { phys_bits, taken, clock: time, cpus, board: saved, next_name } = machine;
        let base = Base::new(spec, &site, Some(phys_bits))?;
        let found: Vec<Span> =
            ram.map().iter().map(|r| Span { base: r.start_addr().0, length: r.len() }).collect();
        if found != base.spans() {
            return Err(Refusal::invalid(format!(
                "The snapshot has memory at {found:x?}, and a machine of this description at {:x?}",
                base.spans()
            )));
        }
        let slots = Slots::map(base.vm.clone(), &ram).map_err(no_memory)?;

        let clock = Clock::new(base.vm.clone(), site.hypervisor.capabilities());
        clock.load(time);
        *names = Names::restored(next_name);
        let mut board = Board::new(&site, &base, &spec.segment_weights(), ram, Some(saved))?;
        board.add_platform(spec.memory.size.0)?;
        board.add_devices(spec, site.kept, names)?;
        board.built()?;

        let ready = base.processors.restore(&*base.vm, cpus, taken, &spec.cpus)?;
        let exits = Arc::new(GuestExits::new(&board, site.events.clone()));
        let vcpus = Vcpus::start(ready, exits, site.events, Cookie::new(spec.cpus.core_scheduling))
            .map_err(|e| Refusal::host("Cannot start the vCPUs", e))?;
        // The guest's clock will have gone on meanwhile, which its watchdogs would take for a hang.
        vcpus.note_pause();
        Ok(Machine { vcpus, board, clock, renewed: AtomicBool::new(true), phys_bits, slots })
    }
}
