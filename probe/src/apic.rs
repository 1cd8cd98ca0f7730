//! The local APIC (SDM vol. 3, chapter 11) as a receiver of interrupts, and the IOAPIC (82093AA data sheet) as their sender.

use crate::io::{self, Region};
use crate::trap;

const APIC_BASE_MSR: u32 = 0x1b;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const ID: u32 = 0x20;
const SPURIOUS: u32 = 0xf0;
const TASK_PRIORITY: u32 = 0x80;

/// This CPU's APIC, switched on, and in the mode that the VMM left it in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalApic {
    page: Option<Region>,
}

impl LocalApic {
    /// Switches the APIC on, with every priority let through. The PICs, where a machine has them, are silenced: their vectors
    /// are the CPU's own exceptions.
    pub(crate) fn enable() -> LocalApic {
        io::out8(0x21, 0xff);
        io::out8(0xa1, 0xff);
        let base = trap::rdmsr(APIC_BASE_MSR);
        if base & APIC_BASE_ENABLE == 0 {
            trap::wrmsr(APIC_BASE_MSR, base | APIC_BASE_ENABLE);
        }
        let x2apic = base & APIC_BASE_X2APIC != 0;
        // SAFETY: the APIC's register page, no RAM.
        let page = (!x2apic).then(|| unsafe { Region::new(0xfee0_0000, 4096) });
        trap::set_x2apic(x2apic);
        let apic = LocalApic { page };
        apic.write(TASK_PRIORITY, 0);
        apic.write(SPURIOUS, 0x1ff);
        apic
    }

    /// The same in x2APIC mode, which cannot be left again; `None` if CPUID does not know it.
    pub(crate) fn enable_x2apic() -> Option<LocalApic> {
        LocalApic::enable();
        if trap::cpuid(1, 0)[2] & 1 << 21 == 0 {
            return None;
        }
        trap::wrmsr(APIC_BASE_MSR, trap::rdmsr(APIC_BASE_MSR) | APIC_BASE_X2APIC);
        Some(LocalApic::enable())
    }

    pub(crate) fn is_x2apic(&self) -> bool {
        self.page.is_none()
    }

    fn read(&self, register: u32) -> u32 {
        match self.page {
            Some(page) => page.read32(u64::from(register)),
            None => trap::rdmsr(0x800 + (register >> 4)) as u32,
        }
    }

    fn write(&self, register: u32, value: u32) {
        match self.page {
            Some(page) => page.write32(u64::from(register), value),
            None => trap::wrmsr(0x800 + (register >> 4), u64::from(value)),
        }
    }

    /// This CPU's APIC id.
    pub(crate) fn id(&self) -> u32 {
        if self.is_x2apic() { self.read(ID) } else { self.read(ID) >> 24 }
    }

    /// Sends `vector` to this CPU itself (fixed delivery, self shorthand).
    pub(crate) fn send_self(&self, vector: u8) {
        match self.page {
            Some(page) => page.write32(0x300, 1 << 18 | u32::from(vector)),
            None => trap::wrmsr(0x83f, u64::from(vector)),
        }
    }

    fn send(&self, id: u32, command: u32) {
        match self.page {
            Some(page) => {
                page.write32(0x310, id << 24);
                page.write32(0x300, command);
            }
            None => trap::wrmsr(0x830, u64::from(id) << 32 | u64::from(command)),
        }
    }

    /// Sends INIT to the processor with APIC id `id`.
    pub(crate) fn send_init(&self, id: u32) {
        self.send(id, 0x4500);
    }

    /// Sends SIPI: start in real mode at `page` times 4096.
    pub(crate) fn send_startup(&self, id: u32, page: u8) {
        self.send(id, 0x4600 | u32::from(page));
    }

    /// One timer interrupt as `vector` after `count` bus clocks.
    pub(crate) fn start_timer(&self, vector: u8, count: u32) {
        self.write(0x3e0, 0b1011); // divide by 1
        self.write(0x320, u32::from(vector));
        self.write(0x380, count);
    }

    pub(crate) fn stop_timer(&self) {
        self.write(0x320, 1 << 16);
        self.write(0x380, 0);
    }

    /// MSI address and data that bring `vector` here (SDM vol. 3, 11.11).
    pub(crate) fn message(&self, vector: u8) -> (u64, u32) {
        (0xfee0_0000 | u64::from(self.id() & 0xff) << 12, u32::from(vector))
    }
}

/// The IOAPIC's index and data registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IoApic {
    registers: Region,
}

impl IoApic {
    pub(crate) fn at(address: u64) -> IoApic {
        // SAFETY: the IOAPIC's registers, no RAM.
        IoApic { registers: unsafe { Region::new(address, 0x20) } }
    }

    pub(crate) fn read(&self, index: u8) -> u32 {
        self.registers.write32(0, u32::from(index));
        self.registers.read32(0x10)
    }

    pub(crate) fn write(&self, index: u8, value: u32) {
        self.registers.write32(0, u32::from(index));
        self.registers.write32(0x10, value);
    }

    /// Number of pins.
    pub(crate) fn pins(&self) -> u32 {
        (self.read(1) >> 16 & 0xff) + 1
    }

    /// Sends `pin` to `apic` as `vector`: edge triggered, active high, fixed delivery.
    pub(crate) fn route(&self, pin: u8, apic: &LocalApic, vector: u8) {
        self.write(0x11 + pin * 2, apic.id() << 24);
        self.write(0x10 + pin * 2, u32::from(vector));
    }

    pub(crate) fn mask(&self, pin: u8) {
        self.write(0x10 + pin * 2, 1 << 16);
    }
}
