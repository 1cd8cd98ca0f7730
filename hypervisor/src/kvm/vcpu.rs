//! A vCPU of KVM: the loop around `KVM_RUN`.
//!
//! Nothing on the way from an exit to its handler and back allocates or takes a lock.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, KVMIO,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use super::run_page::{RunPage, install_kick_handler};
use crate::contract::{Capabilities, Exits, Kick, Stop, Vcpu, X86Vcpu};
use crate::error::{Failure, Result};
use crate::x86_64::MpState;

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);

/// See the module.
pub(super) struct KvmVcpu {
    pub(super) fd: VcpuFd,
    page: Arc<RunPage>,
    pub(super) capabilities: Capabilities,
}

/// What comes of one exit.
enum Next {
    /// Into the guest again.
    Continue,
    /// Into the kernel again, to finish the instruction, and then out.
    Finish,
    /// Out.
    Stop(Stop),
}

impl From<ControlFlow<()>> for Next {
    fn from(flow: ControlFlow<()>) -> Self {
        match flow {
            ControlFlow::Continue(()) => Next::Continue,
            ControlFlow::Break(()) => Next::Finish,
        }
    }
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, page_size: usize, capabilities: Capabilities) -> Result<Self> {
        install_kick_handler()?;
        let page = Arc::new(RunPage::map(&fd, page_size)?);
        Ok(KvmVcpu { fd, page, capabilities })
    }

    /// Handles the exit that KVM has just reported in the shared page.
    fn handle_exit(&mut self, exits: &dyn Exits) -> Next {
        let page = self.page.get();
        // SAFETY: outside of KVM_RUN the kernel does not write the page, and this thread owns it.
        let reason = unsafe { (*page).exit_reason };
        match reason {
            KVM_EXIT_IO => self.handle_pio(exits),
            KVM_EXIT_MMIO => self.handle_mmio(exits),
            KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: as above; the reason says that this member of the union is valid.
                let vector = unsafe { (*page).__bindgen_anon_1.eoi.vector };
                exits.ioapic_eoi(vector);
                Next::Continue
            }
            // KVM had something of its own to do; it goes on from where it was.
            KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_SET_TPR => Next::Continue,
            KVM_EXIT_HLT => Next::Stop(Stop::Halted),
            KVM_EXIT_SHUTDOWN => Next::Stop(Stop::TripleFault),
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: as above.
                let event = unsafe { (*page).__bindgen_anon_1.system_event.type_ };
                Next::Stop(match event {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Stop::SystemShutdown,
                    KVM_SYSTEM_EVENT_RESET => Stop::SystemReset,
                    KVM_SYSTEM_EVENT_CRASH => Stop::SystemCrash,
                    _ => self.failed(|rip| Failure::UnknownExit { reason, rip }),
                })
            }
            KVM_EXIT_INTERNAL_ERROR => Next::Stop(self.internal_error()),
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let reason = unsafe { (*page).__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                Next::Stop(self.failed(|rip| Failure::Entry { reason, rip }))
            }
            _ => Next::Stop(self.failed(|rip| Failure::UnknownExit { reason, rip })),
        }
    }

    fn handle_pio(&mut self, exits: &dyn Exits) -> Next {
        let page = self.page.get();
        // SAFETY: outside of KVM_RUN this thread owns the page, and the exit reason says that this member is valid.
        let io = unsafe { (*page).__bindgen_anon_1.io };
        let size = usize::from(io.size);
        let offset = io.data_offset as usize;
        let length = size * io.count as usize;
        if !matches!(size, 1 | 2 | 4) || offset.checked_add(length).is_none_or(|end| end > self.page.size()) {
            return Next::Stop(self.failed(|rip| Failure::UnknownExit { reason: KVM_EXIT_IO, rip }));
        }
        // SAFETY: the range is inside the mapping (just checked), which this thread owns until the next KVM_RUN.
        let data = unsafe { std::slice::from_raw_parts_mut(page.cast::<u8>().add(offset), length) };
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            data.chunks_exact_mut(size).for_each(|element| exits.pio_read(io.port, element));
            return Next::Continue;
        }
        // All elements are written even if one of them asks to stop: they are one exit.
        let mut flow = ControlFlow::Continue(());
        for element in data.chunks_exact(size) {
            let answer = exits.pio_write(io.port, element);
            if answer.is_break() {
                flow = answer;
            }
        }
        flow.into()
    }

    fn handle_mmio(&mut self, exits: &dyn Exits) -> Next {
        // SAFETY: outside of KVM_RUN this thread owns the page, and the exit reason says that this member is valid. The
        // reference does not overlap `immediate_exit`.
        let mmio = unsafe { &mut (*self.page.get()).__bindgen_anon_1.mmio };
        let Some(data) = mmio.data.get_mut(..mmio.len as usize) else {
            return Next::Stop(self.failed(|rip| Failure::UnknownExit { reason: KVM_EXIT_MMIO, rip }));
        };
        if mmio.is_write == 0 {
            exits.mmio_read(mmio.phys_addr, data);
            Next::Continue
        } else {
            exits.mmio_write(mmio.phys_addr, data).into()
        }
    }

    fn internal_error(&self) -> Stop {
        let page = self.page.get();
        // SAFETY: outside of KVM_RUN this thread owns the page, and the exit reason says that this member is valid.
        let internal = unsafe { (*page).__bindgen_anon_1.internal };
        let count = (internal.ndata as usize).min(internal.data.len());
        let data = internal.data[..count].to_vec();
        match internal.suberror {
            KVM_INTERNAL_ERROR_EMULATION => {
                // SAFETY: as above: the same bytes, seen as this kind of error; its fields are told valid by `ndata`
                // (the first word of data holds the flags, the two after it the size and the bytes).
                let emulation = unsafe { (*page).__bindgen_anon_1.emulation_failure };
                // SAFETY: plain integers.
                let instruction = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
                let told = count >= 3
                    && emulation.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
                let length = if told { usize::from(instruction.insn_size) } else { 0 };
                let bytes = &instruction.insn_bytes[..length.min(instruction.insn_bytes.len())];
                self.failed(|rip| Failure::Emulation { rip, bytes: bytes.to_vec() })
            }
            KVM_INTERNAL_ERROR_DELIVERY_EV => self.failed(|rip| Failure::Delivery { rip, data }),
            kind => self.failed(|rip| Failure::Internal { kind, rip, data }),
        }
    }

    /// What the failure of `KVM_RUN` itself means.
    fn run_error(&self, errno: i32) -> Stop {
        if !matches!(errno, libc::EFAULT | libc::EHWPOISON) {
            return self.failed(|rip| Failure::Run { rip, errno });
        }
        let page = self.page.get();
        // SAFETY: outside of KVM_RUN this thread owns the page; the member is valid if the reason says so.
        let address = unsafe {
            ((*page).exit_reason == KVM_EXIT_MEMORY_FAULT).then(|| (*page).__bindgen_anon_1.memory_fault.gpa)
        };
        self.failed(|rip| Failure::Memory { address, rip, errno })
    }

    /// Completes a failure with the address of the current instruction (0 if even that cannot be had).
    fn failed(&self, failure: impl FnOnce(u64) -> Failure) -> Stop {
        let rip = self.fd.get_regs().map_or(0, |registers| registers.rip);
        Stop::Failed(Box::new(failure(rip)))
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, exits: &dyn Exits) -> Stop {
        self.page.enter();
        let (mut asked, mut woken) = (false, false);
        // Only one that waits for INIT can be woken by it.
        let waits = |vcpu: &Self| vcpu.mp_state().is_ok_and(|state| state == MpState::Uninitialized);
        loop {
            // SAFETY: runs the guest; what it may reach is up to those who mapped its RAM. Nothing of this program refers
            // to the shared page meanwhile, `immediate_exit` aside, which is atomic.
            if unsafe { ioctl(&self.fd, KVM_RUN()) } == 0 {
                match self.handle_exit(exits) {
                    Next::Continue => {}
                    Next::Finish => {
                        asked = true;
                        self.page.immediate_exit().store(1, Ordering::SeqCst);
                    }
                    Next::Stop(stop) => return stop,
                }
                continue;
            }
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            // An application processor that has been woken by INIT or SIPI is to be entered again. The kernel says the same without looking for
            // a kick when it cannot start a thread of its own for the machine.
            let again = errno == libc::EAGAIN && (waits(self) || !std::mem::replace(&mut woken, true));
            if errno != libc::EINTR && !again {
                return self.run_error(errno);
            }
            // A signal without the flag is not a kick: its late half, or somebody else's.
            if self.page.immediate_exit().swap(0, Ordering::SeqCst) != 0 {
                return if asked { Stop::Asked } else { Stop::Interrupted };
            }
        }
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.page.clone()
    }

    fn x86_64(&self) -> &dyn X86Vcpu {
        self
    }
}
