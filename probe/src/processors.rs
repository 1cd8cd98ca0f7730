//! Waking the other processors (SDM vol. 3, 9.4): INIT and SIPI through the local APIC, a trampoline from real mode to long mode,
//! and a note that each leaves on arrival before it halts for good.
//!
//! Never here: work for them. The probe's tests run on the first processor.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::apic::LocalApic;
use crate::clock::Clock;
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
1:  cli
    hlt
    jmp 1b
    "#,
    options(att_syntax)
);

#[unsafe(no_mangle)]
static processor_count: AtomicU64 = AtomicU64::new(0);
#[unsafe(no_mangle)]
static processor_id: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static processor_trampoline: u8;
    static processor_trampoline_end: u8;
}

/// Starts the processor with APIC id `id`; what CPUID told it of its (8-bit) id, or `None` if it did not come within a second.
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
    for _ in 0..2 {
        apic.send_startup(id, (TRAMPOLINE >> 12) as u8);
        if clock.wait(500, arrived) {
            return Some(processor_id.load(Relaxed));
        }
    }
    None
}
