//! A throwaway machine in long mode: flat, identity-mapped, with descriptor tables in RAM. Snippets of kernel-mode code run
//! in it, one after the other.
//!
//! Everything is set from outside, so that only the snippet's own instructions run inside.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::contract::{Exits, Hypervisor, RamFlags, RamSlot, Stop, Vcpu, Vm, VmOptions};
use crate::error::{Error, Result, refused};
use crate::x86_64::{DescriptorTable, MpState, Segment, SpecialRegisters, StandardRegisters, VcpuEvents};

/// Bytes of RAM, from address 0. The first 2 MiB are mapped, and so is the page of the local APIC.
const RAM_SIZE: usize = 0x2_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PD_APIC: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x5800;
const IDT: u64 = 0x6000;
const STUBS: u64 = 0x7000;
/// Where snippets start.
pub(crate) const CODE: u64 = 0x8000;
/// Where the snippet's handler of the vector [`VECTOR`], of INT3 and of SYSCALL starts.
pub(crate) const HANDLER: u64 = 0x9000;
/// Where the snippet's ring-3 code starts.
pub(crate) const USER_CODE: u64 = 0xa000;
/// 64-byte aligned data for the snippet; RDI points to it at the start.
pub(crate) const DATA: u64 = 0x1_0000;
/// A second set of top-level page tables, equal to the first.
pub(crate) const OTHER_PML4: u64 = 0xb000;
const STACK_TOP: u64 = 0xf000;
/// Where the snippet's ring-3 stack ends.
pub(crate) const USER_STACK_TOP: u64 = 0xe000;

/// Interrupts of this vector go to [`HANDLER`].
pub(crate) const VECTOR: u8 = 0x40;
/// Kernel code: 64-bit, ring 0.
pub(crate) const KERNEL_CODE: u16 = 0x08;
/// An available TSS, for LTR.
pub(crate) const TASK: u16 = 0x28;

/// `out 0xf4, al`: the snippet is done.
pub(crate) const DONE: &[u8] = &[0xe6, DONE_PORT as u8];
const DONE_PORT: u16 = 0xf4;
const EXCEPTION_PORT: u16 = 0xf5;

const CR0: u64 = 0x8005_0033; // paging, alignment mask, write protect, numeric error, protection
const CR4: u64 = 0x668; // PAE, machine check, SSE and its exceptions, debugging extensions
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER: u64 = 0x501; // long mode enabled and active, SYSCALL

/// How a snippet ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It got to its end.
    Done,
    /// It raised an exception that it had no handler for.
    Exception(u8),
    /// It did not end in time.
    Endless,
    /// The vCPU stopped for another reason.
    Stopped(Stop),
}

/// Anonymous memory, unmapped when dropped.
struct Memory(*mut u8);

// SAFETY: the memory is only reached through methods that take care of bounds, and belongs to nobody else.
unsafe impl Send for Memory {}

impl Memory {
    fn new() -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RAM_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(refused("allocate memory for a guest")(std::io::Error::last_os_error()));
        }
        Ok(Memory(address.cast()))
    }

    /// Both the address and the length are this module's own constants.
    fn write(&self, address: u64, bytes: &[u8]) {
        let address = usize::try_from(address).unwrap_or(usize::MAX);
        assert!(
            address.checked_add(bytes.len()).is_some_and(|end| end <= RAM_SIZE),
            "outside of the machine"
        );
        // SAFETY: in bounds as just checked, and there are no references into this memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(address), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, and the machine drops its VM first.
        unsafe { libc::munmap(self.0.cast(), RAM_SIZE) };
    }
}

/// The machine. Fields drop in order: the memory last.
pub(crate) struct Machine {
    pub(crate) vcpu: Box<dyn Vcpu>,
    pub(crate) vm: Arc<dyn Vm>,
    memory: Memory,
    with_xsave: bool,
}

/// What a snippet is made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Snippet<'a> {
    /// Runs first, in ring 0.
    pub(crate) code: &'a [u8],
    /// At [`HANDLER`].
    pub(crate) handler: &'a [u8],
    /// At [`USER_CODE`].
    pub(crate) user: &'a [u8],
}

impl Machine {
    /// Makes the machine; its processor has all that the host offers.
    pub(crate) fn new(hypervisor: &dyn Hypervisor) -> Result<Self> {
        let memory = Memory::new()?;
        let vm = hypervisor.create_vm(&VmOptions::default())?;
        let slot = RamSlot {
            slot: 0,
            guest_address: 0,
            host_address: memory.0,
            size: RAM_SIZE as u64,
            flags: RamFlags::default(),
        };
        // SAFETY: the memory outlives the VM and the vCPU (see `Machine`), and is not referred to.
        unsafe { vm.map_ram(&slot)? };
        let vcpu = vm.create_vcpu(0)?;
        let cpuid = hypervisor.supported_cpuid()?;
        vcpu.x86_64().set_cpuid(&cpuid)?;
        let with_xsave = cpuid.iter().any(|leaf| leaf.function == 1 && leaf.ecx & (1 << 26) != 0);
        Ok(Machine { vcpu, vm, memory, with_xsave })
    }

    /// The byte at an address of RAM.
    #[cfg(test)]
    pub(crate) fn byte(&self, address: u64) -> u8 {
        assert!(address < RAM_SIZE as u64);
        // SAFETY: in bounds; volatile because the guest may have written it.
        unsafe { self.memory.0.add(usize::try_from(address).expect("small")).read_volatile() }
    }

    /// Loads a snippet and puts the vCPU at its start, whatever it did before.
    pub(crate) fn load(&self, snippet: &Snippet<'_>) -> Result<()> {
        self.memory.write(0, &[0; RAM_SIZE]);
        self.write_tables();
        self.memory.write(CODE, snippet.code);
        self.memory.write(HANDLER, snippet.handler);
        self.memory.write(USER_CODE, snippet.user);
        let cpu = self.vcpu.x86_64();
        cpu.set_events(&VcpuEvents::default())?;
        cpu.set_mp_state(MpState::Runnable)?;
        let old = cpu.special_registers()?;
        cpu.set_special_registers(&self.special_registers(old.apic_base))?;
        let registers =
            StandardRegisters { rip: CODE, rsp: STACK_TOP, rdi: DATA, rflags: 2, ..Default::default() };
        cpu.set_registers(&registers)?;
        let mut lapic = cpu.lapic()?;
        lapic.set(0xf0, 0x1ff); // software-enabled
        cpu.set_lapic(&lapic)
    }

    /// Runs what was loaded, until it ends or the time is over.
    pub(crate) fn run(&mut self, limit: Duration) -> Result<Outcome> {
        let kick = self.vcpu.kick_handle();
        let exits = Verdict { exception: AtomicU32::new(NO_EXCEPTION) };
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::Builder::new()
            .name("check-timeout".into())
            .spawn(move || {
                if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = wait.recv_timeout(limit) {
                    kick.kick();
                }
            })
            .map_err(refused("start a thread"))?;
        let stop = self.vcpu.run(&exits);
        drop(done);
        if watch.join().is_err() {
            return Err(Error::Unsupported("threads"));
        }
        Ok(match (stop, exits.exception.into_inner()) {
            (Stop::Asked, NO_EXCEPTION) => Outcome::Done,
            (Stop::Asked, vector) => Outcome::Exception(vector as u8),
            (Stop::Interrupted, _) => Outcome::Endless,
            (stop, _) => Outcome::Stopped(stop),
        })
    }

    fn write_tables(&self) {
        const TABLE: u64 = 0x7; // present, writable, user
        const PAGE_2M: u64 = 0x87;
        let entry =
            |table: u64, index: u64, value: u64| self.memory.write(table + index * 8, &value.to_le_bytes());
        for pml4 in [PML4, OTHER_PML4] {
            entry(pml4, 0, PDPT | TABLE);
        }
        entry(PDPT, 0, PD_LOW | TABLE);
        entry(PDPT, 3, PD_APIC | TABLE);
        entry(PD_LOW, 0, PAGE_2M);
        entry(PD_APIC, 503, 0xfee0_0000 | 0x18 | 0x83); // not cached

        let tss_descriptor = 0x0000_8900_0000_0067 | (TSS & 0xff_ffff) << 16;
        // Null, kernel code and data; for SYSRET user data then user code; TSS of two words.
        let gdt: [u64; 7] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            tss_descriptor,
            0,
        ];
        self.memory.write(GDT, &gdt.map(u64::to_le_bytes).concat());
        self.memory.write(TSS + 4, &STACK_TOP.to_le_bytes()); // RSP0

        for vector in 0..=255u8 {
            let target = match vector {
                3 | VECTOR => HANDLER,
                _ => STUBS + 8 * u64::from(vector),
            };
            // An interrupt gate of ring 0 (SDM volume 3, figure 7-8); targets are below 64 KiB. INT3 may come from ring 3.
            let gate = target | u64::from(KERNEL_CODE) << 16 | 0xee00 << 32;
            entry(IDT, u64::from(vector) * 2, gate);
            // mov al, vector; out 0xf5, al; hlt
            self.memory
                .write(STUBS + 8 * u64::from(vector), &[0xb0, vector, 0xe6, EXCEPTION_PORT as u8, 0xf4]);
        }
    }

    fn special_registers(&self, apic_base: u64) -> SpecialRegisters {
        let data = Segment {
            base: 0,
            limit: u32::MAX,
            selector: 0x10,
            type_: 0x3,
            present: true,
            db: true,
            s: true,
            g: true,
            ..Default::default()
        };
        SpecialRegisters {
            cs: Segment { selector: KERNEL_CODE, type_: 0xb, db: false, l: true, ..data },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment {
                base: TSS,
                limit: 0x67,
                selector: TASK,
                type_: 0xb,
                present: true,
                ..Default::default()
            },
            ldt: Segment { type_: 0x2, unusable: true, ..Default::default() },
            gdt: DescriptorTable { base: GDT, limit: 7 * 8 - 1 },
            idt: DescriptorTable { base: IDT, limit: 0xfff },
            cr0: CR0,
            cr3: PML4,
            cr4: CR4 | if self.with_xsave { CR4_OSXSAVE } else { 0 },
            efer: EFER,
            apic_base,
            ..Default::default()
        }
    }
}

const NO_EXCEPTION: u32 = u32::MAX;

/// Sees the end of a snippet, or the exception that ended it.
struct Verdict {
    exception: AtomicU32,
}

impl Exits for Verdict {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_write(&self, port: u16, data: &[u8]) -> ControlFlow<()> {
        match port {
            DONE_PORT => ControlFlow::Break(()),
            EXCEPTION_PORT => {
                self.exception.store(data.first().copied().unwrap_or(0).into(), Ordering::Relaxed);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _: u64, _: &[u8]) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn ioapic_eoi(&self, _: u8) {}
}
