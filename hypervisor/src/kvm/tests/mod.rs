//! Tests against this machine's `/dev/kvm`, with guests of a few bytes in real mode.
//!
//! They do without what some hosts refuse (see `crate::check`): no stock kernel could run on such a host, these guests can.

mod interrupts;
mod kicks;
mod memory;
mod state;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::Kvm;
use crate::check::{Machine, Outcome, Snippet};
use crate::x86_64::StandardRegisters;
use crate::{Error, Exits, Failure, Hypervisor, RamFlags, RamSlot, Stop, Vcpu, Vm, VmOptions};

/// Guests write here when they are done.
const DONE_PORT: u16 = 0xf4;
/// `mov dx, 0xf4; out dx, al; hlt`
const DONE: &[u8] = &[0xba, 0xf4, 0x00, 0xee, 0xf4];
/// Where the code is.
const CODE: u64 = 0x1000;
/// Bytes of RAM, from address 0.
const RAM: usize = 0x8000;

/// Anonymous memory that is unmapped when dropped.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Self {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RAM,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED);
        Memory(address.cast())
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let address = usize::try_from(address).unwrap();
        assert!(address + bytes.len() <= RAM);
        // SAFETY: in bounds, and no reference to this memory exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(address), bytes.len()) };
    }

    fn read<const N: usize>(&self, address: usize) -> [u8; N] {
        assert!(address + N <= RAM);
        // SAFETY: in bounds; the guest may write at the same time, hence volatile.
        unsafe { self.0.add(address).cast::<[u8; N]>().read_volatile() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping.
        unsafe { libc::munmap(self.0.cast(), RAM) };
    }
}

/// A VM with RAM at 0 and one vCPU in real mode at [`CODE`]. Fields drop in order: the memory last.
struct Guest {
    vcpu: Box<dyn Vcpu>,
    vm: Arc<dyn Vm>,
    memory: Memory,
}

impl Guest {
    fn new(code: &[&[u8]]) -> Self {
        let vm = Kvm::open().unwrap().create_vm(&VmOptions::default()).unwrap();
        let memory = Memory::new();
        memory.write(CODE, &code.concat());
        let slot = RamSlot {
            slot: 0,
            guest_address: 0,
            host_address: memory.0,
            size: RAM as u64,
            flags: RamFlags::default(),
        };
        // SAFETY: `Guest` drops the memory after the VM and the vCPU, and reads it by volatile accesses.
        unsafe { vm.map_ram(&slot) }.unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        real_mode(&*vcpu);
        Guest { vcpu, vm, memory }
    }

    fn run(&mut self, exits: &Recorder) -> Stop {
        self.vcpu.run(exits)
    }
}

/// Puts a vCPU at [`CODE`] with flat real-mode segments and a stack.
fn real_mode(vcpu: &dyn Vcpu) {
    let mut special = vcpu.x86_64().special_registers().unwrap();
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.x86_64().set_special_registers(&special).unwrap();
    let registers = StandardRegisters { rip: CODE, rsp: 0x7000, rflags: 2, ..Default::default() };
    vcpu.x86_64().set_registers(&registers).unwrap();
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Access {
    PioRead(u16, usize),
    PioWrite(u16, Vec<u8>),
    MmioRead(u64, usize),
    MmioWrite(u64, Vec<u8>),
}

/// Notes every access; reads give 1, 2, 3, … in each byte's turn.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<Access>>,
    next: Mutex<u8>,
}

impl Recorder {
    fn note(&self, access: Access) {
        self.seen.lock().unwrap().push(access);
    }

    fn fill(&self, data: &mut [u8]) {
        let mut next = self.next.lock().unwrap();
        for byte in data {
            *next = next.wrapping_add(1);
            *byte = *next;
        }
    }

    fn take(&self) -> Vec<Access> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Exits for Recorder {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.note(Access::PioRead(port, data.len()));
        self.fill(data);
    }
    fn pio_write(&self, port: u16, data: &[u8]) -> ControlFlow<()> {
        if port == DONE_PORT {
            return ControlFlow::Break(());
        }
        self.note(Access::PioWrite(port, data.to_vec()));
        ControlFlow::Continue(())
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.note(Access::MmioRead(address, data.len()));
        self.fill(data);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) -> ControlFlow<()> {
        self.note(Access::MmioWrite(address, data.to_vec()));
        ControlFlow::Continue(())
    }
    fn ioapic_eoi(&self, vector: u8) {
        panic!("EOI of vector {vector:#x} without a level-triggered interrupt");
    }
}

#[test]
fn ports_are_read_and_written_in_every_width() {
    let mut guest = Guest::new(&[
        &[0xba, 0xf8, 0x03], // mov dx, 0x3f8
        &[0xec],             // in al, dx
        &[0xee],             // out dx, al
        &[0xed],             // in ax, dx
        &[0xef],             // out dx, ax
        &[0x66, 0xed],       // in eax, dx
        &[0x66, 0xef],       // out dx, eax
        DONE,
    ]);
    let exits = Recorder::default();
    assert_eq!(guest.run(&exits), Stop::Asked);
    use Access::{PioRead, PioWrite};
    assert_eq!(
        exits.take(),
        [
            PioRead(0x3f8, 1),
            PioWrite(0x3f8, vec![1]),
            PioRead(0x3f8, 2),
            PioWrite(0x3f8, vec![2, 3]),
            PioRead(0x3f8, 4),
            PioWrite(0x3f8, vec![4, 5, 6, 7]),
        ]
    );
}

#[test]
fn a_stop_that_was_asked_for_comes_after_the_instruction() {
    let mut guest = Guest::new(&[DONE, DONE]);
    let exits = Recorder::default();
    let after_out = CODE + 4;
    assert_eq!(guest.run(&exits), Stop::Asked);
    assert_eq!(guest.vcpu.x86_64().registers().unwrap().rip, after_out);
}

#[test]
fn string_output_comes_element_by_element() {
    let mut guest = Guest::new(&[
        &[0xfc],             // cld
        &[0xbe, 0x00, 0x20], // mov si, 0x2000
        &[0xb9, 0x05, 0x00], // mov cx, 5
        &[0xba, 0xf8, 0x03], // mov dx, 0x3f8
        &[0xf3, 0x6e],       // rep outsb
        &[0xb9, 0x02, 0x00], // mov cx, 2
        &[0xf3, 0x6f],       // rep outsw
        DONE,
    ]);
    guest.memory.write(0x2000, b"hello, a");
    guest.memory.write(0x2008, b"b");
    let exits = Recorder::default();
    assert_eq!(guest.run(&exits), Stop::Asked);
    let words = |text: &[&[u8]]| -> Vec<_> {
        text.iter().map(|element| Access::PioWrite(0x3f8, element.to_vec())).collect()
    };
    assert_eq!(exits.take(), words(&[b"h", b"e", b"l", b"l", b"o", b", ", b"ab"]));
}

#[test]
fn string_input_fills_memory() {
    let mut guest = Guest::new(&[
        &[0xfc],             // cld
        &[0xbf, 0x00, 0x20], // mov di, 0x2000
        &[0xb9, 0x03, 0x00], // mov cx, 3
        &[0xba, 0xf8, 0x03], // mov dx, 0x3f8
        &[0xf3, 0x6d],       // rep insw
        DONE,
    ]);
    let exits = Recorder::default();
    assert_eq!(guest.run(&exits), Stop::Asked);
    assert!(exits.take().iter().all(|access| *access == Access::PioRead(0x3f8, 2)));
    assert_eq!(guest.memory.read::<7>(0x2000), [1, 2, 3, 4, 5, 6, 0]);
}

#[test]
fn memory_that_is_not_ram_is_read_and_written_in_every_width() {
    let mut guest = Guest::new(&[
        &[0xa0, 0x00, 0x90],             // mov al, [0x9000]
        &[0xa2, 0x01, 0x90],             // mov [0x9001], al
        &[0xa1, 0x02, 0x90],             // mov ax, [0x9002]
        &[0xa3, 0x04, 0x90],             // mov [0x9004], ax
        &[0x66, 0xa1, 0x08, 0x90],       // mov eax, [0x9008]
        &[0x66, 0xa3, 0x0c, 0x90],       // mov [0x900c], eax
        &[0x0f, 0x6f, 0x06, 0x10, 0x90], // movq mm0, [0x9010]
        &[0x0f, 0x7f, 0x06, 0x18, 0x90], // movq [0x9018], mm0
        DONE,
    ]);
    let exits = Recorder::default();
    assert_eq!(guest.run(&exits), Stop::Asked);
    use Access::{MmioRead, MmioWrite};
    assert_eq!(
        exits.take(),
        [
            MmioRead(0x9000, 1),
            MmioWrite(0x9001, vec![1]),
            MmioRead(0x9002, 2),
            MmioWrite(0x9004, vec![2, 3]),
            MmioRead(0x9008, 4),
            MmioWrite(0x900c, vec![4, 5, 6, 7]),
            MmioRead(0x9010, 8),
            MmioWrite(0x9018, vec![8, 9, 10, 11, 12, 13, 14, 15]),
        ]
    );
}

#[test]
fn a_triple_fault_stops_the_vcpu() {
    // ud2 in long mode, with no interrupt table.
    let mut machine = Machine::new(&Kvm::open().unwrap()).unwrap();
    machine.load(&Snippet { code: &[0x0f, 0x0b], ..Default::default() }).unwrap();
    let mut special = machine.vcpu.x86_64().special_registers().unwrap();
    special.idt.limit = 0;
    machine.vcpu.x86_64().set_special_registers(&special).unwrap();
    let outcome = machine.run(std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(outcome, Outcome::Stopped(Stop::TripleFault));
}

#[test]
fn an_instruction_fetch_from_nowhere_is_a_failure_that_says_where() {
    // jmp far 0:0x9000, where there is no RAM.
    let mut guest = Guest::new(&[&[0xea, 0x00, 0x90, 0x00, 0x00]]);
    match guest.run(&Recorder::default()) {
        Stop::Failed(failure) => {
            assert!(matches!(*failure, Failure::Emulation { rip: 0x9000, .. }), "{failure:?}");
            assert!(failure.to_string().contains("at RIP 0x9000"), "{failure}");
        }
        stop => panic!("{stop:?}"),
    }
}

#[test]
fn what_is_not_kvm_is_told_apart() {
    let open = |path| Kvm::open_at(Path::new(path)).err().expect("it opened");
    let missing = open("/dev/no-such-device");
    assert!(matches!(missing, Error::Missing { .. }));
    assert!(missing.to_string().starts_with("/dev/no-such-device does not exist: load KVM (modprobe kvm_"));
    let other = open("/dev/null");
    assert!(matches!(other, Error::ApiVersion { expected: 12, .. }), "{other:?}");
    let directory = open("/");
    assert!(matches!(directory, Error::Open { .. }), "{directory:?}");
}

#[test]
fn the_host_tells_what_it_can_do() {
    let kvm = Kvm::open().unwrap();
    let capabilities = kvm.capabilities();
    assert!(capabilities.max_vcpus >= 1 && capabilities.max_vcpu_id >= capabilities.max_vcpus);
    assert!(capabilities.ram_slots >= 32 && capabilities.interrupt_routes > 24);
    let cpuid = kvm.supported_cpuid().unwrap();
    assert!(cpuid.iter().any(|leaf| leaf.function == 1));
    assert!(Arc::ptr_eq(&cpuid, &kvm.supported_cpuid().unwrap()), "asked twice");
    assert!((32..=52).contains(&kvm.physical_address_bits().unwrap()));
    // IA32_TSC and IA32_SYSENTER_CS are state everywhere.
    let msrs = kvm.msr_indices().unwrap();
    assert!(msrs.contains(&0x10) && msrs.contains(&0x174));
}
