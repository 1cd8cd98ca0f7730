//! Configuration space of a type 0 function by name (PCI Local Bus 3.0 §6.1, §6.2, §6.8.2). Offsets and bits only.

/// Vendor ID (16 bits).
pub const VENDOR_ID: usize = 0x00;
/// Device ID (16 bits).
pub const DEVICE_ID: usize = 0x02;
/// Command (16 bits), see [`command`].
pub const COMMAND: usize = 0x04;
/// Status (16 bits), see [`status`].
pub const STATUS: usize = 0x06;
/// Revision ID (8 bits); the class code is the three bytes after it.
pub const REVISION: usize = 0x08;
/// Cache line size (8 bits), the driver's to write.
pub const CACHE_LINE_SIZE: usize = 0x0c;
/// The first of six base address registers (32 bits each).
pub const BAR0: usize = 0x10;
/// Subsystem vendor ID (16 bits).
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
/// Subsystem ID (16 bits).
pub const SUBSYSTEM_ID: usize = 0x2e;
/// Offset of the first capability (8 bits).
pub const CAPABILITIES: usize = 0x34;
/// Interrupt line (8 bits), the firmware's scratch register.
pub const INTERRUPT_LINE: usize = 0x3c;
/// End of the header; capabilities follow.
pub const HEADER_END: usize = 0x40;
/// End of what the ports reach; the extended space behind it is empty.
pub const SPACE_END: usize = 0x100;
/// Length of a function's configuration space.
pub const EXTENDED_END: usize = 0x1000;

/// Number of base address registers.
pub const BARS: u8 = 6;

/// Bits of [`COMMAND`].
pub mod command {
    /// Memory BARs answer.
    pub const MEMORY: u16 = 1 << 1;
    /// What the driver may write: I/O, memory, bus master, special cycles, write and invalidate, palette snoop, parity, SERR#, fast
    /// back-to-back, INTx disable. Only [`MEMORY`] has an effect here, as in the platform's contract.
    pub const WRITABLE: u16 = 0x077f;
}

/// Bits of [`STATUS`].
pub mod status {
    /// [`super::CAPABILITIES`] is valid.
    pub const CAPABILITIES_LIST: u16 = 1 << 4;
}

/// Bits of a base address register.
pub mod bar {
    /// Type field: two registers, anywhere in 64 bits.
    pub const MEMORY_64: u32 = 0b10 << 1;
    /// Reads have no side effects.
    pub const PREFETCHABLE: u32 = 1 << 3;
    /// What is no address.
    pub const FLAGS: u32 = 0xf;
    /// Smallest memory BAR.
    pub const SMALLEST: u64 = 16;
}

/// The MSI-X capability; offsets from its ID.
pub mod msix {
    /// Capability ID.
    pub const ID: u8 = 0x11;
    /// Length of the capability.
    pub const LENGTH: usize = 12;
    /// Message control (16 bits).
    pub const CONTROL: usize = 2;
    /// Number of vectors less one.
    pub const CONTROL_SIZE: u16 = 0x7ff;
    /// All vectors are masked.
    pub const CONTROL_MASK: u16 = 1 << 14;
    /// The function interrupts by MSI-X.
    pub const CONTROL_ENABLE: u16 = 1 << 15;
    /// Offset of the table, with the BAR's number in the low three bits.
    pub const TABLE: usize = 4;
    /// Offset of the pending bits, likewise.
    pub const PENDING: usize = 8;
    /// Most vectors of a function.
    pub const VECTORS: u16 = 2048;
    /// Length of a table entry: address low and high, data, vector control.
    pub const ENTRY: usize = 16;
    /// Vector control: the vector is masked.
    pub const VECTOR_MASKED: u32 = 1;
}
