//! The system calls of this crate, for those who confine the threads that use it.

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_dirty_log, kvm_enable_cap, kvm_fpu, kvm_ioeventfd,
    kvm_irq_routing, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_list, kvm_msrs, kvm_regs,
    kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use sandbox::{Call, Set, call};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

const fn io(number: u32) -> u32 {
    ioctl_expr(_IOC_NONE, KVMIO, number, 0) as u32
}

const fn ior<T>(number: u32) -> u32 {
    ioctl_expr(_IOC_READ, KVMIO, number, size_of::<T>() as u32) as u32
}

const fn iow<T>(number: u32) -> u32 {
    ioctl_expr(_IOC_WRITE, KVMIO, number, size_of::<T>() as u32) as u32
}

const fn iowr<T>(number: u32) -> u32 {
    ioctl_expr(_IOC_READ | _IOC_WRITE, KVMIO, number, size_of::<T>() as u32) as u32
}

/// Whoever runs a vCPU, asks it for its state while it stands, and has doorbells and interrupts come and go as its guest says.
pub const VCPU: Set = &[
    call::ioctl(&[
        io(0x80),                     // KVM_RUN
        iow::<kvm_irq_routing>(0x6a), // KVM_SET_GSI_ROUTING
        iow::<kvm_irqfd>(0x76),       // KVM_IRQFD
        iow::<kvm_ioeventfd>(0x79),   // KVM_IOEVENTFD
        iow::<kvm_msi>(0xa5),         // KVM_SIGNAL_MSI
        io(0x9a),                     // KVM_NMI
        io(0xad),                     // KVM_KVMCLOCK_CTRL
        ior::<kvm_regs>(0x81),        // KVM_GET_REGS
        ior::<kvm_sregs>(0x83),       // KVM_GET_SREGS
        iowr::<kvm_msrs>(0x88),       // KVM_GET_MSRS
        ior::<kvm_fpu>(0x8c),         // KVM_GET_FPU
        ior::<kvm_lapic_state>(0x8e), // KVM_GET_LAPIC
        iowr::<kvm_cpuid2>(0x91),     // KVM_GET_CPUID2
        ior::<kvm_mp_state>(0x98),    // KVM_GET_MP_STATE
        ior::<kvm_vcpu_events>(0x9f), // KVM_GET_VCPU_EVENTS
        ior::<kvm_debugregs>(0xa1),   // KVM_GET_DEBUGREGS
        ior::<kvm_xsave>(0xa4),       // KVM_GET_XSAVE
        ior::<kvm_xsave>(0xcf),       // KVM_GET_XSAVE2
        ior::<kvm_xcrs>(0xa6),        // KVM_GET_XCRS
        io(0xa3),                     // KVM_GET_TSC_KHZ
    ]),
    // The signal by which a vCPU is kicked is let through.
    Call::any(libc::SYS_rt_sigprocmask),
];

/// Whoever creates machines and vCPUs and gives them their memory and state; the calls of [`VCPU`] come on top.
pub const MACHINE: Set = &[
    call::ioctl(&[
        io(0x00),                                 // KVM_GET_API_VERSION
        io(0x01),                                 // KVM_CREATE_VM
        iowr::<kvm_msr_list>(0x02),               // KVM_GET_MSR_INDEX_LIST
        io(0x03),                                 // KVM_CHECK_EXTENSION
        io(0x04),                                 // KVM_GET_VCPU_MMAP_SIZE
        iowr::<kvm_cpuid2>(0x05),                 // KVM_GET_SUPPORTED_CPUID
        io(0x41),                                 // KVM_CREATE_VCPU
        iow::<kvm_dirty_log>(0x42),               // KVM_GET_DIRTY_LOG
        iow::<kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
        io(0x47),                                 // KVM_SET_TSS_ADDR
        iow::<u64>(0x48),                         // KVM_SET_IDENTITY_MAP_ADDR
        iow::<kvm_clock_data>(0x7b),              // KVM_SET_CLOCK
        ior::<kvm_clock_data>(0x7c),              // KVM_GET_CLOCK
        iow::<kvm_regs>(0x82),                    // KVM_SET_REGS
        iow::<kvm_sregs>(0x84),                   // KVM_SET_SREGS
        iow::<kvm_msrs>(0x89),                    // KVM_SET_MSRS
        iow::<kvm_fpu>(0x8d),                     // KVM_SET_FPU
        iow::<kvm_lapic_state>(0x8f),             // KVM_SET_LAPIC
        iow::<kvm_cpuid2>(0x90),                  // KVM_SET_CPUID2
        iow::<kvm_mp_state>(0x99),                // KVM_SET_MP_STATE
        iow::<kvm_vcpu_events>(0xa0),             // KVM_SET_VCPU_EVENTS
        iow::<kvm_debugregs>(0xa2),               // KVM_SET_DEBUGREGS
        io(0xa2),                                 // KVM_SET_TSC_KHZ
        iow::<kvm_enable_cap>(0xa3),              // KVM_ENABLE_CAP
        iow::<kvm_xsave>(0xa5),                   // KVM_SET_XSAVE
        iow::<kvm_xcrs>(0xa7),                    // KVM_SET_XCRS
    ]),
    // The handler of the signal by which vCPUs are kicked: the first real-time signal that the C library leaves to programs.
    Call::one_of(libc::SYS_rt_sigaction, 0, &[34]),
];
