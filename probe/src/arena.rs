//! Memory for queues and buffers: RAM behind the image, handed out upwards and taken back all at once between tests.

use crate::io::Region;
use crate::start::{RAM, Start};

/// The unused part of the RAM that the probe runs in.
#[derive(Debug)]
pub(crate) struct Arena {
    whole: Region,
    used: u64,
}

unsafe extern "C" {
    static image_end: u8;
}

impl Arena {
    /// Everything from the end of the image to the end of that piece of RAM or the first module, at most 256 MiB.
    pub(crate) fn new(start: &Start) -> Option<Arena> {
        let base = ((&raw const image_end) as u64).next_multiple_of(1 << 20);
        let piece = start.map().find(|e| e.kind == RAM && e.base <= base && base < e.base + e.len)?;
        let mut end = (piece.base + piece.len).min(base + (256 << 20));
        for (address, _) in start.modules() {
            if address >= base {
                end = end.min(address);
            }
        }
        // SAFETY: RAM that nothing of the probe lives in: behind the image, before any module; the start-up structures are
        // in the first MiB.
        let whole = unsafe { Region::new(base, end.checked_sub(base)?) };
        Some(Arena { whole, used: 0 })
    }

    /// `len` zeroed bytes aligned to `align`, a power of two.
    ///
    /// # Panics
    /// When there is not that much left.
    #[track_caller]
    pub(crate) fn take(&mut self, len: u64, align: u64) -> Region {
        let offset = (self.whole.base() + self.used).next_multiple_of(align) - self.whole.base();
        let region = self.whole.part(offset, len);
        self.used = offset + len;
        region.fill(0);
        region
    }

    /// How much is handed out, to come back to.
    pub(crate) fn mark(&self) -> u64 {
        self.used
    }

    /// Takes everything back that was handed out since the mark. The caller sees to it that no device uses it any more.
    pub(crate) fn rewind(&mut self, mark: u64) {
        self.used = self.used.min(mark);
    }

    /// Takes everything back. The caller sees to it that no device uses it any more.
    pub(crate) fn reset(&mut self) {
        self.used = 0;
    }

    /// The whole of it.
    pub(crate) fn whole(&self) -> Region {
        self.whole
    }
}
