//! The state in which vCPUs start.
//!
//! The boot processor starts in flat 32-bit protected mode with paging off, as PVH and the Linux 32-bit boot protocol
//! both have it. Application processors stay as the hypervisor reset them, awaiting INIT and SIPI, and get only
//! [`msrs`] and [`lapic`]. Nothing here builds page tables: no boot protocol of this machine enters in long mode.

use hypervisor::x86_64::{
    DescriptorTable, FpuState, LapicState, MsrEntry, Segment, SpecialRegisters, StandardRegisters,
};

use super::boot::Entry;
use super::layout;

const SELECTOR_CODE: u16 = 0x08;
const SELECTOR_DATA: u16 = 0x10;
const SELECTOR_TSS: u16 = 0x18;

/// CR0.PE.
const CR0_PROTECTED: u64 = 1;

const MSR_TSC: u32 = 0x10;
const MSR_SYSENTER_CS: u32 = 0x174;
const MSR_SYSENTER_ESP: u32 = 0x175;
const MSR_SYSENTER_EIP: u32 = 0x176;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// IA32_MISC_ENABLE: fast string operations.
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE: MTRRs enabled (bit 11), everything write-back (type 6).
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const DELIVERY_NMI: u32 = 4;
const DELIVERY_EXTINT: u32 = 7;

/// General registers of the boot processor.
pub fn boot_registers(entry: Entry) -> StandardRegisters {
    let mut regs = StandardRegisters { rflags: 2, rsp: layout::BOOT_STACK, ..Default::default() };
    match entry {
        Entry::Pvh { address } => {
            regs.rip = address;
            regs.rbx = layout::PVH_START_INFO;
        }
        Entry::Linux { address } => {
            regs.rip = address;
            regs.rsi = layout::ZERO_PAGE;
        }
    }
    regs
}

/// Segments and control registers of the boot processor. `reset` is what it has after reset: what boot protocols do not
/// speak of (the APIC base above all) stays.
pub fn boot_special_registers(reset: SpecialRegisters) -> SpecialRegisters {
    let data = flat_data();
    SpecialRegisters {
        cs: flat_code(),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task_state(),
        gdt: DescriptorTable { base: layout::BOOT_GDT, limit: 4 * 8 - 1 },
        idt: DescriptorTable { base: layout::BOOT_IDT, limit: 8 - 1 },
        cr0: CR0_PROTECTED,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        ..reset
    }
}

/// Floating-point state of the boot processor.
pub fn boot_fpu() -> FpuState {
    FpuState::default()
}

/// Model-specific registers of every vCPU.
pub fn msrs() -> Vec<MsrEntry> {
    let zero = |index| MsrEntry { index, data: 0 };
    vec![
        zero(MSR_SYSENTER_CS),
        zero(MSR_SYSENTER_ESP),
        zero(MSR_SYSENTER_EIP),
        zero(MSR_STAR),
        zero(MSR_CSTAR),
        zero(MSR_KERNEL_GS_BASE),
        zero(MSR_SYSCALL_MASK),
        zero(MSR_LSTAR),
        zero(MSR_TSC),
        MsrEntry { index: MSR_MISC_ENABLE, data: FAST_STRINGS },
        MsrEntry { index: MSR_MTRR_DEF_TYPE, data: MTRR_ENABLED_WRITE_BACK },
    ]
}

/// Local APIC of every vCPU: LINT0 takes external interrupts, LINT1 NMIs. `reset` is its state after reset.
pub fn lapic(reset: LapicState) -> LapicState {
    let mut state = reset;
    for (register, mode) in [(LapicState::LVT_LINT0, DELIVERY_EXTINT), (LapicState::LVT_LINT1, DELIVERY_NMI)]
    {
        state.set(register, state.get(register) & !0x700 | mode << 8);
    }
    state
}

/// GDT and IDT of [`boot_special_registers`], with their guest addresses. The GDT lets a kernel reload the segments that it starts
/// with; the IDT is empty.
pub fn descriptor_tables() -> [(u64, Vec<u8>); 2] {
    let gdt = [0, descriptor(&flat_code()), descriptor(&flat_data()), descriptor(&task_state())];
    let bytes = gdt.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect();
    [(layout::BOOT_GDT, bytes), (layout::BOOT_IDT, vec![0; 8])]
}

fn flat_code() -> Segment {
    // Type 0xb: code, readable, accessed.
    Segment { selector: SELECTOR_CODE, type_: 0xb, ..flat() }
}

fn flat_data() -> Segment {
    // Type 3: data, writable, accessed.
    Segment { selector: SELECTOR_DATA, type_: 0x3, ..flat() }
}

fn flat() -> Segment {
    Segment { base: 0, limit: u32::MAX, present: true, s: true, db: true, g: true, ..Default::default() }
}

fn task_state() -> Segment {
    // Type 0xb: busy 32-bit TSS; PVH wants a limit of 0x67.
    Segment { selector: SELECTOR_TSS, type_: 0xb, limit: 0x67, present: true, ..Default::default() }
}

/// A segment as a descriptor of 8 bytes (SDM volume 3, 3.4.5).
fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.g { segment.limit >> 12 } else { segment.limit });
    let flag = |set: bool, bit: u32| u64::from(set) << bit;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | u64::from(segment.type_) << 40
        | flag(segment.s, 44)
        | u64::from(segment.dpl) << 45
        | flag(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | flag(segment.avl, 52)
        | flag(segment.l, 53)
        | flag(segment.db, 54)
        | flag(segment.g, 55)
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        let [(gdt_at, gdt), (idt_at, idt)] = descriptor_tables();
        let entries: Vec<u64> = gdt.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
        assert_eq!(entries, [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]);
        assert_eq!((gdt_at, idt_at, idt.len()), (0x500, 0x520, 8));
        assert!(gdt_at + gdt.len() as u64 <= idt_at);
        let sregs = boot_special_registers(SpecialRegisters::default());
        assert_eq!(usize::from(sregs.gdt.limit) + 1, gdt.len());
        assert_eq!(usize::from(sregs.idt.limit) + 1, idt.len());
    }

    #[test]
    fn boot_processor_enters_flat_protected_mode() {
        let reset = SpecialRegisters { apic_base: 0xfee0_0900, cr0: 0x6000_0010, ..Default::default() };
        let sregs = boot_special_registers(reset);
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (1, 0, 0, 0));
        assert_eq!(sregs.apic_base, 0xfee0_0900);
        for segment in [sregs.cs, sregs.ds, sregs.es, sregs.ss] {
            assert_eq!((segment.base, segment.limit, segment.g, segment.db), (0, u32::MAX, true, true));
            assert!(segment.present && !segment.unusable && !segment.l);
        }
        assert_eq!((sregs.tr.limit, sregs.tr.type_, sregs.tr.s), (0x67, 0xb, false));
    }

    #[test]
    fn each_protocol_gets_its_pointer() {
        let pvh = boot_registers(Entry::Pvh { address: 0x123 });
        assert_eq!((pvh.rip, pvh.rbx, pvh.rsi, pvh.rflags), (0x123, 0x6000, 0, 2));
        let linux = boot_registers(Entry::Linux { address: 0x10_0000 });
        assert_eq!((linux.rip, linux.rbx, linux.rsi), (0x10_0000, 0, 0x7000));
    }

    #[test]
    fn local_interrupts() {
        let mut reset = LapicState::default();
        reset.set(LapicState::LVT_LINT0, 0x1_0000);
        let state = lapic(reset);
        assert_eq!(state.get(LapicState::LVT_LINT0), 0x1_0700);
        assert_eq!(state.get(LapicState::LVT_LINT1), 0x400);
    }

    #[test]
    fn memory_is_write_back_from_the_start() {
        let msrs = msrs();
        assert!(msrs.contains(&MsrEntry { index: 0x2ff, data: 0x806 }));
        assert!(msrs.contains(&MsrEntry { index: 0x1a0, data: 1 }));
    }
}
