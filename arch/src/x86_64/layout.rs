//! Where everything is in the guest's physical address space.
//!
//! [`MemoryMap::new`] computes the parts that depend on the amount of RAM and on the width of physical addresses; the
//! rest are constants. Pure arithmetic: nothing here allocates memory or remembers who got what, except
//! [`PlatformArea`], which hands out pages of the platform device area in creation order.

use device::Span;

use crate::{Error, Result};

/// Size of a page of the guest, in bytes.
pub const PAGE_SIZE: u64 = 0x1000;

/// First GiB boundary that RAM does not cross: low RAM ends here, the rest of it starts at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM that does not fit below [`LOW_RAM_END`] continues.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Real-mode pointer to the EBDA (16 bits, paragraph number).
pub const EBDA_POINTER: u64 = 0x40e;
/// The global descriptor table with which the boot processor starts; see [`crate::x86_64::registers`].
pub const BOOT_GDT: u64 = 0x500;
/// The empty interrupt descriptor table with which the boot processor starts.
pub const BOOT_IDT: u64 = 0x520;
/// `hvm_start_info` of the PVH protocol.
pub const PVH_START_INFO: u64 = 0x6000;
/// Module list of the PVH protocol.
pub const PVH_MODULES: u64 = 0x6040;
/// Memory map of the PVH protocol.
pub const PVH_MEMMAP: u64 = 0x7000;
/// `boot_params` of the Linux protocol. Never used together with [`PVH_MEMMAP`].
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// Most bytes of a command line, with its closing NUL.
pub const CMDLINE_MAX: usize = 0x10000;
/// End of the RAM below 1 MiB that the memory map calls usable.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// The EBDA, which begins with the RSDP; the other ACPI tables follow.
pub const RSDP: u64 = 0xa_0000;
/// End of the space for ACPI tables.
pub const ACPI_END: u64 = VM_GENERATION;
/// The VM generation ID, in a page of its own that nothing else is in.
pub const VM_GENERATION: u64 = 0xe_f000;
/// SMBIOS entry point and structures; the MP table follows.
pub const SMBIOS: u64 = 0xf_0000;
/// End of the space for SMBIOS and MP tables.
pub const SMBIOS_END: u64 = 0x10_0000;
/// Lowest address at which kernels and firmware are loaded.
pub const KERNEL_START: u64 = 0x10_0000;

/// PCI window for 32-bit BARs, all segments together.
pub const MMIO32: Span = Span { base: 0xc000_0000, length: 0x2800_0000 };
/// PCI configuration space, [`ECAM_PER_SEGMENT`] for each segment.
pub const ECAM: Span = Span { base: 0xe800_0000, length: 0x1000_0000 };
/// ECAM of one segment: bus 0 only.
pub const ECAM_PER_SEGMENT: u64 = 0x10_0000;
/// Most PCI segments.
pub const MAX_SEGMENTS: u16 = (ECAM.length / ECAM_PER_SEGMENT) as u16;
/// Three pages that KVM needs to run real mode on old processors (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xf800_0000;
/// One page for the same (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xf800_3000;
/// Registers of the IOAPIC.
pub const IOAPIC: Span = Span { base: 0xfec0_0000, length: 0x20 };
/// Registers of the TPM, where there is one.
pub const TPM: Span = Span { base: 0xfed4_0000, length: 0x1000 };
/// Registers of the local APIC.
pub const LAPIC: Span = Span { base: 0xfee0_0000, length: 0x1000 };
/// Writes here are message signalled interrupts.
pub const MSI: Span = Span { base: 0xfee0_0000, length: 0x10_0000 };

/// Slots of a PCI bus.
pub const PCI_SLOTS: u8 = 32;
/// First of the IOAPIC's pins for PCI interrupt lines.
const PCI_INTX_FIRST: u8 = 5;
/// Number of such pins.
const PCI_INTX_PINS: u8 = 8;

/// IOAPIC input of the interrupt line of a PCI slot: 5 to 12, taken in turn.
pub const fn pci_intx_gsi(slot: u8) -> u8 {
    PCI_INTX_FIRST + slot % PCI_INTX_PINS
}

/// Size of the platform device area.
pub const PLATFORM_SIZE: u64 = 0x10_0000;
/// Distance from the end of the platform device area to the end of the physical address space.
const PLATFORM_GAP: u64 = 0x1_0000;
/// A 64-bit window ends at a multiple of this inside the address space, except for the last one.
const MMIO64_ALIGN: u64 = 1 << 32;

/// The map of a machine: what [`MemoryMap::new`] computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    /// RAM from address 0.
    pub low_ram: Span,
    /// RAM from 4 GiB, if there is more than fits below [`LOW_RAM_END`].
    pub high_ram: Option<Span>,
    /// Window for 64-bit BARs, all segments together.
    pub mmio64: Span,
    /// Where platform devices without a fixed address go; see [`PlatformArea`].
    pub platform: Span,
    /// Width of physical addresses.
    pub phys_bits: u8,
}

impl MemoryMap {
    /// Lays out `ram_size` bytes of RAM (a multiple of 4 KiB, at least 2 MiB) in an address space of `phys_bits` bits
    /// (33 to 52).
    ///
    /// # Errors
    /// [`Error::RamSize`], [`Error::PhysBits`], [`Error::RamBeyondPhysBits`].
    pub fn new(ram_size: u64, phys_bits: u8) -> Result<Self> {
        if !ram_size.is_multiple_of(PAGE_SIZE) || ram_size < 2 << 20 {
            return Err(Error::RamSize { size: ram_size });
        }
        if !(33..=52).contains(&phys_bits) {
            return Err(Error::PhysBits { bits: phys_bits });
        }
        let too_large = || Error::RamBeyondPhysBits { size: ram_size, bits: phys_bits };
        let platform_end = (1u64 << phys_bits) - PLATFORM_GAP;
        let platform = Span { base: platform_end - PLATFORM_SIZE, length: PLATFORM_SIZE };

        let low_ram = Span { base: 0, length: ram_size.min(LOW_RAM_END) };
        let rest = ram_size - low_ram.length;
        let high_ram = (rest > 0).then_some(Span { base: HIGH_RAM_START, length: rest });
        let ram_end = HIGH_RAM_START.checked_add(rest).ok_or_else(too_large)?;
        if ram_end >= platform.base {
            return Err(too_large());
        }
        let mmio64 = between(ram_end, platform.base);
        Ok(MemoryMap { low_ram, high_ram, mmio64, platform, phys_bits })
    }

    /// RAM in ascending order: one span or two.
    pub fn ram(&self) -> impl Iterator<Item = Span> {
        std::iter::once(self.low_ram).chain(self.high_ram)
    }

    /// What boot protocols tell the guest about its memory, in ascending order.
    pub fn boot_ranges(&self) -> Vec<BootRange> {
        let ram = |span| BootRange { span, kind: RangeKind::Ram };
        let mut ranges = vec![
            ram(between(0, CONVENTIONAL_END)),
            ram(between(KERNEL_START, self.low_ram.end())),
            BootRange { span: ECAM, kind: RangeKind::Reserved },
        ];
        ranges.extend(self.high_ram.map(ram));
        ranges
    }

    /// The 32-bit PCI window of each segment: shares by weight, 4 KiB aligned, the remainder to the last.
    ///
    /// # Errors
    /// [`Error::WindowSplit`] when a share would be empty.
    pub fn mmio32_windows(weights: &[u32]) -> Result<Vec<Span>> {
        split(MMIO32, weights, PAGE_SIZE, "32-bit")
    }

    /// The 64-bit PCI window of each segment: shares by weight, ending on 4 GiB boundaries, the remainder to the last.
    ///
    /// # Errors
    /// [`Error::WindowSplit`] when a share would be empty.
    pub fn mmio64_windows(&self, weights: &[u32]) -> Result<Vec<Span>> {
        split(self.mmio64, weights, MMIO64_ALIGN, "64-bit")
    }
}

/// What a range in a boot protocol's memory map is (the numbers are those of e820).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// For the guest to use.
    Ram = 1,
    /// Not RAM, and in use.
    Reserved = 2,
}

/// One entry of a boot protocol's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootRange {
    /// Which addresses.
    pub span: Span,
    /// What is there.
    pub kind: RangeKind,
}

/// ECAM of segment `segment`, or `None` at or past [`MAX_SEGMENTS`].
pub const fn ecam(segment: u16) -> Option<Span> {
    if segment >= MAX_SEGMENTS {
        return None;
    }
    Some(Span { base: ECAM.base + segment as u64 * ECAM_PER_SEGMENT, length: ECAM_PER_SEGMENT })
}

/// Hands out the platform device area from its top, in 4 KiB steps: the same devices in the same order get the same
/// addresses. Nothing is given back; the devices concerned live as long as the machine.
#[derive(Debug, Clone)]
pub struct PlatformArea {
    area: Span,
    next_end: u64,
}

impl PlatformArea {
    /// All of [`MemoryMap::platform`] is free.
    pub const fn new(map: &MemoryMap) -> Self {
        PlatformArea { area: map.platform, next_end: map.platform.end() }
    }

    /// The next free range of `size` bytes, page aligned, or `None` when the area is used up or `size` is 0.
    pub fn allocate(&mut self, size: u64) -> Option<Span> {
        let step = size.checked_next_multiple_of(PAGE_SIZE)?;
        let start = self.next_end.checked_sub(step)?;
        if size == 0 || start < self.area.base {
            return None;
        }
        self.next_end = start;
        Some(Span { base: start, length: size })
    }
}

const fn between(start: u64, end: u64) -> Span {
    Span { base: start, length: end - start }
}

/// Cuts `window` into one span per weight; inner boundaries are multiples of `align`.
fn split(window: Span, weights: &[u32], align: u64, name: &'static str) -> Result<Vec<Span>> {
    let error = || Error::WindowSplit { window: name, size: window.length, segments: weights.len() };
    let total: u128 = weights.iter().map(|&w| u128::from(w)).sum();
    if total == 0 {
        return Err(error());
    }
    let mut windows = Vec::with_capacity(weights.len());
    let (mut start, mut sum) = (window.base, 0u128);
    for (i, &weight) in weights.iter().enumerate() {
        sum += u128::from(weight);
        let end = if i + 1 == weights.len() {
            window.end()
        } else {
            // At most `window.length`, so it fits 64 bits again.
            let share = (u128::from(window.length) * sum / total) as u64;
            (window.base + share) / align * align
        };
        if end <= start {
            return Err(error());
        }
        windows.push(between(start, end));
        start = end;
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small deterministic generator (xorshift64*), so that a failure can be repeated.
    struct Rng(u64);
    impl Rng {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % n
        }
    }

    fn assert_disjoint(spans: &[(&str, Span)]) {
        for (i, (a_name, a)) in spans.iter().enumerate() {
            for (b_name, b) in &spans[i + 1..] {
                assert!(!a.overlaps(b), "{a_name} {a:x?} overlaps {b_name} {b:x?}");
            }
        }
    }

    #[test]
    fn nothing_overlaps_whatever_the_size() {
        let mut rng = Rng(0x1234_5678);
        let mut laid_out = 0;
        for _ in 0..20_000 {
            let bits = 33 + rng.below(20) as u8;
            let magnitude = 1 + rng.below(u64::from(bits) - 8);
            let pages = 512 + rng.below(1 << magnitude);
            let size = pages * PAGE_SIZE;
            let map = match MemoryMap::new(size, bits) {
                Ok(map) => map,
                Err(Error::RamBeyondPhysBits { .. }) => {
                    assert!(size + (1 << 30) + PLATFORM_SIZE + PLATFORM_GAP >= 1 << bits);
                    continue;
                }
                Err(e) => panic!("{e}"),
            };
            laid_out += 1;
            assert_eq!(map.ram().map(|s| s.length).sum::<u64>(), size);
            let mut spans = vec![
                ("mmio32", MMIO32),
                ("ecam", ECAM),
                ("tss", Span { base: KVM_TSS, length: 0x3000 }),
                ("identity map", Span { base: KVM_IDENTITY_MAP, length: 0x1000 }),
                ("ioapic", IOAPIC),
                ("tpm", TPM),
                ("msi", MSI),
                ("mmio64", map.mmio64),
                ("platform", map.platform),
            ];
            spans.extend(map.ram().map(|s| ("ram", s)));
            assert_disjoint(&spans);
            assert!(spans.iter().all(|(_, s)| s.length > 0 && s.end() <= 1 << bits));
            assert!(map.boot_ranges().windows(2).all(|w| w[0].span.end() <= w[1].span.base));
        }
        assert!(laid_out > 5_000, "only {laid_out} maps were laid out");
    }

    #[test]
    fn places_below_one_mib_do_not_overlap() {
        let place = |name, start, size| (name, Span { base: start, length: size });
        assert_disjoint(&[
            place("ebda pointer", EBDA_POINTER, 2),
            place("gdt", BOOT_GDT, 0x20),
            place("idt", BOOT_IDT, 8),
            place("start info", PVH_START_INFO, 56),
            place("modules", PVH_MODULES, 32),
            place("zero page", ZERO_PAGE, 0x1000),
            place("stack", BOOT_STACK - 0xff0, 0xff0),
            place("cmdline", CMDLINE, CMDLINE_MAX as u64),
            place("acpi", RSDP, ACPI_END - RSDP),
            place("vm generation", VM_GENERATION, 0x1000),
            place("smbios", SMBIOS, SMBIOS_END - SMBIOS),
        ]);
    }

    #[test]
    fn known_maps() {
        let map = MemoryMap::new(512 << 20, 46).unwrap();
        assert_eq!(map.low_ram, Span { base: 0, length: 512 << 20 });
        assert_eq!(map.high_ram, None);
        assert_eq!(map.mmio64.base, HIGH_RAM_START);
        assert_eq!(map.platform.end(), (1 << 46) - 0x1_0000);

        let map = MemoryMap::new(4 << 30, 40).unwrap();
        assert_eq!(map.low_ram.end(), LOW_RAM_END);
        assert_eq!(map.high_ram, Some(Span { base: 4 << 30, length: 1 << 30 }));
        assert_eq!(map.mmio64.base, 5 << 30);
        let kinds: Vec<_> = map.boot_ranges().iter().map(|r| (r.span.base, r.kind as u32)).collect();
        assert_eq!(kinds, [(0, 1), (0x10_0000, 1), (0xe800_0000, 2), (4 << 30, 1)]);
    }

    #[test]
    fn impossible_maps_are_refused() {
        assert!(matches!(MemoryMap::new(0, 40), Err(Error::RamSize { size: 0 })));
        assert!(matches!(MemoryMap::new((4 << 20) + 1, 40), Err(Error::RamSize { .. })));
        assert!(matches!(MemoryMap::new(4 << 20, 32), Err(Error::PhysBits { bits: 32 })));
        assert!(matches!(MemoryMap::new(4 << 20, 53), Err(Error::PhysBits { bits: 53 })));
        assert!(matches!(MemoryMap::new(64 << 30, 36), Err(Error::RamBeyondPhysBits { .. })));
        assert!(matches!(MemoryMap::new(!0xfff, 52), Err(Error::RamBeyondPhysBits { .. })));
    }

    #[test]
    fn windows_split_without_gaps() {
        let mut rng = Rng(99);
        for _ in 0..2_000 {
            let map =
                MemoryMap::new((2 << 20) + (rng.below(1 << 20) << 12), 40 + rng.below(13) as u8).unwrap();
            let weights: Vec<u32> = (0..1 + rng.below(8)).map(|_| 1 + rng.below(7) as u32).collect();
            for (whole, windows) in [
                (MMIO32, MemoryMap::mmio32_windows(&weights).unwrap()),
                (map.mmio64, map.mmio64_windows(&weights).unwrap()),
            ] {
                assert_eq!(windows.len(), weights.len());
                assert_eq!(windows[0].base, whole.base);
                assert_eq!(windows.last().unwrap().end(), whole.end());
                assert!(windows.windows(2).all(|w| w[0].end() == w[1].base));
                assert!(windows[1..].iter().all(|w| w.base.is_multiple_of(PAGE_SIZE)));
            }
            assert!(
                map.mmio64_windows(&weights).unwrap()[1..].iter().all(|w| w.base.is_multiple_of(4 << 30))
            );
        }
        assert!(matches!(MemoryMap::mmio32_windows(&[]), Err(Error::WindowSplit { .. })));
        assert!(matches!(MemoryMap::mmio32_windows(&[0, 1]), Err(Error::WindowSplit { .. })));
        let small = MemoryMap::new(2 << 20, 33).unwrap();
        assert!(matches!(small.mmio64_windows(&[1, 1, 1]), Err(Error::WindowSplit { .. })));
    }

    #[test]
    fn ecam_is_one_mib_each() {
        assert_eq!(ecam(0), Some(Span { base: 0xe800_0000, length: 0x10_0000 }));
        assert_eq!(ecam(255).unwrap().end(), ECAM.end());
        assert_eq!(ecam(256), None);
    }

    #[test]
    fn platform_devices_come_from_the_top() {
        let map = MemoryMap::new(1 << 30, 40).unwrap();
        let mut area = PlatformArea::new(&map);
        let top = (1u64 << 40) - 0x1_0000;
        assert_eq!(area.allocate(0x10), Some(Span { base: top - 0x1000, length: 0x10 }));
        assert_eq!(area.allocate(1), Some(Span { base: top - 0x2000, length: 1 }));
        assert_eq!(area.allocate(0x1001), Some(Span { base: top - 0x4000, length: 0x1001 }));
        assert_eq!(area.allocate(0), None);
        assert_eq!(area.allocate(PLATFORM_SIZE), None);
        assert_eq!(area.allocate(u64::MAX), None);
        let mut left = 0;
        while let Some(span) = area.allocate(1) {
            assert!(map.platform.contains(&span));
            left += 1;
        }
        assert_eq!(left, 256 - 4);
    }
}
