//! The MP table (Intel MultiProcessor specification 1.4), for guests that do not read ACPI.

use super::layout;

const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const SPEC_1_4: u8 = 4;
/// Version register of an integrated APIC and of an 82093AA IOAPIC.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// The only IOAPIC has no number of its own; as a destination 255 means "all of them".
const IOAPIC_ID: u8 = 255;
const ALL_LAPICS: u8 = 255;
const ISA_IRQS: u8 = 16;
/// Family 6; FPU and APIC on the chip.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 << 9 | 1;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;

/// The floating pointer and the table behind it, for guest address `at` (a multiple of 16). `None` when an APIC id does
/// not fit its 8 bits beside the reserved ones, or the table would not end below 1 MiB: guests then use ACPI.
pub fn build(at: u64, apic_ids: &[u32]) -> Option<Vec<u8>> {
    let ids: Vec<u8> =
        apic_ids.iter().map(|&id| u8::try_from(id).ok().filter(|&id| id < 254)).collect::<Option<_>>()?;
    let mut entries = Vec::new();
    for (i, &id) in ids.iter().enumerate() {
        // Enabled; the first one is the boot processor.
        let flags = if i == 0 { 3 } else { 1 };
        entries.extend([PROCESSOR, id, LAPIC_VERSION, flags]);
        entries.extend(CPU_SIGNATURE.to_le_bytes());
        entries.extend(CPU_FEATURES.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([BUS, 0]);
    entries.extend(b"ISA   ");
    entries.extend([IOAPIC, IOAPIC_ID, IOAPIC_VERSION, 1]);
    entries.extend((layout::IOAPIC.base as u32).to_le_bytes());
    for irq in 0..ISA_IRQS {
        entries.extend([INTERRUPT, INT, 0, 0, 0, irq, IOAPIC_ID, irq]);
    }
    entries.extend([LOCAL_INTERRUPT, EXTINT, 0, 0, 0, 0, ALL_LAPICS, 0]);
    entries.extend([LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, ALL_LAPICS, 1]);

    let length = POINTER_LEN + HEADER_LEN + entries.len();
    if at.checked_add(length as u64)? > layout::SMBIOS_END {
        return None;
    }
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(b"_MP_");
    bytes.extend(((at + POINTER_LEN as u64) as u32).to_le_bytes());
    // Length in paragraphs; features: a table is there, no IMCR.
    bytes.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);

    bytes.extend(b"PCMP");
    bytes.extend(((HEADER_LEN + entries.len()) as u16).to_le_bytes());
    bytes.extend([SPEC_1_4, 0]);
    bytes.extend(b"CLOUDH  ");
    bytes.extend(b"CLOUDHYP    ");
    // No OEM table: pointer and size.
    bytes.extend([0; 6]);
    bytes.extend(((ids.len() + 4 + usize::from(ISA_IRQS)) as u16).to_le_bytes());
    bytes.extend((layout::LAPIC.base as u32).to_le_bytes());
    // No extended table: length, checksum, reserved.
    bytes.extend([0; 4]);
    bytes.extend(entries);
    bytes[POINTER_LEN + 7] = checksum(&bytes[POINTER_LEN..]);
    Some(bytes)
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_add_up() {
        for count in [1, 2, 253] {
            let ids: Vec<u32> = (0..count).collect();
            let bytes = build(0xf_0100, &ids).unwrap();
            assert_eq!((&bytes[..4], checksum(&bytes[..16])), (&b"_MP_"[..], 0));
            assert_eq!(bytes[4..8], 0xf_0110u32.to_le_bytes());
            let table = &bytes[16..];
            assert_eq!((&table[..4], checksum(table)), (&b"PCMP"[..], 0));
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(table[36..40], 0xfee0_0000u32.to_le_bytes());
            let (mut rest, mut kinds) = (&table[44..], [0; 5]);
            while let Some(&kind) = rest.first() {
                kinds[usize::from(kind)] += 1;
                rest = &rest[if kind == PROCESSOR { 20 } else { 8 }..];
            }
            assert_eq!(kinds, [count as usize, 1, 1, 16, 2]);
            let total = u16::from_le_bytes([table[34], table[35]]);
            assert_eq!(usize::from(total), kinds.iter().sum::<usize>());
        }
    }

    #[test]
    fn skipped_when_it_cannot_be_right() {
        assert!(build(0xf_0100, &[0, 253]).is_some());
        assert!(build(0xf_0100, &[0, 254]).is_none());
        assert!(build(0xf_0100, &[0, 256]).is_none());
        let length = build(0xf_0100, &[0]).unwrap().len() as u64;
        assert!(build(0x10_0000 - length, &[0]).is_some());
        assert!(build(0x10_0000 - length + 16, &[0]).is_none());
        assert!(build(u64::MAX - 15, &[0]).is_none());
    }
}
