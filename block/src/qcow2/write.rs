//! Making places for data, and taking them away.

use std::io;

use super::state::{Entry, State, aligned, be64, compressed_range, data_entry, l2_index, set_be64};
use super::{COMPRESSED, COPIED, Layout, OFFSET, ZERO};

impl State {
    /// Makes a place for the cluster around `offset`; returns where it begins in the file.
    pub(super) fn make_place(&mut self, layout: &Layout, offset: u64) -> io::Result<u64> {
        self.make_room(layout)?;
        let table = self.writable_l2(layout, offset)?;
        let index = l2_index(layout, offset);
        let entry = be64(self.l2.get(&layout.storage, table)?, index);
        let cluster = layout.cluster();
        let start = offset & !(cluster - 1);
        let found = data_entry(layout, entry)?;
        let place = match found {
            Entry::Data(at) if entry & COPIED != 0 => {
                self.check_data(layout, at)?;
                return Ok(at);
            }
            Entry::Zeros(Some(at)) if entry & COPIED != 0 => {
                self.check_data(layout, at)?;
                layout.storage.zero_at(at, cluster)?;
                self.unsettled = true;
                at
            }
            _ => {
                let place = self.allocate(layout)?;
                let has_content = match found {
                    Entry::Compressed | Entry::Data(_) => true,
                    Entry::Zeros(_) => false,
                    Entry::Absent => layout.is_backed(start),
                };
                if has_content {
                    self.copy(layout, start, place)
                        .inspect_err(|_| self.freed[0].push(place >> layout.cluster_bits))?;
                }
                self.release(layout, entry)?;
                place
            }
        };
        set_be64(self.l2.change(&layout.storage, table)?, index, place | COPIED);
        Ok(place)
    }

    /// Copies what a cluster reads as to another place.
    fn copy(&mut self, layout: &Layout, start: u64, place: u64) -> io::Result<()> {
        let mut bytes = vec![0; layout.cluster() as usize];
        self.read(layout, start, &mut bytes)?;
        self.unsettled = true;
        // The place is zero already.
        if bytes.iter().any(|byte| *byte != 0) { layout.storage.write_at(place, &bytes) } else { Ok(()) }
    }

    /// Has a range within one cluster read as zeros.
    pub(super) fn zero(
        &mut self,
        layout: &Layout,
        offset: u64,
        length: u64,
        may_free: bool,
    ) -> io::Result<()> {
        let cluster = layout.cluster();
        let start = offset & !(cluster - 1);
        let whole = length >= cluster.min(self.size - start) && offset == start;
        let entry = self.entry(layout, offset)?;
        let found = data_entry(layout, entry)?;
        match found {
            Entry::Absent if !layout.is_backed(start) => return Ok(()),
            Entry::Zeros(None) => return Ok(()),
            Entry::Zeros(Some(_)) if !(whole && may_free) => return Ok(()),
            _ => {}
        }
        // Version 2 has no way to say that there are zeros where the backing image has something else.
        if !whole || (layout.version < 3 && layout.is_backed(start)) {
            let place = self.make_place(layout, offset)?;
            return layout.storage.zero_at(place + (offset - start), length);
        }
        self.make_room(layout)?;
        let table = self.writable_l2(layout, offset)?;
        let keep = match found {
            Entry::Data(at) | Entry::Zeros(Some(at))
                if !may_free && entry & COPIED != 0 && layout.version >= 3 =>
            {
                self.check_data(layout, at)?;
                at | COPIED
            }
            _ => 0,
        };
        let flag = if layout.version >= 3 && (keep != 0 || layout.is_backed(start)) { ZERO } else { 0 };
        let index = l2_index(layout, offset);
        set_be64(self.l2.change(&layout.storage, table)?, index, keep | flag);
        if keep == 0 { self.release(layout, entry) } else { Ok(()) }
    }

    /// The clusters that an entry refers to are used once less, as soon as that is in the file.
    fn release(&mut self, layout: &Layout, entry: u64) -> io::Result<()> {
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
