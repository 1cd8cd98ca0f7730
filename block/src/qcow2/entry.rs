//! What an L2 entry says ("L2 table entry", "Extended L2 Entries").
//!
//! A standard entry has 64 bits and speaks of a cluster as a whole. An extended one has 64 more, and speaks of each of 32 subclusters.
//! Here both are the same: a cluster has [`Layout::subclusters`] parts, one or 32, and each part has its bit.

use std::io;

use super::{COMPRESSED, COPIED, Layout, OFFSET, ZERO};

/// An entry as it is in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) descriptor: u64,
    /// The second half of an extended entry: which parts have data, and above them which read as zeros.
    pub(super) parts: u64,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// The whole cluster is compressed.
    Compressed,
    /// It is not.
    Plain(Plain),
}

/// A cluster that is not compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plain {
    /// Where it is in the file; perhaps only in reserve.
    pub(super) at: Option<u64>,
    /// Nobody else uses that place.
    pub(super) own: bool,
    /// Bits of parts that are in the file.
    pub(super) data: u32,
    /// Bits of parts that read as zeros. What has no bit is in the backing image, or nowhere.
    pub(super) zeros: u32,
}

/// Where a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Nowhere, or where the backing image has it.
    Absent,
    /// It reads as zeros.
    Zeros,
    /// In the file; the cluster begins here.
    Data(u64),
}

impl Raw {
    /// What the entry says.
    ///
    /// # Errors
    /// What cannot be.
    pub(super) fn decode(self, layout: &Layout) -> io::Result<Cluster> {
        let Raw { descriptor, parts } = self;
        if descriptor & COMPRESSED != 0 {
            return Ok(Cluster::Compressed);
        }
        let at = descriptor & OFFSET;
        if !at.is_multiple_of(layout.cluster()) {
            return Err(layout.corrupt("a cluster is not aligned"));
        }
        let at = (at != 0).then_some(at);
        let flag = layout.version >= 3 && descriptor & ZERO != 0;
        let (data, zeros) = match layout.extended {
            true => (parts as u32, (parts >> 32) as u32),
            false => (u32::from(!flag && at.is_some()), u32::from(flag)),
        };
        if data & zeros != 0 {
            return Err(layout.corrupt("a subcluster has data and reads as zeros"));
        }
        if data != 0 && at.is_none() {
            return Err(layout.corrupt("a subcluster has data in no cluster"));
        }
        if layout.extended && flag {
            return Err(layout.corrupt("an extended entry has a flag of standard ones"));
        }
        Ok(Cluster::Plain(Plain { at, own: descriptor & COPIED != 0, data, zeros }))
    }
}

impl Plain {
    /// The entry that says this.
    pub(super) fn encode(self, layout: &Layout) -> Raw {
        let place = self.at.map_or(0, |at| at | if self.own { COPIED } else { 0 });
        match layout.extended {
            true => Raw { descriptor: place, parts: u64::from(self.zeros) << 32 | u64::from(self.data) },
            false => Raw { descriptor: place | if self.zeros != 0 { ZERO } else { 0 }, parts: 0 },
        }
    }

    /// Where a part is.
    pub(super) fn part(&self, index: u32) -> Part {
        match self.at {
            _ if self.zeros >> index & 1 != 0 => Part::Zeros,
            Some(at) if self.data >> index & 1 != 0 => Part::Data(at),
            _ => Part::Absent,
        }
    }

    /// How many parts from this one on are alike.
    pub(super) fn alike(&self, index: u32, layout: &Layout) -> u32 {
        let same = |bits: u32| if bits >> index & 1 != 0 { bits } else { !bits };
        (((same(self.data) & same(self.zeros)) >> index).trailing_ones()).min(layout.subclusters() - index)
    }

    /// Bits of parts that may have something other than zeros.
    pub(super) fn filled(&self, layout: &Layout, start: u64) -> u32 {
        let backed = (0..layout.subclusters())
            .filter(|index| layout.is_backed(start + u64::from(*index) * layout.subcluster()))
            .fold(0, |bits, index| bits | 1 << index);
        (self.data | backed) & !self.zeros
    }
}

impl Layout {
    /// Parts of a cluster.
    pub(super) fn subclusters(&self) -> u32 {
        if self.extended { 32 } else { 1 }
    }

    /// Bytes of a part.
    pub(super) fn subcluster(&self) -> u64 {
        self.cluster() / u64::from(self.subclusters())
    }

    /// The number of the part that a position is in.
    pub(super) fn part_at(&self, offset: u64) -> u32 {
        // Less than 32.
        ((offset & (self.cluster() - 1)) / self.subcluster()) as u32
    }

    /// Bits of the parts that a range touches, as far as it is in the cluster in which it begins; it is not empty.
    pub(super) fn parts_of(&self, offset: u64, length: u64) -> u32 {
        let end = (offset & !(self.cluster() - 1)).saturating_add(self.cluster());
        let last = offset.saturating_add(length.max(1)).min(end) - 1;
        bits(self.part_at(offset), self.part_at(last) + 1)
    }

    /// Bits of all parts.
    pub(super) fn all_parts(&self) -> u32 {
        bits(0, self.subclusters())
    }
}

/// Bits from `first` to before `end`, at most 32.
pub(super) fn bits(first: u32, end: u32) -> u32 {
    // In 64 bits, since `end` may be 32.
    ((1u64 << end) - (1u64 << first.min(end))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_alike_are_counted() {
        assert_eq!(
            (bits(0, 32), bits(0, 1), bits(4, 6), bits(3, 3), bits(31, 32)),
            (!0, 1, 0x30, 0, 1 << 31)
        );
        let plain = Plain { at: Some(0x1_0000), own: true, data: 0xf0, zeros: 0x8000_0001 };
        let parts = |index| plain.part(index);
        assert_eq!(
            (parts(0), parts(1), parts(4), parts(31)),
            (Part::Zeros, Part::Absent, Part::Data(0x1_0000), Part::Zeros)
        );
    }
}
