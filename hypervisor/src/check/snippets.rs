//! The instructions that decide: what every stock kernel executes in its first second, as snippets of a few bytes.
//!
//! At the start RDI points to 4 KiB of zeroed, aligned data, and interrupts are off. Snippets that end well write to the port
//! of [`DONE`]; one that is meant to fault says so.

use super::machine::{DONE, HANDLER, OTHER_PML4, Snippet, TASK, USER_CODE, USER_STACK_TOP};
use crate::x86_64::{CpuidEntry, MsrEntry};

/// How a snippet ends on a sound host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// At its end.
    Done,
    /// In an exception.
    Exception(u8),
}

/// One instruction, or a few that belong together.
pub(super) struct Trial {
    /// As an assembler writes it.
    pub(super) name: &'static str,
    /// What runs, [`DONE`] not included.
    code: &'static [u8],
    handler: &'static [u8],
    user: &'static [u8],
    pub(super) end: End,
    /// Needs this CPUID bit.
    feature: Option<Feature>,
    /// An interrupt is sent before it starts.
    pub(super) interrupt: bool,
}

/// A bit of CPUID.
#[derive(Clone, Copy)]
struct Feature {
    function: u32,
    index: u32,
    register: Register,
    bit: u32,
}

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Feature {
    fn offered(self, cpuid: &[CpuidEntry]) -> bool {
        cpuid.iter().any(|leaf| {
            let value = match self.register {
                Register::Eax => leaf.eax,
                Register::Ebx => leaf.ebx,
                Register::Ecx => leaf.ecx,
                Register::Edx => leaf.edx,
            };
            leaf.function == self.function && leaf.index == self.index && value & (1 << self.bit) != 0
        })
    }
}

const fn feature(function: u32, index: u32, register: Register, bit: u32) -> Option<Feature> {
    Some(Feature { function, index, register, bit })
}

const CMPXCHG16B: Option<Feature> = feature(1, 0, Register::Ecx, 13);
const POPCNT: Option<Feature> = feature(1, 0, Register::Ecx, 23);
const XSAVE: Option<Feature> = feature(1, 0, Register::Ecx, 26);
const FSGSBASE: Option<Feature> = feature(7, 0, Register::Ebx, 0);
const INVPCID: Option<Feature> = feature(7, 0, Register::Ebx, 10);
const SMAP: Option<Feature> = feature(7, 0, Register::Ebx, 20);
const XSAVEC: Option<Feature> = feature(0xd, 1, Register::Eax, 1);
const XSAVES: Option<Feature> = feature(0xd, 1, Register::Eax, 3);
const RDTSCP: Option<Feature> = feature(0x8000_0001, 0, Register::Edx, 27);

const fn trial(name: &'static str, code: &'static [u8]) -> Trial {
    Trial { name, code, handler: &[], user: &[], end: End::Done, feature: None, interrupt: false }
}

impl Trial {
    const fn needs(self, feature: Option<Feature>) -> Self {
        Trial { feature, ..self }
    }

    const fn handled_by(self, handler: &'static [u8]) -> Self {
        Trial { handler, ..self }
    }

    const fn ends(self, end: End) -> Self {
        Trial { end, ..self }
    }

    /// The host offers the instruction to guests.
    pub(super) fn applies(&self, cpuid: &[CpuidEntry]) -> bool {
        self.feature.is_none_or(|feature| feature.offered(cpuid))
    }

    /// The bytes that [`Snippet`] borrows.
    pub(super) fn code(&self) -> Vec<u8> {
        [self.code, DONE].concat()
    }

    /// What runs; `code` is from [`Self::code`].
    pub(super) fn snippet<'a>(&'a self, code: &'a [u8]) -> Snippet<'a> {
        Snippet { code, handler: self.handler, user: self.user }
    }
}

/// MSRs that the snippets rely on: the SYSCALL entry.
pub(super) fn msrs() -> [MsrEntry; 3] {
    [
        // STAR: kernel selectors from 0x08, user selectors from 0x10 (SDM volume 3, 6.8.8).
        MsrEntry { index: 0xc000_0081, data: 0x10 << 48 | 0x08 << 32 },
        MsrEntry { index: 0xc000_0082, data: HANDLER },
        MsrEntry { index: 0xc000_0084, data: 0 },
    ]
}

// The operands below are written out as bytes; these say what they must agree with.
const _: () = assert!(HANDLER == 0x9000 && USER_CODE == 0xa000 && OTHER_PML4 == 0xb000);
const _: () = assert!(USER_STACK_TOP == 0xe000 && TASK == 0x28);

/// To ring 3: `push 0x1b; push USER_STACK_TOP; push 2; push 0x23; push USER_CODE; iretq`.
pub(super) const ENTER_USER: &[u8] =
    &[0x6a, 0x1b, 0x68, 0x00, 0xe0, 0, 0, 0x6a, 0x02, 0x6a, 0x23, 0x68, 0x00, 0xa0, 0, 0, 0x48, 0xcf];

/// All trials; first those that a kernel without hardware beneath is least likely to pass. `e6 f4` is `out 0xf4, al`.
pub(super) const TRIALS: &[Trial] = &[
    // push 8; lea rax, [rip + 3]; push rax; retfq
    trial("retfq", &[0x6a, 0x08, 0x48, 0x8d, 0x05, 3, 0, 0, 0, 0x50, 0x48, 0xcb]),
    // mov rax, rsp; push 0x10; push rax; pushfq; push 8; lea rcx, [rip + 3]; push rcx; iretq
    trial(
        "iretq",
        &[
            0x48, 0x89, 0xe0, 0x6a, 0x10, 0x50, 0x9c, 0x6a, 0x08, 0x48, 0x8d, 0x0d, 3, 0, 0, 0, 0x51, 0x48,
            0xcf,
        ],
    ),
    // The handler is an iretq.
    trial("int3", &[0xcc]).handled_by(&[0x48, 0xcf]),
    trial("ud2", &[0x0f, 0x0b]).ends(End::Exception(6)),
    // mov al, [abs 0x4000_0000], which is not mapped
    trial("a page fault", &[0xa0, 0, 0, 0, 0x40, 0, 0, 0, 0]).ends(End::Exception(14)),
    // sti; hlt; jmp $ (the handler ends it)
    Trial { interrupt: true, ..trial("an interrupt", &[0xfb, 0xf4, 0xeb, 0xfe]).handled_by(&[0xe6, 0xf4]) },
    // The handler of both system calls: inc byte [rdi]; cmp byte [rdi], 2; je +3; sysretq; out
    Trial {
        user: &[0x0f, 0x05, 0x0f, 0x05],
        ..trial("syscall, sysretq", ENTER_USER)
            .handled_by(&[0xfe, 0x07, 0x80, 0x3f, 0x02, 0x74, 0x03, 0x48, 0x0f, 0x07, 0xe6, 0xf4])
    },
    trial("cpuid", &[0x31, 0xc0, 0x0f, 0xa2]),
    trial("rdtsc", &[0x0f, 0x31]),
    trial("rdtscp", &[0x0f, 0x01, 0xf9]).needs(RDTSCP),
    trial("pushfq, popfq", &[0x9c, 0x9d]),
    trial("lock cmpxchg", &[0xf0, 0x48, 0x0f, 0xb1, 0x0f]),
    trial("lock cmpxchg16b", &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]).needs(CMPXCHG16B),
    trial("rep stosb", &[0x31, 0xc0, 0xb9, 0x40, 0, 0, 0, 0xf3, 0xaa]),
    trial("popcnt", &[0xf3, 0x48, 0x0f, 0xb8, 0xc7]).needs(POPCNT),
    trial("mfence, lfence", &[0x0f, 0xae, 0xf0, 0x0f, 0xae, 0xe8]),
    trial("movdqa", &[0x66, 0x0f, 0x6f, 0x07, 0x66, 0x0f, 0x7f, 0x07]),
    trial("fxsave", &[0x0f, 0xae, 0x07]),
    trial("fxrstor", &[0x0f, 0xae, 0x07, 0x0f, 0xae, 0x0f]),
    // xor ecx, ecx; xgetbv; xsetbv
    trial("xsetbv", &[0x31, 0xc9, 0x0f, 0x01, 0xd0, 0x0f, 0x01, 0xd1]).needs(XSAVE),
    // The area is all zeroes: "everything in its initial state". mov eax, 1; xor edx, edx; …
    trial("xsave", &[0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0xae, 0x27]).needs(XSAVE),
    trial("xrstor", &[0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0xae, 0x2f]).needs(XSAVE),
    trial("xsavec", &[0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0xc7, 0x27]).needs(XSAVEC),
    trial("xsaves, xrstors", &[0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0xc7, 0x2f, 0x0f, 0xc7, 0x1f])
        .needs(XSAVES),
    // mov rax, cr0; mov cr0, rax; clts
    trial("mov cr0", &[0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, 0x0f, 0x06]),
    // mov eax, OTHER_PML4; mov cr3, rax
    trial("mov cr3", &[0xb8, 0x00, 0xb0, 0, 0, 0x0f, 0x22, 0xd8]),
    // mov rax, cr4; or al, 0x80 (global pages); mov cr4, rax
    trial("mov cr4", &[0x0f, 0x20, 0xe0, 0x0c, 0x80, 0x0f, 0x22, 0xe0]),
    trial("mov dr7", &[0x0f, 0x21, 0xf8, 0x0f, 0x23, 0xf8]),
    trial("invlpg", &[0x0f, 0x01, 0x3f]),
    // mov eax, 2 (all contexts); invpcid rax, [rdi]
    trial("invpcid", &[0xb8, 2, 0, 0, 0, 0x66, 0x0f, 0x38, 0x82, 0x07]).needs(INVPCID),
    trial("wbinvd", &[0x0f, 0x09]),
    trial("stac, clac", &[0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca]).needs(SMAP),
    // mov ecx, 0xc0000082; rdmsr; wrmsr
    trial("rdmsr, wrmsr", &[0xb9, 0x82, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x30]),
    trial("sgdt, lgdt", &[0x0f, 0x01, 0x07, 0x0f, 0x01, 0x17]),
    trial("sidt, lidt", &[0x0f, 0x01, 0x0f, 0x0f, 0x01, 0x1f]),
    // mov ax, TASK; ltr ax
    trial("ltr", &[0x66, 0xb8, 0x28, 0x00, 0x0f, 0x00, 0xd8]),
    trial("swapgs", &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8]),
    // mov rax, cr4; bts rax, 16; mov cr4, rax; rdgsbase rax; wrgsbase rax
    trial(
        "rdgsbase, wrgsbase",
        &[
            0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xe8, 0x10, 0x0f, 0x22, 0xe0, // CR4.FSGSBASE
            0xf3, 0x48, 0x0f, 0xae, 0xc8, 0xf3, 0x48, 0x0f, 0xae, 0xd8,
        ],
    )
    .needs(FSGSBASE),
];

/// `mov ecx, rounds; dec ecx; jnz; out 0xf4, al`: two instructions a round.
pub(super) fn counting_loop(rounds: u32) -> Vec<u8> {
    [&[0xb9], &rounds.to_le_bytes()[..], &[0xff, 0xc9, 0x75, 0xfc], DONE].concat()
}
