//! Ways to end the machine.

use crate::acpi::{Acpi, Register};
use crate::io::{self, Region};
use crate::trap;

/// Writes a byte to an ACPI register.
fn write(register: Register, value: u8) {
    match register.space {
        // SAFETY: a device register that the FADT names, no RAM.
        0 => unsafe { Region::new(register.address, 1) }.write8(0, value),
        _ => io::out8(register.address as u16, value),
    }
}

/// Powers off through the sleep control register, with the S5 type that the DSDT gives. Where there are no tables, the port that
/// this VMM and its launcher use. Returns only if nothing happened.
pub(crate) fn off(acpi: Option<&Acpi>) {
    let register =
        acpi.and_then(Acpi::sleep_control).unwrap_or(Register { space: 1, bits: 8, address: 0x600 });
    let kind = acpi.and_then(Acpi::s5_type).unwrap_or(5);
    write(register, (kind & 7) << 2 | 1 << 5);
}

/// Resets through the FADT's reset register.
pub(crate) fn reset(acpi: Option<&Acpi>) {
    let (register, value) =
        acpi.and_then(Acpi::reset).unwrap_or((Register { space: 1, bits: 8, address: 0x600 }, 1));
    write(register, value);
}

/// Resets through the keyboard controller.
pub(crate) fn reset_by_i8042() {
    io::out8(0x64, 0xfe);
}

/// Does what `probe.end` asks: `off` (also without one), `reset`, `i8042`, `cmos`, `triple`, `halt`, `spin`.
pub(crate) fn end(how: &str, acpi: Option<&Acpi>) -> ! {
    match how {
        "reset" => reset(acpi),
        "i8042" => reset_by_i8042(),
        "cmos" => {
            io::out8(0x70, 0x8f);
            io::out8(0x71, 0);
        }
        "triple" => trap::triple_fault(),
        "halt" | "spin" => {}
        _ => off(acpi),
    }
    loop {
        if how == "spin" {
            core::hint::spin_loop();
        } else {
            trap::interrupts_off();
            trap::halt();
        }
    }
}
