//! A VM of KVM: RAM slots, doorbells, interrupt routes, clock.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use device::irq::{MsiMessage, MsiRoute};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, KVMIO, kvm_clock_data, kvm_enable_cap, kvm_ioeventfd,
    kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
    kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::routes::{IOAPIC_PINS, Routes};
use super::vcpu::KvmVcpu;
use crate::contract::{Capabilities, ClockState, Doorbell, DoorbellSpace, RamSlot, Vcpu, Vm, VmOptions};
use crate::error::{Error, Result, refused};

/// Both halves of the x2APIC interface: 32-bit destinations, and 0xff as an ordinary id.
pub(super) const X2APIC_FLAGS: u32 = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;

/// Three pages that KVM uses on Intel processors without "unrestricted guest"; see the platform's memory map.
const TSS_ADDRESS: usize = 0xf800_0000;
/// One page, likewise.
const IDENTITY_MAP_ADDRESS: u64 = 0xf800_3000;

ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// See the module.
pub(super) struct KvmVm {
    fd: Arc<VmFd>,
    routes: Arc<Routes>,
    capabilities: Capabilities,
}

impl KvmVm {
    /// Sets up an empty VM.
    pub(super) fn new(fd: VmFd, capabilities: Capabilities, options: &VmOptions) -> Result<Self> {
        // Both must precede the first vCPU. KVM ignores them where the processor has no use for them; asking that first would take
        // longer.
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(refused("set KVM's identity map address"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(refused("set KVM's TSS address"))?;
        let mut enable = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        enable.args[0] = IOAPIC_PINS.into();
        fd.enable_cap(&enable).map_err(refused("create the split interrupt controller"))?;
        if options.x2apic_32bit_ids {
            if !capabilities.x2apic_32bit_ids {
                return Err(Error::Unsupported("APIC ids above 254 (KVM_CAP_X2APIC_API)"));
            }
            let mut enable = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
            enable.args[0] = X2APIC_FLAGS.into();
            fd.enable_cap(&enable).map_err(refused("enable 32-bit APIC ids"))?;
        }
        let fd = Arc::new(fd);
        let routes =
            Arc::new(Routes::new(fd.clone(), capabilities.interrupt_routes, options.x2apic_32bit_ids));
        Ok(KvmVm { fd, routes, capabilities })
    }

    /// Adds or removes one doorbell of one width.
    fn ioeventfd(&self, event: &EventFd, doorbell: &Doorbell, length: u8, deassign: bool) -> io::Result<()> {
        let mut flags = 0;
        if doorbell.datamatch.is_some() {
            flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
        }
        if doorbell.space == DoorbellSpace::Pio {
            flags |= 1 << kvm_ioeventfd_flag_nr_pio;
        }
        if deassign {
            flags |= 1 << kvm_ioeventfd_flag_nr_deassign;
        }
        let request = kvm_ioeventfd {
            datamatch: doorbell.datamatch.unwrap_or(0),
            addr: doorbell.address,
            len: length.into(),
            fd: event.as_raw_fd(),
            flags,
            ..Default::default()
        };
        // SAFETY: the request is the structure that this ioctl reads, and the kernel keeps no pointer to it.
        match unsafe { ioctl_with_ref(&*self.fd, KVM_IOEVENTFD(), &request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The widths to register so that `doorbell` rings for all that it asks for.
    fn widths(&self, doorbell: &Doorbell) -> &'static [u8] {
        match doorbell.length {
            0 if self.capabilities.doorbell_any_length => &[0],
            // A virtio driver notifies by 16 bits, or by 32 with VIRTIO_F_NOTIFICATION_DATA.
            0 => &[2, 4],
            1 => &[1],
            2 => &[2],
            4 => &[4],
            _ => &[8],
        }
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, apic_id: u32) -> Result<Box<dyn Vcpu>> {
        let fd = self
            .fd
            .create_vcpu(apic_id.into())
            .map_err(|e| Error::CreateVcpu { id: apic_id, source: e.into() })?;
        Ok(Box::new(KvmVcpu::new(fd, self.fd.run_size(), self.capabilities)?))
    }

    unsafe fn map_ram(&self, slot: &RamSlot) -> Result<()> {
        let mut flags = 0;
        if slot.flags.readonly {
            if !self.capabilities.readonly_ram {
                return Err(Error::Unsupported("read-only RAM (KVM_CAP_READONLY_MEM)"));
            }
            flags |= KVM_MEM_READONLY;
        }
        if slot.flags.log_dirty {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let failed = |source| Error::MapRam {
            slot: slot.slot,
            guest_address: slot.guest_address,
            size: slot.size,
            source,
        };
        if slot.size == 0 {
            // KVM would take this for a request to remove the slot.
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let region = kvm_userspace_memory_region {
            slot: slot.slot,
            flags,
            guest_phys_addr: slot.guest_address,
            memory_size: slot.size,
            userspace_addr: slot.host_address as u64,
        };
        // SAFETY: the caller vouches for the host range.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(|e| failed(e.into()))
    }

    fn unmap_ram(&self, slot: u32) -> Result<()> {
        let region = kvm_userspace_memory_region { slot, ..Default::default() };
        // SAFETY: a region of size 0 takes the slot away and refers to no memory.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(refused("unmap a RAM slot"))
    }

    fn take_dirty_log(&self, slot: u32, size: u64) -> Result<Vec<u64>> {
        let size = usize::try_from(size).map_err(|_| Error::Unsupported("a RAM slot of that size"))?;
        self.fd.get_dirty_log(slot, size).map_err(refused("read the dirty log of a RAM slot"))
    }

    fn add_doorbell(&self, event: &EventFd, doorbell: &Doorbell) -> Result<()> {
        let failed = |source| doorbell_error("add", doorbell, source);
        if !self.capabilities.doorbells {
            return Err(failed(io::ErrorKind::Unsupported.into()));
        }
        if !matches!(doorbell.length, 0 | 1 | 2 | 4 | 8)
            || (doorbell.length == 0 && doorbell.datamatch.is_some())
        {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let widths = self.widths(doorbell);
        for (done, width) in widths.iter().enumerate() {
            if let Err(error) = self.ioeventfd(event, doorbell, *width, false) {
                for width in &widths[..done] {
                    if let Err(error) = self.ioeventfd(event, doorbell, *width, true) {
                        log::warn!("cannot take back half a doorbell: {error}");
                    }
                }
                return Err(failed(error));
            }
        }
        Ok(())
    }

    fn remove_doorbell(&self, event: &EventFd, doorbell: &Doorbell) -> Result<()> {
        let mut result = Ok(());
        for width in self.widths(doorbell) {
            if let Err(error) = self.ioeventfd(event, doorbell, *width, true) {
                result = Err(doorbell_error("remove", doorbell, error));
            }
        }
        result
    }

    fn msi_route(&self) -> Result<Arc<dyn MsiRoute>> {
        Ok(Arc::new(self.routes.allocate()?))
    }

    fn ioapic_route(&self, pin: u32) -> Result<Arc<dyn MsiRoute>> {
        Ok(Arc::new(self.routes.take_pin(pin)?))
    }

    fn batch_routes(&self, change: &mut dyn FnMut()) -> Result<()> {
        self.routes.batch(change).map_err(refused("change the interrupt routes"))
    }

    fn send_msi(&self, message: MsiMessage) -> Result<()> {
        self.routes.send(message).map_err(refused("send an MSI"))
    }

    fn clock(&self) -> Result<ClockState> {
        let clock = self.fd.get_clock().map_err(refused("read the VM's clock"))?;
        Ok(ClockState {
            nanoseconds: clock.clock,
            realtime: (clock.flags & KVM_CLOCK_REALTIME != 0).then_some(clock.realtime),
            host_tsc: (clock.flags & KVM_CLOCK_HOST_TSC != 0).then_some(clock.host_tsc),
        })
    }

    fn set_clock(&self, clock: &ClockState) -> Result<()> {
        let data = kvm_clock_data {
            clock: clock.nanoseconds,
            // KVM takes the real time only; the TSC is for information.
            flags: if clock.realtime.is_some() { KVM_CLOCK_REALTIME } else { 0 },
            realtime: clock.realtime.unwrap_or(0),
            ..Default::default()
        };
        self.fd.set_clock(&data).map_err(refused("set the VM's clock"))
    }
}

fn doorbell_error(verb: &'static str, doorbell: &Doorbell, source: io::Error) -> Error {
    let space = match doorbell.space {
        DoorbellSpace::Pio => "port",
        DoorbellSpace::Mmio => "memory",
    };
    Error::Doorbell { verb, space, address: doorbell.address, source }
}
