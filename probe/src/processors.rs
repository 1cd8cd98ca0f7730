//! Waking the other processors (SDM vol. 3, 9.4): INIT and SIPI through the local APIC, a trampoline from real mode to long mode,
//! and a note that each leaves on arrival before it halts for good.
//!
//! One may be set to work: it writes and reads registers wherever the first processor aims it, without knowing what it does. The
//! probe's tests run on the first processor.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use crate::apic::LocalApic;
use crate::clock::{Clock, PATIENCE};
use crate::io::Region;

/// The page that the trampoline is copied to: conventional memory that nothing uses once the probe runs.
const TRAMPOLINE: u64 = 0x9000;

core::arch::global_asm!(
    r#"
    .section .text.processors, "ax"
    .code16
    .global processor_trampoline
processor_trampoline:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x9000 + (processor_gdt_pointer - processor_trampoline)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x38, $processor_protected
processor_gdt_pointer:
    .word 0x3f
    .long gdt
    .global processor_trampoline_end
processor_trampoline_end:

    .code32
processor_protected:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %ss
    movl %cr4, %eax
    orl $0x620, %eax            # as in `boot`
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffff3, %eax
    orl $0x80000023, %eax
    movl %eax, %cr0
    ljmp $0x08, $processor_long

    .code64
processor_long:
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    movq %rbx, processor_id
    lock incq processor_count
    cmpq $0, processor_work
    jne 2f
1:  cli
    hlt
    jmp 1b

    # In ring 3, for the speed of it: no stack, no interrupts, and nothing that faults.
    # rsi: where, rdi: bits of an offset, r8: a xorshift series.
2:  movq $processor_stack + 64, %rsp
    pushq $0x1b
    pushq $0
    pushq $2
    pushq $0x23
    pushq $processor_working
    iretq
processor_working:
    movabsq $0x9e3779b97f4a7c15, %r8
3:  movq processor_aim, %rsi
    movq processor_aim + 8, %rdi
    lock incq processor_turns
    testq %rsi, %rsi
    jnz 4f
    pause
    jmp 3b
4:  movq %r8, %rax
    shlq $13, %rax
    xorq %rax, %r8
    movq %r8, %rax
    shrq $7, %rax
    xorq %rax, %r8
    movq %r8, %rax
    shlq $17, %rax
    xorq %rax, %r8
    movq %r8, %rdx
    shrq $40, %rdx
    andl $0xff, %edx            # what is written: small, and often 0
    movq %r8, %rax
    andq %rdi, %rax
    btq $50, %r8
    jnc 5f
    xorl %edx, %edx
5:  btq $51, %r8
    jc 6f
    btq $52, %r8
    jc 7f
    movb %dl, (%rsi,%rax)
    jmp 3b
6:  andq $-4, %rax
    btq $52, %r8
    jc 8f
    movl %edx, (%rsi,%rax)
    jmp 3b
7:  andq $-2, %rax
    movw %dx, (%rsi,%rax)
    jmp 3b
8:  movl (%rsi,%rax), %edx
    jmp 3b

    .section .bss.processors, "aw", @nobits
    .balign 16
processor_stack:
    .skip 64
    "#,
    options(att_syntax)
);

#[unsafe(no_mangle)]
static processor_count: AtomicU64 = AtomicU64::new(0);
#[unsafe(no_mangle)]
static processor_id: AtomicU64 = AtomicU64::new(0);
#[unsafe(no_mangle)]
static processor_work: AtomicU64 = AtomicU64::new(0);
/// Where the one that works writes and reads, and which bits an offset from there may have; nowhere while the first is 0.
#[unsafe(no_mangle)]
static processor_aim: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// How often the one that works has looked where to.
#[unsafe(no_mangle)]
static processor_turns: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static processor_trampoline: u8;
    static processor_trampoline_end: u8;
}

/// Starts the processor with APIC id `id`; what CPUID told it of its (8-bit) id, or `None` if it did not come.
pub(crate) fn start(apic: &LocalApic, clock: &Clock, id: u32) -> Option<u64> {
    // SAFETY: conventional memory; the VMM's start-up structures that the probe still uses are below it and above it.
    let page = unsafe { Region::new(TRAMPOLINE, 4096) };
    let (from, to) = (&raw const processor_trampoline, &raw const processor_trampoline_end);
    // SAFETY: two labels of the block above, in this order.
    page.store(0, unsafe { core::slice::from_raw_parts(from, to as usize - from as usize) });
    let before = processor_count.load(Relaxed);
    let arrived = || processor_count.load(Relaxed) != before;
    apic.send_init(id);
    clock.sleep(10);
    for patience in [500, PATIENCE] {
        apic.send_startup(id, (TRAMPOLINE >> 12) as u8);
        if clock.wait(patience, arrived) {
            return Some(processor_id.load(Relaxed));
        }
    }
    None
}

/// Starts the processor with APIC id `id` as [`start`] does, to work where it is [aimed](aim) from then on.
pub(crate) fn set_to_work(apic: &LocalApic, clock: &Clock, id: u32) -> Option<u64> {
    // It stays so: the processor looks at it after it has been counted.
    processor_work.store(1, SeqCst);
    start(apic, clock, id)
}

/// Where the processor that was set to work does so: registers of a device (no RAM) from an address on, at offsets with these bits. With
/// nothing it is idle when this returns. Nothing happens where there is no such processor.
pub(crate) fn aim(at: Option<(u64, u64)>) {
    let before = processor_turns.load(SeqCst);
    if before == 0 {
        return;
    }
    let (base, bits) = at.unwrap_or((0, 0));
    processor_aim[0].store(0, SeqCst);
    processor_aim[1].store(bits, SeqCst);
    processor_aim[0].store(base, SeqCst);
    // Two turns later it has seen it, and what it did before is done.
    while at.is_none() && processor_turns.load(SeqCst) < before + 3 {
        core::hint::spin_loop();
    }
}

/// How often the processor that was set to work has looked where to; 0 where there is none.
pub(crate) fn turns() -> u64 {
    processor_turns.load(SeqCst)
}
