//! Interrupts, faults, and the few ring 0 services that ring 3 needs (MSRs, CPUID, HLT, the interrupt flag).
//!
//! The ring 0 side is some ten instructions an event: it counts the vector and tells the LAPIC. A fault is sent back
//! to ring 3, either to whoever said it may fault (`catch`) or to `unexpected_fault`, which reports and ends the run.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

core::arch::global_asm!(
    r#"
    .section .text.trap, "ax"
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    pushq $0                    # where the CPU gives no error code
    .endif
    pushq $vector
    jmp trap
    .set vector, vector + 1
    .endr

    # Stack: vector, error code, rip, cs, rflags, rsp, ss.
trap:
    pushq %rax
    movq 8(%rsp), %rax
    cmpl $32, %eax
    jb exception
    incq trap_hits(,%rax,8)
    cmpb $0, trap_x2apic
    jne 1f
    movl $0xfee000b0, %eax      # EOI through the xAPIC page
    movl $0, (%rax)
    popq %rax
    addq $16, %rsp
    iretq
1:  pushq %rcx                  # EOI through the x2APIC register
    pushq %rdx
    movl $0x80b, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

exception:
    cmpl $13, %eax
    jne fault
    pushq %rcx                  # HLT in ring 3 is how a service is asked for
    movq 32(%rsp), %rcx
    cmpb $0xf4, (%rcx)
    popq %rcx
    jne fault
    incq 24(%rsp)
    jmp service
fault:
    movq %rax, fault_record
    movq 16(%rsp), %rax
    movq %rax, fault_record + 8
    movq 24(%rsp), %rax
    movq %rax, fault_record + 16
    movq %cr2, %rax
    movq %rax, fault_record + 24
    movq fault_resume, %rax
    testq %rax, %rax
    jnz 1f
    movq $stack_top - 8, 48(%rsp)
    movq $unexpected_fault, %rax
1:  movq %rax, 24(%rsp)
    movq $0x23, 32(%rsp)
    movq $0x1b, 56(%rsp)
    popq %rax
    addq $16, %rsp
    iretq

    # r8d selects.
service:
    popq %rax
    addq $16, %rsp
    cmpl $1, %r8d
    jb 1f
    je 2f
    cmpl $3, %r8d
    jb 3f
    je 4f
    cmpl $5, %r8d
    jb 5f
    je 6f
    lidt no_idt                 # anything above: a triple fault, on purpose
    ud2
1:  rdmsr
    iretq
2:  wrmsr
    iretq
3:  cpuid
    iretq
4:  sti
    hlt
    iretq
5:  orl $0x200, 16(%rsp)        # the interrupt flag, in the flags to return to
    iretq
6:  andl $0xfffffdff, 16(%rsp)
    iretq

    # (value, faulted) catch_fault(function, argument)
    .global catch_fault
catch_fault:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    movq %rsp, fault_stack
    movq $1f, fault_resume
    movq %rdi, %rax
    movq %rsi, %rdi
    callq *%rax
    xorl %edx, %edx
    jmp 2f
1:  movq fault_stack, %rsp
    cld
    xorl %eax, %eax
    movl $1, %edx
2:  movq $0, fault_resume
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .section .data.trap, "aw"
    .balign 8
no_idt:
    .word 0
    .quad 0
    .section .bss.trap, "aw", @nobits
    .balign 8
fault_stack:
    .skip 8
fault_resume:
    .skip 8
    "#,
    options(att_syntax)
);

/// What the CPU said of the last fault.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct FaultRecord {
    vector: AtomicU64,
    error: AtomicU64,
    rip: AtomicU64,
    cr2: AtomicU64,
}

/// A fault that was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Exception vector (SDM vol. 3, table 7-1).
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    /// Address of the last page fault.
    pub(crate) cr2: u64,
}

#[unsafe(no_mangle)]
static fault_record: FaultRecord = FaultRecord {
    vector: AtomicU64::new(0),
    error: AtomicU64::new(0),
    rip: AtomicU64::new(0),
    cr2: AtomicU64::new(0),
};
#[unsafe(no_mangle)]
static trap_hits: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
#[unsafe(no_mangle)]
static trap_x2apic: AtomicU8 = AtomicU8::new(0);

#[repr(C)]
struct Caught {
    value: u64,
    faulted: u64,
}

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    static trap_stubs: [[u8; 16]; 256];
    fn catch_fault(function: extern "C" fn(u64) -> u64, argument: u64) -> Caught;
}

/// Fills the IDT. Until then any fault is a triple fault.
pub(crate) fn init() {
    for vector in 0..256usize {
        // SAFETY: the stubs are 16 bytes each (asserted by the assembler's `.balign`), and the table has 256 gates.
        // Interrupts are off, so nobody reads the gate that is being written.
        unsafe {
            let stub = (&raw const trap_stubs[vector]) as u64;
            // 64-bit interrupt gate, ring 0 code (SDM vol. 3, 7.14.1).
            let low = stub & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (stub >> 16 & 0xffff) << 48;
            (&raw mut idt[vector]).write_volatile([low, stub >> 32]);
        }
    }
}

/// Tells the handlers how this CPU's APIC takes its EOI.
pub(crate) fn set_x2apic(on: bool) {
    trap_x2apic.store(u8::from(on), Relaxed);
}

/// How often `vector` came since the machine started.
pub(crate) fn hits(vector: u8) -> u64 {
    trap_hits[usize::from(vector)].load(Relaxed)
}

/// Calls `function`, and says so if it faulted. What it had on its stack is lost then, so it must own nothing.
pub(crate) fn catch(function: extern "C" fn(u64) -> u64, argument: u64) -> Result<u64, Fault> {
    // SAFETY: restores every register that the ABI asks for, on both ways out.
    let caught = unsafe { catch_fault(function, argument) };
    if caught.faulted == 0 { Ok(caught.value) } else { Err(last_fault()) }
}

/// The last fault.
pub(crate) fn last_fault() -> Fault {
    Fault {
        vector: fault_record.vector.load(Relaxed),
        error: fault_record.error.load(Relaxed),
        rip: fault_record.rip.load(Relaxed),
        cr2: fault_record.cr2.load(Relaxed),
    }
}

const SERVICE_RDMSR: u32 = 0;
const SERVICE_WRMSR: u32 = 1;
const SERVICE_CPUID: u32 = 2;
const SERVICE_HALT: u32 = 3;
const SERVICE_STI: u32 = 4;
const SERVICE_CLI: u32 = 5;
const SERVICE_TRIPLE_FAULT: u32 = 6;

/// Asks ring 0 for `service` with the given eax, ecx, edx; returns eax, ebx, ecx, edx.
///
/// By the general protection fault of a privileged instruction: that works everywhere, while `int n` from ring 3 is an invalid
/// opcode on hosts that emulate ring 0.
fn service(service: u32, eax: u32, ecx: u32, edx: u32) -> [u32; 4] {
    let (mut a, mut c, mut d) = (eax, ecx, edx);
    let b: u64;
    // SAFETY: the handler preserves everything but the registers named here. rbx belongs to LLVM, hence the exchange.
    unsafe {
        core::arch::asm!(
            "mov {b}, rbx", "hlt", "xchg {b}, rbx",
            b = out(reg) b, in("r8d") service, inout("eax") a, inout("ecx") c, inout("edx") d,
        );
    }
    [a, b as u32, c, d]
}

/// Reads an MSR; ring 0 faults (and the run ends) if there is none.
pub(crate) fn rdmsr(msr: u32) -> u64 {
    let [low, _, _, high] = service(SERVICE_RDMSR, 0, msr, 0);
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
pub(crate) fn wrmsr(msr: u32, value: u64) {
    service(SERVICE_WRMSR, value as u32, msr, (value >> 32) as u32);
}

/// CPUID as the VMM set it. In ring 3 some hosts would answer with their own.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    service(SERVICE_CPUID, leaf, subleaf, 0)
}

/// Halts with interrupts on until one comes, and returns with interrupts as they were.
pub(crate) fn halt() {
    service(SERVICE_HALT, 0, 0, 0);
}

/// Ends the machine the hard way.
pub(crate) fn triple_fault() -> ! {
    service(SERVICE_TRIPLE_FAULT, 0, 0, 0);
    loop {
        core::hint::spin_loop();
    }
}

/// Lets interrupts in. A service, since STI faults in ring 3 on hosts that emulate ring 0, IOPL or not.
pub(crate) fn interrupts_on() {
    service(SERVICE_STI, 0, 0, 0);
}

/// Keeps interrupts out.
pub(crate) fn interrupts_off() {
    service(SERVICE_CLI, 0, 0, 0);
}
