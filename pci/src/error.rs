//! What can be wrong with a function or its place.

use device::{Span, StateError};
use thiserror::Error;

/// Why a function could not be placed or plugged.
#[derive(Debug, Error)]
pub enum PciError {
    /// The device asked for no PCI function.
    #[error("the device is no PCI function")]
    NoFunction,
    /// No slot is free.
    #[error("all slots of PCI segment {segment} are in use")]
    SlotsExhausted {
        /// The segment.
        segment: u16,
    },
    /// The slot asked for is taken.
    #[error("slot {slot} of PCI segment {segment} is in use")]
    SlotTaken {
        /// The segment.
        segment: u16,
        /// The slot.
        slot: u8,
    },
    /// There is no such slot.
    #[error("PCI segment {segment} has no slot {slot}")]
    NoSlot {
        /// The segment.
        segment: u16,
        /// The slot.
        slot: u8,
    },
    /// A base address register that PCI cannot express.
    #[error("BAR {index} of {size:#x} bytes cannot be")]
    Bar {
        /// Its number.
        index: u8,
        /// Its size.
        size: u64,
    },
    /// A window has no room for a BAR.
    #[error("PCI segment {segment} has no room for BAR {index} of {size:#x} bytes")]
    WindowExhausted {
        /// The segment.
        segment: u16,
        /// The BAR's number.
        index: u8,
        /// Its size.
        size: u64,
    },
    /// A window has no room for an aperture.
    #[error("PCI segment {segment} has no room for {length:#x} bytes of memory")]
    ApertureExhausted {
        /// The segment.
        segment: u16,
        /// Bytes asked for.
        length: u64,
    },
    /// An aperture's saved place cannot be had again.
    #[error("memory cannot be at {:#x}+{:#x} again", span.base, span.length)]
    ApertureReplay {
        /// Where it was.
        span: Span,
    },
    /// The memory of a device has another size than the guest knows.
    #[error("the guest knows the device in slot {slot} with {had} bytes of memory, and it has {needed} now")]
    ApertureLength {
        /// The slot.
        slot: u8,
        /// Bytes when it was saved.
        had: u64,
        /// Bytes now.
        needed: u64,
    },
    /// A saved place cannot be had again.
    #[error("BAR {index} cannot be at {:#x}+{:#x} again", span.base, span.length)]
    Replay {
        /// The BAR's number.
        index: u8,
        /// Where it was.
        span: Span,
    },
    /// A saved place that belongs to another device.
    #[error("the saved place of slot {slot} does not fit the device")]
    Foreign {
        /// The slot.
        slot: u8,
    },
    /// A saved state that is not one of this function.
    #[error("cannot restore the function in slot {slot}")]
    State {
        /// The slot.
        slot: u8,
        /// What is wrong with it.
        #[source]
        source: StateError,
    },
    /// The capabilities exceed configuration space.
    #[error("capabilities of {length} bytes exceed configuration space")]
    Capabilities {
        /// Length of the chain.
        length: usize,
    },
    /// MSI-X structures that do not fit their BAR, or an impossible number of vectors.
    #[error("MSI-X structures for {vectors} vectors do not fit")]
    Msix {
        /// Number of vectors.
        vectors: u16,
    },
    /// No eventfd could be made for a doorbell.
    #[error("cannot make a doorbell")]
    Doorbell(#[source] std::io::Error),
}
