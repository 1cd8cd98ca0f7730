//! The smallest guest: one byte to COM1, then halt. Start-up is measured with it, so it does nothing else, not
//! even leave 32-bit protected mode.
#![no_std]
#![no_main]

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
    movw $0x3f8, %dx
    movb $'!', %al
    outb %al, %dx
1:  hlt
    jmp 1b
    .code64
    "#,
    options(att_syntax)
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
