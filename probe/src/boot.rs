//! From the PVH entry point (32-bit protected mode, paging off, EBX = start_info) to Rust in ring 3.
//!
//! Ring 0 is emulated instruction by instruction on some hosts, so what happens there is kept to a minimum: the
//! boot page tables are built by the assembler, and everything else is left to ring 3, which may write its own
//! page tables and IDT because the identity map is made of user pages.
//!
//! Never here: anything that can be done later.

core::arch::global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18              # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .boot, "ax"
    .code32
    .global pvh_entry
pvh_entry:
    cld
    movl %cr4, %eax
    orl $0x620, %eax            # PAE | OSFXSR | OSXMMEXCPT
    movl %eax, %cr4
    movl $pdpt + 7, pml4        # 7: present, writable, user
    movl $first_gib + 7, pdpt
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffff3, %eax      # not CD, NW, EM, TS
    orl $0x80000023, %eax       # PG | NE | MP | PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $long_mode

    .code64
long_mode:
    movl $0x10, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    # The I/O permission bitmap starts at 0x68: all clear, every port allowed, closed by bytes of ones.
    movl $interrupt_stack_top, tss + 4
    movw $0x68, tss + 102
    movw $0xffff, tss + 0x68 + 8192
    movl $tss, %eax             # the base is scattered over the descriptor
    movw %ax, gdt_tss + 2
    shrl $16, %eax
    movb %al, gdt_tss + 4
    movb %ah, gdt_tss + 7
    movl $0x28, %eax
    ltr %ax
    lidt idt_pointer
    movl $interrupt_stack_top, %esp
    movl %ebx, %edi             # first argument of the Rust entry: start_info
    pushq $0x1b                 # ss: user data
    pushq $stack_top - 8        # as after a call
    pushq $0x3002               # rflags: IOPL 3, interrupts off
    pushq $0x23                 # cs: user code
    pushq $probe_main
    iretq

    .section .data.boot, "aw"
    .balign 8
    .global gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 08 ring 0 code, 64-bit
    .quad 0x00cf93000000ffff    # 10 ring 0 data
    .quad 0x00cff3000000ffff    # 18 ring 3 data
    .quad 0x00affb000000ffff    # 20 ring 3 code, 64-bit
gdt_tss:
    .quad 0x0000890000002069    # 28 available 64-bit TSS, limit 0x68 + 8193
    .quad 0
    .quad 0x00cf9b000000ffff    # 38 ring 0 code, 32-bit, for other processors' way up
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt
idt_pointer:
    .word 256 * 16 - 1
    .quad idt

    .balign 4096
first_gib:
    .set page, 0
    .rept 512
    .quad page + 0x87           # 2 MiB page, present, writable, user
    .set page, page + 0x200000
    .endr

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .global idt
idt:
    .skip 256 * 16
    .global pml4
pml4:
    .skip 4096
    .global pdpt
pdpt:
    .skip 4096
tss:
    .skip 0x68 + 8194
    .balign 4096
    .skip 4096
interrupt_stack_top:
    .skip 256 * 1024
    .balign 16
    .global stack_top
stack_top:
    "#,
    options(att_syntax)
);
