//! The hypervisor, as the PCI layer wants to see it.

use std::io;
use std::sync::Arc;

use device::MsiRoute;
use hypervisor::{Doorbell, DoorbellSpace, Vm};
use pci::{Doorbells, MsiSource};
use vmm_sys_util::eventfd::EventFd;

/// Interrupt sources from the VM.
pub(super) struct VmInterrupts(pub(super) Arc<dyn Vm>);

impl MsiSource for VmInterrupts {
    fn route(&self) -> io::Result<Arc<dyn MsiRoute>> {
        self.0.msi_route().map_err(io::Error::other)
    }

    fn batch(&self, change: &mut dyn FnMut()) -> io::Result<()> {
        self.0.batch_routes(change).map_err(io::Error::other)
    }
}

/// Doorbells from the VM.
pub(super) struct VmDoorbells {
    pub(super) vm: Arc<dyn Vm>,
    /// Bytes that a write must have to ring; 0 for any.
    pub(super) length: u8,
}

impl VmDoorbells {
    fn at(&self, address: u64) -> Doorbell {
        Doorbell { space: DoorbellSpace::Mmio, address, length: self.length, datamatch: None }
    }
}

impl Doorbells for VmDoorbells {
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm.add_doorbell(event, &self.at(address)).map_err(io::Error::other)
    }

    fn remove(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm.remove_doorbell(event, &self.at(address)).map_err(io::Error::other)
    }
}
