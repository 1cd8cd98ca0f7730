//! What makes the slots of a PCI root hot-pluggable: slot objects that eject, and methods that look for changes.
//!
//! The registers and the methods behind them are the hotplug controller's, `\\_SB_.PHPR`. Thirty-two slots a root are most of the
//! DSDT, so their bytes are written in one pass, without the builders that the rest of it uses.

use acpi_tables::{Aml, AmlSink};

use crate::x86_64::layout;

/// Opcodes and prefixes (ACPI 6.5 §20.3).
mod op {
    pub(super) const NAME: u8 = 0x08;
    pub(super) const BYTE: u8 = 0x0a;
    pub(super) const DWORD: u8 = 0x0c;
    pub(super) const METHOD: u8 = 0x14;
    pub(super) const DEVICE: [u8; 2] = [0x5b, 0x82];
    pub(super) const ACQUIRE: [u8; 2] = [0x5b, 0x23];
    pub(super) const RELEASE: [u8; 2] = [0x5b, 0x27];
    pub(super) const LOCAL0: u8 = 0x60;
    pub(super) const ARG0: u8 = 0x68;
    pub(super) const ARG1: u8 = 0x69;
    pub(super) const STORE: u8 = 0x70;
    pub(super) const AND: u8 = 0x7b;
    pub(super) const NOTIFY: u8 = 0x86;
    pub(super) const IF: u8 = 0xa0;
    pub(super) const ONE: u8 = 0x01;
    pub(super) const NULL_NAME: u8 = 0x00;
}

/// In a method's flags: one at a time.
const SERIALIZED: u8 = 1 << 3;
/// Wait for a mutex without end.
const FOREVER: [u8; 2] = [0xff; 2];
/// Notification that a function is to go (ACPI 6.5 table 5.163).
const EJECT_REQUEST: u8 = 3;

/// The slots of segment `.0`, as a part of its root.
pub(super) struct Slots(pub(super) u16);

impl Aml for Slots {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // Segments are fewer than 256: see `layout::MAX_SEGMENTS`.
        let segment = self.0 as u8;
        let mut bytes = Vec::with_capacity(2304);
        for slot in 0..layout::PCI_SLOTS {
            put_slot(&mut bytes, segment, slot);
        }
        put_notifier(&mut bytes);
        put_scan(&mut bytes, segment);
        sink.vec(&bytes);
    }
}

/// `\\_SB_.PHPR.name`.
fn controller(bytes: &mut Vec<u8>, name: [u8; 4]) {
    bytes.extend_from_slice(b"\\\x2f\x03_SB_PHPR");
    bytes.extend_from_slice(&name);
}

/// `S000` to `S031`, as slots are called.
fn name(slot: u8) -> [u8; 4] {
    [b'S', b'0', b'0' + slot / 10, b'0' + slot % 10]
}

/// Something with a length before it that counts itself.
fn package(bytes: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    let at = bytes.len();
    bytes.push(0);
    put(bytes);
    let length = bytes.len() - at;
    if length < 0x40 {
        bytes[at] = length as u8;
    } else {
        // Two bytes more hold lengths up to 1 MiB; one package here is longer than 63 bytes, and far below that.
        let length = length + 2;
        let encoded = [0x80 | (length & 0xf) as u8, (length >> 4) as u8, (length >> 12) as u8];
        bytes.splice(at..=at, encoded);
    }
}

fn put_method(bytes: &mut Vec<u8>, name: [u8; 4], arguments: u8, put: impl FnOnce(&mut Vec<u8>)) {
    bytes.push(op::METHOD);
    package(bytes, |bytes| {
        bytes.extend_from_slice(&name);
        bytes.push(arguments | SERIALIZED);
        put(bytes);
    });
}

/// A slot: its number, its address, and how the guest gives back what is in it.
fn put_slot(bytes: &mut Vec<u8>, segment: u8, slot: u8) {
    bytes.extend_from_slice(&op::DEVICE);
    package(bytes, |bytes| {
        bytes.extend_from_slice(&name(slot));
        bytes.extend_from_slice(&[op::NAME, b'_', b'S', b'U', b'N', op::BYTE, slot]);
        // Device number above function number.
        bytes.extend_from_slice(&[op::NAME, b'_', b'A', b'D', b'R', op::DWORD, 0, 0, slot, 0]);
        put_method(bytes, *b"_EJ0", 1, |bytes| {
            controller(bytes, *b"PCEJ");
            bytes.extend_from_slice(&[op::BYTE, slot, op::BYTE, segment]);
        });
    });
}

/// `DVNT(slots, value)`: notifies each of these slots.
fn put_notifier(bytes: &mut Vec<u8>) {
    put_method(bytes, *b"DVNT", 2, |bytes| {
        for slot in 0..layout::PCI_SLOTS {
            let bit = (1u32 << slot).to_le_bytes();
            bytes.push(op::IF);
            package(bytes, |bytes| {
                bytes.extend_from_slice(&[op::AND, op::ARG0, op::DWORD]);
                bytes.extend_from_slice(&bit);
                bytes.extend_from_slice(&[op::NULL_NAME, op::NOTIFY]);
                bytes.extend_from_slice(&name(slot));
                bytes.push(op::ARG1);
            });
        }
    });
}

/// `PCNT()`: asks the controller what changed in this segment, and notifies.
fn put_scan(bytes: &mut Vec<u8>, segment: u8) {
    put_method(bytes, *b"PCNT", 0, |bytes| {
        bytes.extend_from_slice(&op::ACQUIRE);
        controller(bytes, *b"BLCK");
        bytes.extend_from_slice(&FOREVER);
        bytes.extend_from_slice(&[op::STORE, op::BYTE, segment]);
        controller(bytes, *b"PSEG");
        // What is to go is told first: a slot may have been emptied and filled again.
        for (register, value) in [(*b"PCID", &[op::BYTE, EJECT_REQUEST][..]), (*b"PCIU", &[op::ONE][..])] {
            bytes.push(op::STORE);
            controller(bytes, register);
            bytes.push(op::LOCAL0);
            bytes.extend_from_slice(b"DVNT");
            bytes.push(op::LOCAL0);
            bytes.extend_from_slice(value);
        }
        bytes.extend_from_slice(&op::RELEASE);
        controller(bytes, *b"BLCK");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_count_their_own_length() {
        for length in [0, 1, 62, 63, 64, 600, 5000] {
            let mut bytes = vec![7];
            package(&mut bytes, |bytes| bytes.resize(1 + 1 + length, 9));
            let told = match bytes[1] >> 6 {
                0 => usize::from(bytes[1]),
                2 => usize::from(bytes[1] & 0xf) | usize::from(bytes[2]) << 4 | usize::from(bytes[3]) << 12,
                other => panic!("{other}"),
            };
            assert_eq!((told, bytes.iter().filter(|b| **b == 9).count() >= length), (bytes.len() - 1, true));
        }
        assert_eq!((name(0), name(9), name(31)), (*b"S000", *b"S009", *b"S031"));
    }
}
