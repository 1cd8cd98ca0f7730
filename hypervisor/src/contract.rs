//! The contract between a virtual machine monitor and the hypervisor beneath it.
//!
//! Nothing here names KVM. Values are plain, rare abilities are asked for in [`Capabilities`], and no method is called for a
//! thing that the capability denies.

use std::ops::ControlFlow;
use std::sync::Arc;

use device::irq::MsiRoute;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Failure, Result};
use crate::x86_64::{
    CpuidEntry, DebugRegisters, FpuState, LapicState, MpState, MsrEntry, SpecialRegisters, StandardRegisters,
    VcpuEvents, XsaveArea,
};

/// A hypervisor of this host.
pub trait Hypervisor: Send + Sync {
    /// Short name, as in `kvm`.
    fn name(&self) -> &'static str;

    /// What it can do here.
    fn capabilities(&self) -> &Capabilities;

    /// The CPUID leaves that a guest can have here. Asked of the host once, then remembered.
    ///
    /// # Errors
    /// When the host refuses to tell.
    fn supported_cpuid(&self) -> Result<Arc<[CpuidEntry]>>;

    /// Number of bits in a guest-physical address that this host can map.
    ///
    /// # Errors
    /// As for [`Self::supported_cpuid`].
    fn physical_address_bits(&self) -> Result<u8>;

    /// The MSRs that belong to a vCPU's saved state here.
    ///
    /// # Errors
    /// When the host refuses to tell.
    fn msr_indices(&self) -> Result<Vec<u32>>;

    /// Makes an empty machine: interrupt controllers in place, no RAM, no vCPU.
    ///
    /// # Errors
    /// When the host refuses, or lacks what the options ask for.
    fn create_vm(&self, options: &VmOptions) -> Result<Arc<dyn Vm>>;
}

/// What a hypervisor can do on this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Number of vCPUs a VM can have.
    pub max_vcpus: u32,
    /// Highest APIC id plus one.
    pub max_vcpu_id: u32,
    /// Number of RAM slots.
    pub ram_slots: u32,
    /// Number of interrupt routes, those of the IOAPIC included.
    pub interrupt_routes: u32,
    /// Doorbells work at all (ioeventfd).
    pub doorbells: bool,
    /// One doorbell can answer to writes of every width.
    pub doorbell_any_length: bool,
    /// RAM can be read-only for the guest.
    pub readonly_ram: bool,
    /// APIC ids above 254 work, in MSIs too.
    pub x2apic_32bit_ids: bool,
    /// The TSC frequency of a vCPU can be chosen.
    pub tsc_control: bool,
    /// The TSC frequency of a vCPU can be read.
    pub tsc_frequency: bool,
    /// The guest's LAPIC timer has TSC-deadline mode.
    pub tsc_deadline_timer: bool,
    /// The paravirtual clock can be read and set.
    pub clock: bool,
    /// State of a nested hypervisor can be saved.
    pub nested_state: bool,
    /// Hyper-V enlightenments.
    pub hyperv: bool,
    /// Bytes of the extended processor state, 4096 at least.
    pub xsave_size: u32,
    /// Triple faults that are pending belong to the saved state.
    pub triple_fault_event: bool,
}

/// What a new machine shall have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmOptions {
    /// APIC ids above 254 are used: MSIs carry 32-bit destinations and 0xff is an ordinary id.
    pub x2apic_32bit_ids: bool,
}

/// A virtual machine.
pub trait Vm: Send + Sync {
    /// Makes a vCPU.
    ///
    /// # Errors
    /// When the id is taken or above the limit, or the host refuses.
    fn create_vcpu(&self, apic_id: u32) -> Result<Box<dyn Vcpu>>;

    /// Gives the guest RAM. A slot that exists may only change its flags.
    ///
    /// # Safety
    /// The host range `[host_address, host_address + size)` is mapped memory that belongs to the guest, and stays so until
    /// [`Vm::unmap_ram`] of the same slot has returned or the VM and all its vCPUs and routes are gone. The program makes
    /// no reference to it (only raw or volatile accesses), for the guest writes it at any time.
    unsafe fn map_ram(&self, slot: &RamSlot) -> Result<()>;

    /// Takes a slot of RAM away. Once this returns, the guest reaches it no more.
    ///
    /// # Errors
    /// When there is no such slot.
    fn unmap_ram(&self, slot: u32) -> Result<()>;

    /// One bit per 4 KiB page of the slot that the guest wrote since the last call; the log is cleared.
    ///
    /// # Errors
    /// When the slot is not mapped with [`RamFlags::log_dirty`].
    fn take_dirty_log(&self, slot: u32, size: u64) -> Result<Vec<u64>>;

    /// Signals `event` whenever the guest writes to an address, without an exit to this program.
    ///
    /// # Errors
    /// When the address is taken by another doorbell with the same match, or the host cannot do it; see
    /// [`Capabilities::doorbells`]: the write then comes as an exit.
    fn add_doorbell(&self, event: &EventFd, doorbell: &Doorbell) -> Result<()>;

    /// Undoes [`Vm::add_doorbell`] of the same values.
    ///
    /// # Errors
    /// When there is no such doorbell.
    fn remove_doorbell(&self, event: &EventFd, doorbell: &Doorbell) -> Result<()>;

    /// Allocates an interrupt route for an MSI. It is masked until its first message; dropping it gives it back.
    ///
    /// # Errors
    /// When all routes are in use or no eventfd can be made.
    fn msi_route(&self) -> Result<Arc<dyn MsiRoute>>;

    /// The route that a pin of the IOAPIC (which is in user space) sends its messages by. One at a time for each pin.
    ///
    /// # Errors
    /// When there is no such pin, it is taken, or no eventfd can be made.
    fn ioapic_route(&self, pin: u32) -> Result<Arc<dyn MsiRoute>>;

    /// Runs `change`, in which any number of routes are updated, and tells the hypervisor once at its end. Interrupts of
    /// routes that changed are delivered (by the new message) after that only.
    ///
    /// # Errors
    /// When the hypervisor refuses the new table; the routes then keep what they had been told and the next update retries.
    fn batch_routes(&self, change: &mut dyn FnMut()) -> Result<()>;

    /// Sends a message-signalled interrupt once, without a route.
    ///
    /// # Errors
    /// When the host refuses.
    fn send_msi(&self, message: device::irq::MsiMessage) -> Result<()>;

    /// The paravirtual clock.
    ///
    /// # Errors
    /// When the host refuses; see [`Capabilities::clock`].
    fn clock(&self) -> Result<ClockState>;

    /// Sets the paravirtual clock. With `realtime` the host adds the time that has passed since.
    ///
    /// # Errors
    /// As for [`Self::clock`].
    fn set_clock(&self, clock: &ClockState) -> Result<()>;
}

/// A range of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamSlot {
    /// Number, below [`Capabilities::ram_slots`].
    pub slot: u32,
    /// Where the guest sees it; page aligned.
    pub guest_address: u64,
    /// Where it is in this process; page aligned (2 MiB aligned to the guest address for large pages).
    pub host_address: *const u8,
    /// Bytes; a multiple of the page size, not zero.
    pub size: u64,
    /// How it behaves.
    pub flags: RamFlags,
}

/// See [`RamSlot::flags`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RamFlags {
    /// Writes of the guest come as MMIO exits.
    pub readonly: bool,
    /// The host notes the pages that the guest writes: [`Vm::take_dirty_log`].
    pub log_dirty: bool,
}

/// Where a guest's write signals an eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doorbell {
    /// Ports or memory.
    pub space: DoorbellSpace,
    /// Port number or guest-physical address.
    pub address: u64,
    /// Width of the write: 1, 2, 4 or 8, or 0 for every width that virtio drivers use.
    pub length: u8,
    /// Only writes of this value ring. Needs a length.
    pub datamatch: Option<u64>,
}

/// See [`Doorbell::space`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DoorbellSpace {
    Pio,
    Mmio,
}

/// The paravirtual clock of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClockState {
    /// Nanoseconds since the VM began, by its own count.
    pub nanoseconds: u64,
    /// The host's real time at that moment in nanoseconds since 1970, if it can tell both at once.
    pub realtime: Option<u64>,
    /// The host's TSC at that moment, if it can tell both at once.
    pub host_tsc: Option<u64>,
}

/// Answers the accesses that the guest makes outside of its RAM. Called on vCPU threads, several at a time.
///
/// Reads of what nobody claims give all ones, writes are dropped: that is up to the implementation, as is everything that
/// the guest can get wrong. None of this returns an error.
pub trait Exits: Sync {
    /// `IN`: fills 1, 2 or 4 bytes. `REP INS` comes as one call per element.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// `OUT` of 1, 2 or 4 bytes. `REP OUTS` comes as one call per element.
    fn pio_write(&self, port: u16, data: &[u8]) -> ControlFlow<()>;
    /// A load: fills 1 to 8 bytes.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// A store of 1 to 8 bytes. `Break` makes [`Vcpu::run`] return [`Stop::Asked`] with the instruction finished.
    fn mmio_write(&self, address: u64, data: &[u8]) -> ControlFlow<()>;
    /// The guest ended an interrupt that the IOAPIC sent level-triggered.
    fn ioapic_eoi(&self, vector: u8);
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It was kicked. The vCPU is at an instruction boundary and its state can be saved.
    Interrupted,
    /// An answer of [`Exits`] asked for it. A kick that came at the same time is merged into this.
    Asked,
    /// The guest halted, and no interrupt controller of the hypervisor can wake it.
    Halted,
    /// Triple fault: an ordinary processor would reset itself.
    TripleFault,
    /// The guest asked for a reset through the hypervisor.
    SystemReset,
    /// The guest asked for power-off through the hypervisor.
    SystemShutdown,
    /// The guest told the hypervisor that it crashed.
    SystemCrash,
    /// The vCPU cannot go on.
    Failed(Box<Failure>),
}

/// A virtual processor. Its methods are called by one thread at a time, the one that runs it.
pub trait Vcpu: Send {
    /// Runs the guest until there is a reason to stop.
    ///
    /// Each [`Kick::kick`] is followed by at least one return of this method: the one that is running, or the next.
    fn run(&mut self, exits: &dyn Exits) -> Stop;

    /// A handle by which other threads make [`Self::run`] return.
    fn kick_handle(&self) -> Arc<dyn Kick>;

    /// State of an x86-64 processor.
    fn x86_64(&self) -> &dyn X86Vcpu;
}

/// Makes a vCPU leave the guest; see [`Vcpu::run`]. May outlive the vCPU.
pub trait Kick: Send + Sync {
    /// Returns at once; the vCPU leaves the guest some microseconds later. Never lost, whether the vCPU is in the guest, on
    /// its way in, or not yet started.
    fn kick(&self);
}

/// State of an x86-64 vCPU. To be called while the vCPU does not run; what is set holds from the next run on.
#[allow(missing_docs, clippy::missing_errors_doc)]
pub trait X86Vcpu {
    /// To be set once, before the first run and before the MSRs.
    fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<()>;
    fn cpuid(&self) -> Result<Vec<CpuidEntry>>;

    fn registers(&self) -> Result<StandardRegisters>;
    fn set_registers(&self, registers: &StandardRegisters) -> Result<()>;

    fn special_registers(&self) -> Result<SpecialRegisters>;
    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()>;

    /// KVM leaves MXCSR out in both directions (0x1f80 after reset), and setting marks no component as in use: saved state
    /// goes by [`Self::xsave`].
    fn fpu(&self) -> Result<FpuState>;
    fn set_fpu(&self, fpu: &FpuState) -> Result<()>;

    /// Reads MSRs in one go. Those that the host does not know are left out (and logged at debug level).
    fn msrs(&self, indices: &[u32]) -> Result<Vec<MsrEntry>>;
    /// Writes MSRs in one go, in order. Returns the numbers of those that the host refused (also logged at debug level).
    fn set_msrs(&self, entries: &[MsrEntry]) -> Result<Vec<u32>>;

    fn lapic(&self) -> Result<LapicState>;
    fn set_lapic(&self, lapic: &LapicState) -> Result<()>;

    fn mp_state(&self) -> Result<MpState>;
    fn set_mp_state(&self, state: MpState) -> Result<()>;

    fn events(&self) -> Result<VcpuEvents>;
    fn set_events(&self, events: &VcpuEvents) -> Result<()>;

    fn debug_registers(&self) -> Result<DebugRegisters>;
    fn set_debug_registers(&self, registers: &DebugRegisters) -> Result<()>;

    /// Everything in x87, SSE, AVX and so on.
    fn xsave(&self) -> Result<XsaveArea>;
    /// After XCR0.
    fn set_xsave(&self, area: &XsaveArea) -> Result<()>;

    /// `None` when the host gives its guests no XSAVE.
    fn xcr0(&self) -> Result<Option<u64>>;
    /// After the CPUID, before the XSAVE area.
    fn set_xcr0(&self, value: u64) -> Result<()>;

    /// Frequency of the guest's TSC; `None` when the host cannot tell.
    fn tsc_khz(&self) -> Result<Option<u32>>;
    /// See `Capabilities::tsc_control`.
    fn set_tsc_khz(&self, khz: u32) -> Result<()>;

    /// Tells the guest's clock that it was stopped on purpose, so that its watchdogs stay quiet.
    fn notify_paused(&self) -> Result<()>;

    /// Queues a non-maskable interrupt.
    fn nmi(&self) -> Result<()>;
}
