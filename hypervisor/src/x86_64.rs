//! The x86-64 state of a vCPU as plain values: one register format for every hypervisor beneath.
//!
//! Names and meanings are those of the Intel SDM and the AMD APM. Nothing here talks to a hypervisor and nothing knows
//! how one lays these values out in memory. Everything can be written to and read from a snapshot; what was read back is
//! untrusted until the hypervisor has taken it.

use serde::{Deserialize, Serialize};

/// General-purpose registers, instruction pointer and flags.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StandardRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    /// Bit 1 is always set in a real machine; hypervisors set it themselves.
    pub rflags: u64,
}

/// A segment register with its hidden part (SDM volume 3, 3.4.3 and 3.4.5).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Linear address at which the segment starts.
    pub base: u64,
    /// Offset of the last byte, granularity already applied (0xffff_ffff for a flat 4 GiB segment).
    pub limit: u32,
    /// What the guest reads from the register.
    pub selector: u16,
    /// Type field, 4 bits (0xb: code, readable, accessed; 0x3: data, writable, accessed; 0xb with `s` clear: busy TSS).
    pub type_: u8,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// Default operation size: 32 bits when set.
    pub db: bool,
    /// Code or data when set, system segment otherwise.
    pub s: bool,
    /// 64-bit code segment.
    pub l: bool,
    /// Granularity: the descriptor's limit counts 4 KiB pages.
    pub g: bool,
    /// Available for system software.
    pub avl: bool,
    /// A null selector was loaded.
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of the table's last byte.
    pub limit: u16,
}

/// Segment, descriptor-table and control registers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SpecialRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// Task priority, 0 to 15.
    pub cr8: u64,
    pub efer: u64,
    /// `IA32_APIC_BASE`.
    pub apic_base: u64,
    /// One bit per vector: an external interrupt that was taken from the interrupt controller and not yet delivered.
    pub pending_interrupt: [u64; 4],
}

/// x87 and SSE state in the form that FXSAVE gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// ST0 to ST7, 80 bits each, padded to 16 bytes.
    pub st: [[u8; 16]; 8],
    /// XMM0 to XMM15.
    pub xmm: [[u8; 16]; 16],
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Abridged tag word: a set bit is a register in use.
    pub ftw: u8,
    /// Opcode of the last x87 instruction.
    pub last_opcode: u16,
    /// Its address.
    pub last_ip: u64,
    /// Address of its operand.
    pub last_dp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
}

impl Default for FpuState {
    /// As after `FNINIT`, with every SSE exception masked: what a boot protocol expects.
    fn default() -> Self {
        FpuState {
            st: [[0; 16]; 8],
            xmm: [[0; 16]; 16],
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            last_opcode: 0,
            last_ip: 0,
            last_dp: 0,
            mxcsr: 0x1f80,
        }
    }
}

/// One CPUID leaf, or one of its subleaves.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// Leaf: EAX of the request.
    pub function: u32,
    /// Subleaf: ECX of the request, meaningful when `indexed`.
    pub index: u32,
    /// The leaf depends on ECX; entries with other subleaves may exist.
    pub indexed: bool,
    /// What the guest is answered.
    pub eax: u32,
    /// What the guest is answered.
    pub ebx: u32,
    /// What the guest is answered.
    pub ecx: u32,
    /// What the guest is answered.
    pub edx: u32,
}

/// A model-specific register and its value.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrEntry {
    /// Number, as RDMSR takes it in ECX.
    pub index: u32,
    /// Value, EDX:EAX.
    pub data: u64,
}

/// The registers of a local APIC, as its MMIO page shows them (SDM volume 3, table 11-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    #[serde(with = "array_as_sequence")]
    registers: [u32; LapicState::REGISTERS],
}

impl LapicState {
    /// Number of registers: the page has one each 16 bytes up to 0x3f0.
    pub const REGISTERS: usize = 64;
    /// Offset of the LINT0 entry of the local vector table.
    pub const LVT_LINT0: usize = 0x350;
    /// Offset of the LINT1 entry of the local vector table.
    pub const LVT_LINT1: usize = 0x360;

    /// Builds the state from all registers in order of their offsets.
    pub const fn new(registers: [u32; Self::REGISTERS]) -> Self {
        LapicState { registers }
    }

    /// All registers in order of their offsets.
    pub const fn registers(&self) -> &[u32; Self::REGISTERS] {
        &self.registers
    }

    /// The register at a byte offset of the page, e.g. [`Self::LVT_LINT0`].
    ///
    /// # Panics
    /// When the offset is beyond 0x3ff. Offsets are constants of the caller, never of the guest.
    pub const fn get(&self, offset: usize) -> u32 {
        self.registers[offset / 16]
    }

    /// Changes the register at a byte offset of the page.
    ///
    /// # Panics
    /// As for [`Self::get`].
    pub const fn set(&mut self, offset: usize, value: u32) {
        self.registers[offset / 16] = value;
    }
}

impl Default for LapicState {
    fn default() -> Self {
        LapicState { registers: [0; Self::REGISTERS] }
    }
}

/// What a vCPU is doing as seen by the start-up protocol (INIT, SIPI).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// Executes instructions.
    #[default]
    Runnable,
    /// An application processor that awaits INIT.
    Uninitialized,
    /// Got INIT and awaits SIPI.
    InitReceived,
    /// Sleeps in HLT.
    Halted,
    /// Got SIPI and is about to start at its vector.
    SipiReceived,
}

/// Exceptions and interrupts on their way into the vCPU.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuEvents {
    /// An exception in delivery or pending.
    pub exception: PendingException,
    /// An external or software interrupt in delivery.
    pub interrupt: PendingInterrupt,
    /// Non-maskable interrupts.
    pub nmi: PendingNmi,
    /// Start-up vector of a SIPI that was received, 0 when none.
    pub sipi_vector: u32,
    /// System management mode.
    pub smi: SmmState,
    /// A triple fault that has not been reported yet.
    pub triple_fault_pending: bool,
}

/// See [`VcpuEvents::exception`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PendingException {
    /// Being delivered: side effects (CR2, DR6) are in the registers already.
    pub injected: bool,
    /// Not yet looked at: side effects are in `payload`.
    pub pending: bool,
    pub vector: u8,
    pub error_code: Option<u32>,
    pub payload: Option<u64>,
}

/// See [`VcpuEvents::interrupt`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PendingInterrupt {
    pub injected: bool,
    pub vector: u8,
    /// Came from an `INT n`.
    pub soft: bool,
    /// Interrupt shadow: bit 0 after MOV SS, bit 1 after STI.
    pub shadow: u8,
}

/// See [`VcpuEvents::nmi`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PendingNmi {
    pub injected: bool,
    pub pending: bool,
    /// Blocked until IRET.
    pub masked: bool,
}

/// See [`VcpuEvents::smi`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SmmState {
    pub in_smm: bool,
    pub pending: bool,
    pub inside_nmi: bool,
    pub latched_init: bool,
}

/// Debug registers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// The XSAVE area in its standard (not compacted) format, of the size the hypervisor gives, 4096 bytes at least.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XsaveArea(#[serde(with = "device::hexadecimal")] pub Vec<u8>);

/// Serialises arrays longer than serde's own limit of 32 as sequences.
mod array_as_sequence {
    use serde::de::{Deserialize as _, Error as _};
    use serde::{Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer, const N: usize>(
        value: &[u32; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u32; N], D::Error> {
        let values = Vec::<u32>::deserialize(deserializer)?;
        let found = values.len();
        values.try_into().map_err(|_| D::Error::custom(format_args!("expected {N} registers, found {found}")))
    }
}
