//! What can be wrong with a machine's description or its boot files.

use std::io;
use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a machine cannot be laid out, loaded or described. Each variant names the file, address or value at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The amount of RAM cannot be laid out at all.
    #[error("RAM size {size:#x} is not usable: it must be a multiple of 4 KiB and at least 2 MiB")]
    RamSize {
        /// Bytes of RAM asked for.
        size: u64,
    },
    /// The physical address width is outside what the layout supports.
    #[error("{bits} physical address bits are not supported: the machine needs between 33 and 52")]
    PhysBits {
        /// Width asked for.
        bits: u8,
    },
    /// RAM leaves no room for the 64-bit PCI window and the platform devices.
    #[error("{size:#x} bytes of RAM do not fit in a physical address space of {bits} bits")]
    RamBeyondPhysBits {
        /// Bytes of RAM asked for.
        size: u64,
        /// Width of the guest's physical addresses.
        bits: u8,
    },
    /// A PCI window cannot be divided as asked.
    #[error("cannot divide the {window} PCI window of {size:#x} bytes over {segments} segments")]
    WindowSplit {
        /// Which window, as a user would say it.
        window: &'static str,
        /// Size of the window in bytes.
        size: u64,
        /// Number of segments that wanted a share.
        segments: usize,
    },

    /// A boot file cannot be opened.
    #[error("cannot open {what} {}", path.display())]
    OpenFile {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A boot file is a directory, a pipe or the like.
    #[error("{what} {} is not a regular file", path.display())]
    NotAFile {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A boot file cannot be read.
    #[error("cannot read {len:#x} bytes at offset {offset:#x} of {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// How much.
        len: u64,
        /// Why.
        source: io::Error,
    },
    /// A boot file's pages cannot be mapped into guest memory.
    #[error("cannot map {len:#x} bytes at offset {offset:#x} of {} at guest address {gpa:#x}", path.display())]
    MapFile {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// How much.
        len: u64,
        /// Where in the guest.
        gpa: u64,
        /// Why.
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("{what} {} is empty", path.display())]
    EmptyFile {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file ends before what its own headers promise.
    #[error("kernel {} is truncated: its {part} ends at {needed:#x}, the file at {len:#x}", path.display())]
    KernelTruncated {
        /// The file.
        path: PathBuf,
        /// Which part is cut off.
        part: &'static str,
        /// Offset at which the part should end; saturated when the header's sum overflows.
        needed: u64,
        /// Length of the file.
        len: u64,
    },
    /// A kernel for another kind of processor.
    #[error("kernel {} is for {machine}, this machine is x86_64", path.display())]
    KernelWrongMachine {
        /// The file.
        path: PathBuf,
        /// Name of the machine it was built for.
        machine: String,
    },
    /// An x86-64 ELF file that does not say where to enter it.
    #[error("Kernel lacks PVH header: {} is an ELF file without a Xen note of type 18", path.display())]
    KernelLacksPvh {
        /// The file.
        path: PathBuf,
    },
    /// Neither ELF nor bzImage.
    #[error("{} is not a kernel: neither an ELF file nor a bzImage", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// Headers that contradict themselves or ask for what the boot protocol does not have.
    #[error("kernel {} is malformed: {reason}", path.display())]
    KernelMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A boot file, or the memory that it needs to start, lies outside RAM.
    #[error(
        "{what} {} does not fit in RAM: it needs {start:#x}..{end:#x}, free is {low:#x}..{high:#x}", path.display()
    )]
    DoesNotFit {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// First address needed.
        start: u64,
        /// One past the last address needed; saturated when the sum overflows.
        end: u64,
        /// First free address.
        low: u64,
        /// One past the last free address.
        high: u64,
    },
    /// The command line is longer than its place.
    #[error("kernel command line of {len} bytes is too long: the limit is {max}")]
    CmdlineTooLong {
        /// Bytes without the closing NUL.
        len: usize,
        /// Most that fits, without the closing NUL.
        max: usize,
    },
    /// The command line would end early.
    #[error("kernel command line contains a NUL byte at position {at}")]
    CmdlineNul {
        /// Offset of the byte.
        at: usize,
    },
    /// Guest memory cannot be written where the layout says that there is RAM.
    #[error("cannot write {len:#x} bytes to guest memory at {gpa:#x}")]
    GuestMemory {
        /// Where in the guest.
        gpa: u64,
        /// How much.
        len: u64,
        /// Why.
        source: vm_memory::GuestMemoryError,
    },

    /// The topology does not describe a machine.
    #[error(
        "CPU topology {threads}:{cores}:{dies}:{packages} has {total} CPUs, but {max_vcpus} are configured"
    )]
    Topology {
        /// Threads per core.
        threads: u16,
        /// Cores per die.
        cores: u16,
        /// Dies per package.
        dies: u16,
        /// Packages.
        packages: u16,
        /// Their product.
        total: u64,
        /// Largest number of vCPUs that the machine can have.
        max_vcpus: u32,
    },
    /// The tables are longer than their place below 1 MiB.
    #[error("the {tables} tables need {needed:#x} bytes, {available:#x} are available")]
    TablesTooLarge {
        /// "ACPI" or "SMBIOS".
        tables: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// A string that SMBIOS cannot carry.
    #[error("SMBIOS string {field} {reason}")]
    SmbiosString {
        /// Which option.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// The machine's UUID is malformed.
    #[error("uuid {uuid:?} is malformed")]
    Uuid {
        /// What was given.
        uuid: String,
        /// Why.
        source: uuid::Error,
    },
}
