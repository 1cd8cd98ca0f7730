//! Room for a device's own memory that remembers what was put there.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Aperture, ApertureNeed, DeviceError, Mapping, Span};

/// Where the first aperture of a device is at the earliest.
pub const APERTURES: u64 = 1 << 40;

/// See the module.
pub struct FakeAperture {
    span: Span,
    mappings: Mutex<Vec<(u64, Arc<Mapping>)>>,
}

impl FakeAperture {
    /// Room for these needs, one behind the other.
    pub fn all(needs: &[ApertureNeed]) -> Vec<Arc<FakeAperture>> {
        let mut next = APERTURES;
        let place = |need: &ApertureNeed| {
            let span = Span { base: next.next_multiple_of(need.align), length: need.length };
            next = span.end();
            Arc::new(FakeAperture { span, mappings: Mutex::default() })
        };
        needs.iter().map(place).collect()
    }

    /// What was put there, with the offsets.
    pub fn mappings(&self) -> Vec<(u64, Arc<Mapping>)> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Aperture for FakeAperture {
    fn span(&self) -> Span {
        self.span
    }

    fn put(&self, offset: u64, mapping: Arc<Mapping>) -> Result<(), DeviceError> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner).push((offset, mapping));
        Ok(())
    }
}
