//! Ports and windows on physical memory.
//!
//! Every access is one plain `mov` written here, so that a VMM's instruction decoder sees the width asked for, and
//! misaligned accesses are made as asked. A [`Region`] is bounds-checked: a test's slip is a panic with a message, not a
//! write through the probe's own code.

use core::arch::asm;

use crate::paging;

/// Access widths in bytes that a CPU can put on a bus with one `mov`.
pub(crate) const WIDTHS: [u64; 4] = [1, 2, 4, 8];

macro_rules! port {
    ($read:ident, $write:ident, $t:ty, $register:tt) => {
        pub(crate) fn $read(port: u16) -> $t {
            let value: $t;
            // SAFETY: a port read has no memory operand; the probe owns the machine and all its ports.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nomem, nostack))
            };
            value
        }

        pub(crate) fn $write(port: u16, value: $t) {
            // SAFETY: as above. Devices that this may set off reach memory only through queues, which are fenced.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack)) };
        }
    };
}

port!(in8, out8, u8, "al");
port!(in16, out16, u16, "ax");
port!(in32, out32, u32, "eax");

/// Sends `bytes` to `port` with one `rep outsb`, which a VMM may see as one exit with many values.
pub(crate) fn out_string(port: u16, bytes: &[u8]) {
    // SAFETY: reads exactly the slice; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _, options(readonly, nostack))
    };
}

/// Reads `bytes.len()` values from `port` with one `rep insb`.
pub(crate) fn in_string(port: u16, bytes: &mut [u8]) {
    // SAFETY: writes exactly the slice; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") bytes.len() => _, options(nostack))
    };
}

/// A window on physical memory: RAM or registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    base: u64,
    len: u64,
}

macro_rules! access {
    ($read:ident, $write:ident, $t:ty, $class:ident, $fmt:literal) => {
        #[track_caller]
        pub(crate) fn $read(self, offset: u64) -> $t {
            let address = self.at(offset, size_of::<$t>() as u64);
            let value: $t;
            // SAFETY: inside the window, whose maker vouched for it.
            unsafe {
                asm!(concat!("mov {0", $fmt, "}, [{1}]"), out($class) value, in(reg) address, options(nostack, preserves_flags))
            };
            value
        }

        #[track_caller]
        pub(crate) fn $write(self, offset: u64, value: $t) {
            let address = self.at(offset, size_of::<$t>() as u64);
            // SAFETY: inside the window, whose maker vouched for it.
            unsafe {
                asm!(concat!("mov [{1}], {0", $fmt, "}"), in($class) value, in(reg) address, options(nostack, preserves_flags))
            };
        }
    };
}

impl Region {
    /// A window on `len` bytes from the physical address `base`, mapped if it is not yet.
    ///
    /// # Safety
    /// What is written through it must not be memory that Rust code holds references to, nor page tables, GDT, IDT or TSS.
    pub(crate) unsafe fn new(base: u64, len: u64) -> Region {
        paging::ensure(base, len);
        Region { base, len }
    }

    pub(crate) fn base(self) -> u64 {
        self.base
    }

    pub(crate) fn len(self) -> u64 {
        self.len
    }

    /// Whether an address lies in the window.
    pub(crate) fn contains(self, address: u64) -> bool {
        address.checked_sub(self.base).is_some_and(|offset| offset < self.len)
    }

    /// The part from `offset`, `len` bytes long.
    #[track_caller]
    pub(crate) fn part(self, offset: u64, len: u64) -> Region {
        Region { base: self.at(offset, len), len }
    }

    #[track_caller]
    fn at(self, offset: u64, len: u64) -> u64 {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => self.base + offset,
            _ => self.missed(offset, len),
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn missed(self, offset: u64, len: u64) -> ! {
        panic!("{len} bytes at {offset:#x} of a {:#x}-byte window at {:#x}", self.len, self.base)
    }

    access!(read8, write8, u8, reg_byte, "");
    access!(read16, write16, u16, reg, ":x");
    access!(read32, write32, u32, reg, ":e");
    access!(read64, write64, u64, reg, ":r");

    /// Reads `width` (1, 2, 4 or 8) bytes.
    #[track_caller]
    pub(crate) fn read(self, offset: u64, width: u64) -> u64 {
        match width {
            1 => u64::from(self.read8(offset)),
            2 => u64::from(self.read16(offset)),
            4 => u64::from(self.read32(offset)),
            _ => self.read64(offset),
        }
    }

    /// Writes the low `width` (1, 2, 4 or 8) bytes of `value`.
    #[track_caller]
    pub(crate) fn write(self, offset: u64, width: u64, value: u64) {
        match width {
            1 => self.write8(offset, value as u8),
            2 => self.write16(offset, value as u16),
            4 => self.write32(offset, value as u32),
            _ => self.write64(offset, value),
        }
    }

    /// Sets every byte. For RAM only.
    pub(crate) fn fill(self, value: u8) {
        // SAFETY: inside the window.
        unsafe { (self.base as *mut u8).write_bytes(value, self.len as usize) };
        fence();
    }

    /// Copies `bytes` into the window. For RAM only.
    #[track_caller]
    pub(crate) fn store(self, offset: u64, bytes: &[u8]) {
        let address = self.at(offset, bytes.len() as u64) as *mut u8;
        // SAFETY: inside the window, which overlaps no Rust object by its maker's word.
        unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        fence();
    }

    /// Copies from the window into `bytes`. For RAM only.
    #[track_caller]
    pub(crate) fn load(self, offset: u64, bytes: &mut [u8]) {
        let address = self.at(offset, bytes.len() as u64) as *const u8;
        fence();
        // SAFETY: inside the window, which overlaps no Rust object by its maker's word.
        unsafe { address.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }
}

/// Orders memory accesses between the probe and its devices, stores before later loads too.
pub(crate) fn fence() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}
