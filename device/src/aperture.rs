//! Memory of a device's own that the guest reaches without an exit: the pages of a file, or of another device.
//!
//! A device says how much room it needs ([`ApertureNeed`]); the board finds guest-physical addresses for it, above RAM, and grants
//! an [`Aperture`], behind which the device puts [`Mapping`]s. What is there is no RAM: no device finds buffers or rings in it, and
//! no snapshot has it.

use std::sync::Arc;

use crate::{DeviceError, Mapping, Span};

/// Room among the guest's physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApertureNeed {
    /// Bytes, a multiple of 4 KiB and not zero.
    pub length: u64,
    /// The first address is a multiple of this, a power of two from 4 KiB on.
    pub align: u64,
}

/// Room that was granted. Dropping it takes what is behind it away from the guest, and then gives up the mappings.
pub trait Aperture: Send + Sync {
    /// The addresses. Where nothing was put, the guest finds nothing.
    fn span(&self) -> Span;

    /// Lets the guest see a mapping, `offset` bytes from the beginning; it is held as long as the guest sees it. Writes of the guest
    /// to a mapping that is read-only are dropped.
    ///
    /// # Errors
    /// It does not lie within the aperture, or the hypervisor refused.
    fn put(&self, offset: u64, mapping: Arc<Mapping>) -> Result<(), DeviceError>;
}
