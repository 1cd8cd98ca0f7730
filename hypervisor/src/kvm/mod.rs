//! KVM: the Linux kernel's hypervisor, through `/dev/kvm`.
//!
//! Everything that depends on the kernel's version or on the processor is asked by `KVM_CHECK_EXTENSION` when the device is
//! opened and noted in [`Capabilities`]; nothing is assumed from a version number. What costs time is asked when it is
//! first wanted: opening costs the capability questions and no more.
//!
//! There is no PIC, no PIT and no in-kernel IOAPIC here, ever: the split irqchip keeps the local APICs in the kernel and
//! creates in a fraction of the time.

pub mod calls;
mod convert;
pub(crate) mod host;
mod routes;
mod run_page;
mod state;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::Cap;

use crate::contract::{Capabilities, Hypervisor, Vm, VmOptions};
use crate::error::{Error, Result, refused};
use crate::x86_64::CpuidEntry;

/// Where the device is.
pub const DEVICE: &str = "/dev/kvm";

/// The hypervisor of this host's kernel.
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    capabilities: Capabilities,
    supported_cpuid: OnceLock<Arc<[CpuidEntry]>>,
}

impl Kvm {
    /// Opens `/dev/kvm` and learns what it can do.
    ///
    /// # Errors
    /// When it is missing, may not be opened, is not KVM, or lacks what cannot be done without.
    pub fn open() -> Result<Self> {
        Self::open_at(Path::new(DEVICE))
    }

    /// As [`Self::open`], with another path.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_at(path: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).map_err(|source| {
            let path = path.to_owned();
            match source.raw_os_error() {
                Some(libc::ENOENT) => Error::Missing { path },
                Some(libc::ENODEV | libc::ENXIO) => Error::NoDriver { path },
                Some(libc::EACCES | libc::EPERM) => Error::Denied { path },
                _ => Error::Open { path, source },
            }
        })?;
        Self::from_fd(file.into(), path)
    }

    /// Takes over a descriptor of the device; `path` is for messages.
    ///
    /// # Errors
    /// When it is not KVM, or lacks what cannot be done without.
    pub fn from_fd(fd: OwnedFd, path: &Path) -> Result<Self> {
        use std::os::fd::IntoRawFd;
        // SAFETY: the descriptor was owned by `fd` and is owned by nobody else now.
        let fd = unsafe { kvm_ioctls::Kvm::from_raw_fd(fd.into_raw_fd()) };
        let expected = KVM_API_VERSION.cast_signed();
        let found = fd.get_api_version();
        if found != expected {
            return Err(Error::ApiVersion { path: path.to_owned(), found, expected });
        }
        let capabilities = ask_capabilities(&fd)?;
        Ok(Kvm { fd, capabilities, supported_cpuid: OnceLock::new() })
    }
}

/// Asks for everything optional, and refuses a KVM without the rest.
fn ask_capabilities(fd: &kvm_ioctls::Kvm) -> Result<Capabilities> {
    let needed = [
        (Cap::UserMemory, "user memory regions"),
        (Cap::SplitIrqchip, "the split interrupt controller (Linux 4.5)"),
        (Cap::IrqRouting, "interrupt routing"),
        (Cap::Irqfd, "interrupts by eventfd"),
        (Cap::SignalMsi, "message-signalled interrupts"),
        (Cap::ImmediateExit, "immediate exit (Linux 4.12)"),
    ];
    for (capability, name) in needed {
        if !fd.check_extension(capability) {
            return Err(Error::CapabilityMissing(name));
        }
    }
    // The answer is a number of at least 0 for each of these; a negative one counts as "no".
    let count = |capability| u32::try_from(fd.check_extension_int(capability)).unwrap_or(0);
    let raw = |capability: u32| fd.check_extension_raw(capability.into()) > 0;
    let doorbells = fd.check_extension(Cap::Ioeventfd);
    Ok(Capabilities {
        // KVM's documentation: without an answer, 4 vCPUs; ids go as far as the number.
        max_vcpus: match count(Cap::MaxVcpus) {
            0 => count(Cap::NrVcpus).max(4),
            n => n,
        },
        max_vcpu_id: match count(Cap::MaxVcpuId) {
            0 => count(Cap::MaxVcpus).max(4),
            n => n,
        },
        ram_slots: count(Cap::NrMemslots).max(32),
        interrupt_routes: count(Cap::IrqRouting).min(routes::MAX_ROUTES),
        doorbells,
        doorbell_any_length: doorbells && raw(KVM_CAP_IOEVENTFD_ANY_LENGTH),
        readonly_ram: fd.check_extension(Cap::ReadonlyMem),
        x2apic_32bit_ids: count(Cap::X2ApicApi) & vm::X2APIC_FLAGS == vm::X2APIC_FLAGS,
        tsc_control: fd.check_extension(Cap::TscControl),
        tsc_frequency: fd.check_extension(Cap::GetTscKhz),
        tsc_deadline_timer: fd.check_extension(Cap::TscDeadlineTimer),
        clock: fd.check_extension(Cap::AdjustClock),
        nested_state: fd.check_extension(Cap::NestedState),
        hyperv: fd.check_extension(Cap::Hyperv),
        xsave_size: count(Cap::Xsave2).max(state::XSAVE_MIN_SIZE),
        triple_fault_event: raw(KVM_CAP_X86_TRIPLE_FAULT_EVENT),
    })
}

impl Hypervisor for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Result<Arc<[CpuidEntry]>> {
        if let Some(known) = self.supported_cpuid.get() {
            return Ok(known.clone());
        }
        let answer = self
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("get the supported CPUID leaves"))?;
        let entries = answer.as_slice().iter().map(CpuidEntry::from).collect();
        Ok(self.supported_cpuid.get_or_init(|| entries).clone())
    }

    fn physical_address_bits(&self) -> Result<u8> {
        // Leaf 0x8000_0008: EAX[7:0] is the processor's width; EAX[23:16], when not 0, is what nested paging can map
        // (48 bits on a wider processor whose second-level tables have four levels).
        let leaves = self.supported_cpuid()?;
        let eax = leaves.iter().find(|leaf| leaf.function == 0x8000_0008).map_or(36, |leaf| leaf.eax);
        let [width, _, guest_width, _] = eax.to_le_bytes();
        Ok(if guest_width == 0 { width } else { width.min(guest_width) })
    }

    fn msr_indices(&self) -> Result<Vec<u32>> {
        let list = self.fd.get_msr_index_list().map_err(refused("get the list of MSRs"))?;
        Ok(list.as_slice().to_vec())
    }

    fn create_vm(&self, options: &VmOptions) -> Result<Arc<dyn Vm>> {
        // KVM gives EINTR when a signal comes while it allocates: a matter of luck, so try again.
        let fd = loop {
            match self.fd.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                answer => break answer.map_err(|e| refused("create a VM")(io::Error::from(e)))?,
            }
        };
        Ok(Arc::new(vm::KvmVm::new(fd, self.capabilities, options)?))
    }
}
