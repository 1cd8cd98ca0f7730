//! Where everything is: identity, capabilities and BAR 0 of a virtio function (virtio 1.3 §4.1.2 to §4.1.4).

use device::{
    BarKind, BarNeed, Capability, DoorbellNeed, MsixNeed, Needs, PciIdentity, PciNeeds, Region, VirtioKind,
};

/// The BAR that holds all structures.
pub(super) const BAR: u8 = 0;
/// Its size.
pub(super) const BAR_SIZE: u64 = 0x8_0000;

/// A structure's place in the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// Common configuration, without the registers of features that are not offered.
pub(super) const COMMON: Place = Place { offset: 0, length: 56 };
/// Interrupt status.
pub(super) const ISR: Place = Place { offset: 0x2000, length: 1 };
/// The device's own configuration.
pub(super) const DEVICE: Place = Place { offset: 0x4000, length: 0x1000 };
/// Doorbells.
pub(super) const NOTIFY: Place = Place { offset: 0x6000, length: 0x1000 };
/// Distance of two queues' doorbells.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
/// MSI-X table.
const MSIX_TABLE: u32 = 0x8000;
/// MSI-X pending bits.
const MSIX_PENDING: u32 = 0x4_8000;

/// Most queues that have a doorbell.
pub(super) const MAX_QUEUES: usize = (NOTIFY.length / NOTIFY_MULTIPLIER) as usize;

/// `cfg_type` of a virtio capability (virtio 1.3 §4.1.4).
mod cfg_type {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

/// The body of the `pci_cfg` capability: offsets after ID and next pointer.
pub(super) mod pci_cfg {
    use std::ops::Range;

    /// The BAR to access.
    pub(in crate::transport::pci) const BAR: usize = 2;
    /// Offset in the BAR.
    pub(in crate::transport::pci) const OFFSET: Range<usize> = 6..10;
    /// Width of the access.
    pub(in crate::transport::pci) const LENGTH: Range<usize> = 10..14;
    /// The bytes read or written.
    pub(in crate::transport::pci) const DATA: Range<usize> = 14..18;
    /// Length of the body.
    pub(in crate::transport::pci) const BODY: usize = 18;
}

/// Vendor-specific capability (PCI Local Bus 3.0, appendix H).
const VENDOR_SPECIFIC: u8 = 0x09;
/// Length of `struct virtio_pci_cap`.
const CAP_LENGTH: u8 = 16;

/// A `struct virtio_pci_cap` without ID and next pointer, with `more` behind it.
fn capability(kind: u8, place: Place, more: &[u8]) -> Capability {
    let length = CAP_LENGTH + more.len() as u8;
    let mut body = vec![length, kind, BAR, 0, 0, 0];
    body.extend(place.offset.to_le_bytes());
    body.extend(place.length.to_le_bytes());
    body.extend(more);
    Capability { id: VENDOR_SPECIFIC, body, live: kind == cfg_type::PCI }
}

/// Class codes: network and storage controllers have their own, everything else is unclassified.
fn class(kind: VirtioKind) -> u32 {
    match kind {
        VirtioKind::Net => 0x02_0000,
        VirtioKind::Block => 0x01_8000,
        _ => 0xff_ff00,
    }
}

/// The doorbell of a queue.
pub(super) fn doorbell(queue: usize) -> DoorbellNeed {
    let offset = u64::from(NOTIFY.offset) + u64::from(NOTIFY_MULTIPLIER) * queue as u64;
    DoorbellNeed { region: Region::Bar(BAR), offset }
}

/// Largest number of a device type that has a PCI device ID (virtio 1.3 §4.1.2).
pub const MAX_TYPE: u16 = 0x3f;

/// Everything the function of a device of this type needs; `queues` is at most [`MAX_QUEUES`].
pub(super) fn needs(number: u16, queues: usize, has_config: bool, bar: BarKind) -> Needs {
    const VENDOR: u16 = 0x1af4;
    const FIRST_DEVICE: u16 = 0x1040;
    let (device, kind) = (FIRST_DEVICE + number, VirtioKind::of(number));
    let mut capabilities =
        vec![capability(cfg_type::COMMON, COMMON, &[]), capability(cfg_type::ISR, ISR, &[])];
    if has_config {
        capabilities.push(capability(cfg_type::DEVICE, DEVICE, &[]));
    }
    capabilities.push(capability(cfg_type::NOTIFY, NOTIFY, &NOTIFY_MULTIPLIER.to_le_bytes()));
    capabilities.push(capability(cfg_type::PCI, Place { offset: 0, length: 0 }, &[0; 4]));
    let pci = PciNeeds {
        identity: PciIdentity {
            vendor: VENDOR,
            device,
            revision: 1,
            class: class(kind),
            subsystem_vendor: VENDOR,
            subsystem: device,
        },
        bars: vec![BarNeed { index: BAR, size: BAR_SIZE, kind: bar }],
        capabilities,
        msix: Some(MsixNeed {
            vectors: queues as u16 + 1,
            bar: BAR,
            table: MSIX_TABLE,
            pending: MSIX_PENDING,
        }),
        apertures: Vec::new(),
    };
    let doorbells = (0..queues).map(doorbell).collect();
    Needs { pci: Some(pci), doorbells, ..Needs::default() }
}
