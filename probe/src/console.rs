//! Lines out over COM1, the one channel to whoever runs the probe, and letters in. Polled, byte by byte, and never more than is asked for:
//! each byte is an exit.

use core::fmt;

use crate::io;

/// COM1's base port.
pub(crate) const COM1: u16 = 0x3f8;

/// What somebody typed, if anything.
pub(crate) fn typed() -> Option<u8> {
    (io::in8(COM1 + 5) & 1 != 0).then(|| io::in8(COM1))
}

/// Where `print!` and `println!` go.
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            io::out8(COM1, byte);
        }
        Ok(())
    }
}

/// As `std`'s, to COM1.
macro_rules! println {
    ($($arg:tt)*) => {{
        let _ = core::fmt::Write::write_fmt(&mut $crate::console::Console, format_args!("{}\n", format_args!($($arg)*)));
    }};
}
