//! Making places for data, and taking them away.

use std::io;
use std::ops::Range;

use super::entry::{Cluster, Plain, Raw, bits};
use super::state::{State, aligned, compressed_range};
use super::{COMPRESSED, COPIED, Layout, OFFSET};

impl State {
    /// Makes a place for the bytes from `offset` on, as far as they are in one cluster; returns where the cluster begins in the file.
    pub(super) fn make_place(&mut self, layout: &Layout, offset: u64, length: u64) -> io::Result<u64> {
        self.make_room(layout)?;
        let table = self.writable_l2(layout, offset)?;
        let entry = self.entry(layout, offset)?;
        let start = offset & !(layout.cluster() - 1);
        let wanted = layout.parts_of(offset, length);
        let found = entry.decode(layout)?;
        let (place, plain) = match found {
            Cluster::Plain(plain @ Plain { at: Some(at), own: true, .. }) => {
                self.check_data(layout, at)?;
                let missing = wanted & !plain.data;
                if missing == 0 {
                    return Ok(at);
                }
                // Whatever is there from before is not to be seen.
                for part in runs(missing & plain.zeros) {
                    let (from, length) = extent(layout, &part);
                    layout.storage.zero_at(at + from, length)?;
                    self.unsettled = true;
                }
                self.copy(layout, start, at, missing & !plain.zeros, false)?;
                (at, plain)
            }
            _ => {
                let place = self.allocate(layout)?;
                let (plain, content) = match found {
                    Cluster::Compressed => {
                        let all = layout.all_parts();
                        (Plain { data: all, ..Plain::default() }, all)
                    }
                    Cluster::Plain(plain) => (plain, plain.data | wanted & plain.filled(layout, start)),
                };
                self.copy(layout, start, place, content, true)
                    .inspect_err(|_| self.freed[0].push(place >> layout.cluster_bits))?;
                self.release(layout, entry)?;
                (place, plain)
            }
        };
        let (data, zeros) = (plain.data | wanted, plain.zeros & !wanted);
        let entry = Plain { at: Some(place), own: true, data, zeros }.encode(layout);
        self.set_entry(layout, table, offset, entry)?;
        Ok(place)
    }

    /// Copies what these parts of a cluster read as to another place, which has zeros if it is `fresh`.
    fn copy(&mut self, layout: &Layout, start: u64, place: u64, parts: u32, fresh: bool) -> io::Result<()> {
        for part in runs(parts) {
            let (from, length) = extent(layout, &part);
            let mut bytes = vec![0; length as usize];
            self.read(layout, start + from, &mut bytes)?;
            self.unsettled = true;
            if bytes.iter().any(|byte| *byte != 0) {
                layout.storage.write_at(place + from, &bytes)?;
            } else if !fresh {
                layout.storage.zero_at(place + from, length)?;
            }
        }
        Ok(())
    }

    /// Has a range within one cluster read as zeros.
    pub(super) fn zero(
        &mut self,
        layout: &Layout,
        offset: u64,
        length: u64,
        may_free: bool,
    ) -> io::Result<()> {
        let unit = layout.subcluster();
        let start = offset & !(layout.cluster() - 1);
        let end = offset + length;
        // The last part may reach past the end of the disk.
        let past = if end >= self.size { end.next_multiple_of(unit) } else { end };
        let (from, to) = (offset.next_multiple_of(unit), past & !(unit - 1));
        // Version 2 has no way to say that there are zeros where the backing image has something else.
        if from >= to || (layout.version < 3 && layout.is_backed(start)) {
            return self.overwrite(layout, offset..end);
        }
        self.overwrite(layout, offset..from)?;
        self.zero_parts(layout, start, bits(parts(unit, from - start), parts(unit, to - start)), may_free)?;
        self.overwrite(layout, to..end)
    }

    /// Writes zeros over a range within one cluster, where there is something else.
    fn overwrite(&mut self, layout: &Layout, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let (offset, length) = (range.start, range.end - range.start);
        let start = offset & !(layout.cluster() - 1);
        if let Cluster::Plain(plain) = self.entry(layout, offset)?.decode(layout)?
            && plain.filled(layout, start) & layout.parts_of(offset, length) == 0
        {
            return Ok(());
        }
        let place = self.make_place(layout, offset, length)?;
        layout.storage.zero_at(place + (offset - start), length)
    }

    /// Has whole parts of a cluster read as zeros.
    fn zero_parts(&mut self, layout: &Layout, start: u64, wanted: u32, may_free: bool) -> io::Result<()> {
        let entry = self.entry(layout, start)?;
        let all = layout.all_parts();
        let plain = match entry.decode(layout)? {
            Cluster::Plain(plain) => plain,
            Cluster::Compressed if wanted == all => Plain::default(),
            Cluster::Compressed => {
                self.make_place(layout, start, layout.cluster())?;
                return self.zero_parts(layout, start, wanted, may_free);
            }
        };
        let compressed = entry.descriptor & COMPRESSED != 0;
        let nothing = plain.filled(layout, start) & wanted == 0;
        // What reads as zeros already is of interest only if a place can be given back.
        if !compressed && nothing && (plain.at.is_none() || !may_free || plain.data != 0) {
            return Ok(());
        }
        self.make_room(layout)?;
        let table = self.writable_l2(layout, start)?;
        let data = plain.data & !wanted;
        let keeps = match plain.at {
            Some(at) if data != 0 || (!may_free && plain.own && layout.version >= 3) => Some(at),
            _ => None,
        };
        let mut zeros = plain.zeros | wanted;
        if let Some(at) = keeps {
            if plain.own {
                self.check_data(layout, at)?;
                if may_free {
                    for part in runs(wanted & plain.data) {
                        let (from, length) = extent(layout, &part);
                        // Its space goes back to the host; that it cannot is nothing wrong.
                        let _ = layout.storage.punch_at(at + from, length);
                    }
                }
            }
        } else if layout.version < 3 || !layout.is_backed(start) {
            zeros = 0;
        }
        let changed = Plain { at: keeps, own: plain.own && keeps.is_some(), data, zeros };
        self.set_entry(layout, table, start, changed.encode(layout))?;
        if keeps.is_none() { self.release(layout, entry) } else { Ok(()) }
    }

    /// The clusters that an entry refers to are used once less, as soon as that is in the file.
    fn release(&mut self, layout: &Layout, entry: Raw) -> io::Result<()> {
        let entry = entry.descriptor;
        if entry & COMPRESSED != 0 {
            let (at, length) = compressed_range(layout, entry);
            let bits = layout.cluster_bits;
            let last = (at + length - 1).min(layout.storage.length().saturating_sub(1)) >> bits;
            self.freed[0].extend(at >> bits..=last);
            self.forget_decompressed();
        } else if entry & OFFSET != 0 {
            self.freed[0].push(aligned(layout, entry & OFFSET, "a cluster")?);
        }
        Ok(())
    }

    /// An error unless a cluster may be written as data.
    fn check_data(&self, layout: &Layout, at: u64) -> io::Result<()> {
        let number = at >> layout.cluster_bits;
        if number >= self.end {
            return Err(layout.corrupt("a cluster of data is past the end of the file"));
        }
        if self.metadata.contains(&number) {
            return Err(layout.corrupt("a cluster of data is where metadata is"));
        }
        Ok(())
    }

    /// The position of the L2 table for `offset`, which exists afterwards and is no snapshot's.
    fn writable_l2(&mut self, layout: &Layout, offset: u64) -> io::Result<u64> {
        let index = (offset >> (layout.cluster_bits + layout.l2_bits())) as usize;
        let old = self.l2_at(layout, offset)?;
        let entry = self.l1.get(index).copied().unwrap_or(0);
        if old != 0 && entry & COPIED != 0 {
            return Ok(old);
        }
        let bytes = match old {
            0 => vec![0; layout.cluster() as usize].into_boxed_slice(),
            old => self.l2.get(&layout.storage, old)?.into(),
        };
        let at = self.allocate(layout)?;
        self.metadata.insert(at >> layout.cluster_bits);
        self.l2.insert(at, bytes);
        self.l1[index] = at | COPIED;
        self.l1_dirty.insert(index * 8 / 512);
        if old != 0 {
            // It goes on being a snapshot's, and metadata.
            self.freed[0].push(old >> layout.cluster_bits);
        }
        Ok(at)
    }
}

/// Runs of bits that are set, as ranges of parts.
fn runs(mut bits: u32) -> impl Iterator<Item = Range<u32>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let skip = bits.trailing_zeros();
        let length = (bits >> skip).trailing_ones();
        let run = at + skip..at + skip + length;
        at = run.end;
        // A shift by 32 takes two steps.
        bits = bits >> skip >> (length - 1) >> 1;
        Some(run)
    })
}

/// Where parts begin in their cluster, and how many bytes they have.
fn extent(layout: &Layout, part: &Range<u32>) -> (u64, u64) {
    let unit = layout.subcluster();
    (u64::from(part.start) * unit, u64::from(part.end - part.start) * unit)
}

/// How many parts these bytes are; at most 32.
fn parts(unit: u64, bytes: u64) -> u32 {
    (bytes / unit) as u32
}
