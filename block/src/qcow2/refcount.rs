//! Which clusters are used how often, finding free ones, and the order in which tables go to the file.

use std::io;
use std::sync::atomic::Ordering;

use super::header::{L1_SIZE_AT, MAX_L1, MAX_REFCOUNT_TABLE, REFCOUNT_TABLE_AT, SIZE_AT, l1_entries};
use super::state::{State, aligned};
use super::{Layout, OFFSET};

/// The file grows by at least this much at once, so that not every new cluster takes a system call.
const GROWTH: u64 = 1 << 20;

/// Bytes of released clusters that may wait to be used again, if they are more than a sixteenth of the disk, and how many clusters.
const WAITING: u64 = 64 << 20;
const WAITING_CLUSTERS: u64 = 1 << 20;

/// New space for tables.
struct Reserved {
    /// The first of the clusters asked for.
    first: u64,
}

impl Layout {
    /// Binary logarithm of the counts in a block.
    fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }
}

impl State {
    /// The position of the block that has a cluster's count; `None` if there is none.
    fn block_of(&self, layout: &Layout, number: u64) -> io::Result<Option<u64>> {
        let index = usize::try_from(number >> layout.block_bits()).unwrap_or(usize::MAX);
        match self.refcount_table.get(index).copied().unwrap_or(0) {
            0 => Ok(None),
            at if aligned(layout, at, "a refcount block")? < self.end => Ok(Some(at)),
            _ => Err(layout.corrupt("a refcount block is past the end of the file")),
        }
    }

    /// How often a cluster is used.
    fn count(&mut self, layout: &Layout, number: u64) -> io::Result<u64> {
        let Some(block) = self.block_of(layout, number)? else { return Ok(0) };
        let bytes = self.refcounts.get(&layout.storage, block)?;
        Ok(count_in(bytes, (number & ((1 << layout.block_bits()) - 1)) as usize, layout.refcount_order))
    }

    /// How many clusters there are up to the last one that is used; for images on devices.
    pub(super) fn used(&mut self, layout: &Layout) -> io::Result<u64> {
        let per_block = 1u64 << layout.block_bits();
        let last = self.refcount_table.iter().rposition(|at| *at != 0);
        // A block may be in use only as a block.
        for index in (0..=last.unwrap_or(0) as u64).rev() {
            for number in (index * per_block..((index + 1) * per_block).min(self.end)).rev() {
                if self.count(layout, number)? != 0 {
                    return Ok(number + 1);
                }
            }
        }
        Err(layout.corrupt("no cluster is used"))
    }

    fn set_count(&mut self, layout: &Layout, number: u64, count: u64) -> io::Result<()> {
        let block = self.block_of(layout, number)?;
        let block = block.ok_or_else(|| layout.corrupt("a cluster in use has no reference count"))?;
        let bytes = self.refcounts.change(&layout.storage, block)?;
        set_count_in(
            bytes,
            (number & ((1 << layout.block_bits()) - 1)) as usize,
            layout.refcount_order,
            count,
        );
        Ok(())
    }

    /// Takes a free cluster; it reads as zeros. Returns its position.
    pub(super) fn allocate(&mut self, layout: &Layout) -> io::Result<u64> {
        while self.hint < self.end {
            let number = self.hint;
            if self.block_of(layout, number)?.is_none() {
                // Nobody has counted there; such clusters are left alone.
                let next = (number | ((1 << layout.block_bits()) - 1)) + 1;
                let beyond = (next >> layout.block_bits()) as usize >= self.refcount_table.len();
                // A file may be very much longer than what is counted.
                self.hint = if beyond { self.end } else { next };
                continue;
            }
            self.hint += 1;
            if self.count(layout, number)? == 0 {
                if self.metadata.contains(&number) {
                    return Err(layout.corrupt("a cluster of metadata is counted as free"));
                }
                let at = number << layout.cluster_bits;
                layout.storage.zero_at(at, layout.cluster())?;
                self.set_count(layout, number, 1)?;
                return Ok(at);
            }
        }
        let number = self.end;
        if self.block_of(layout, number)?.is_none() {
            let reserved = self.reserve(layout, 1)?;
            self.hint = self.end;
            return Ok(reserved.first << layout.cluster_bits);
        }
        if self.count(layout, number)? != 0 {
            return Err(layout.corrupt("a cluster past the end of the file is counted as used"));
        }
        self.extend(layout, number + 1)?;
        self.clear_on_device(layout, number, 1)?;
        self.set_count(layout, number, 1)?;
        self.hint = self.end;
        Ok(number << layout.cluster_bits)
    }

    /// Files grow by zeros; on a device there may be anything.
    fn clear_on_device(&self, layout: &Layout, first: u64, count: u64) -> io::Result<()> {
        let bits = layout.cluster_bits;
        if layout.storage.is_device() { layout.storage.zero_at(first << bits, count << bits) } else { Ok(()) }
    }

    /// Makes the file hold so many clusters.
    fn extend(&mut self, layout: &Layout, end: u64) -> io::Result<()> {
        let length = end
            .checked_mul(layout.cluster())
            .filter(|length| *length <= OFFSET)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
        if length > layout.storage.length() {
            if layout.storage.is_device() {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            layout.storage.set_length(length.next_multiple_of(GROWTH))?;
        }
        self.end = end;
        Ok(())
    }

    /// Takes `wanted` clusters in a row at the end of the file, and whatever blocks, and a larger refcount table, that takes. All of
    /// that is in the file afterwards.
    fn reserve(&mut self, layout: &Layout, wanted: u64) -> io::Result<Reserved> {
        let first = self.end;
        let bits = layout.block_bits();
        let per_cluster = layout.cluster() / 8;
        let (mut blocks, mut table): (Vec<u64>, u64) = (Vec::new(), 0);
        let end = loop {
            let end = first + wanted + blocks.len() as u64 + table;
            let last = (end - 1) >> bits;
            let missing: Vec<u64> = (first >> bits..=last)
                .filter(|index| self.refcount_table.get(*index as usize).is_none_or(|at| *at == 0))
                .collect();
            let entries = self.refcount_table.len() as u64;
            // Half as many again, so that this is rare.
            let larger = if last < entries { 0 } else { (last + 1 + last / 2).div_ceil(per_cluster) };
            if missing.len() == blocks.len() && larger <= table {
                blocks = missing;
                break end;
            }
            (blocks, table) = (missing, table.max(larger));
        };
        if table * layout.cluster() > MAX_REFCOUNT_TABLE {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.extend(layout, end)?;
        self.clear_on_device(layout, first, wanted)?;
        if table > 0 {
            self.refcount_table.resize((table * per_cluster) as usize, 0);
        }
        for (index, number) in blocks.iter().zip(first + wanted..) {
            let at = number << layout.cluster_bits;
            self.refcounts.insert(at, vec![0; layout.cluster() as usize].into_boxed_slice());
            self.refcount_table[*index as usize] = at;
            self.metadata.insert(number);
        }
        for number in first..end {
            self.set_count(layout, number, 1)?;
        }
        self.refcounts.write(&layout.storage)?;
        if table > 0 {
            self.move_refcount_table(layout, first + wanted + blocks.len() as u64, table)?;
        } else {
            layout.storage.sync()?;
            self.unsettled = true;
            for index in blocks {
                let at = self.refcount_table[index as usize];
                layout.storage.write_at(self.refcount_table_at + index * 8, &at.to_be_bytes())?;
            }
        }
        Ok(Reserved { first })
    }

    /// Writes the refcount table at another place, and says so in the header.
    fn move_refcount_table(&mut self, layout: &Layout, first: u64, clusters: u64) -> io::Result<()> {
        let at = first << layout.cluster_bits;
        let bytes: Vec<u8> = self.refcount_table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        layout.storage.write_at(at, &bytes)?;
        layout.storage.sync()?;
        let mut fields = [0; 12];
        fields[..8].copy_from_slice(&at.to_be_bytes());
        fields[8..].copy_from_slice(&(clusters as u32).to_be_bytes());
        let mut before = [0; 12];
        layout.storage.read_at(REFCOUNT_TABLE_AT, &mut before)?;
        layout.storage.write_at(REFCOUNT_TABLE_AT, &fields)?;
        layout.storage.sync()?;
        let [a, b, c, d] = [before[8], before[9], before[10], before[11]];
        let old = self.refcount_table_at >> layout.cluster_bits;
        self.refcount_table_at = at;
        self.retire(old, u64::from(u32::from_be_bytes([a, b, c, d])));
        self.metadata.extend(first..first + clusters);
        Ok(())
    }

    /// Clusters that held a table hold it no more.
    fn retire(&mut self, first: u64, count: u64) {
        for number in first..first + count {
            self.metadata.remove(&number);
            self.freed[0].push(number);
        }
    }

    /// Writes tables if too many of them are changed for the next operation to find room, or if too many released clusters wait for
    /// that: until then new ones make the file longer.
    pub(super) fn make_room(&mut self, layout: &Layout) -> io::Result<()> {
        let waiting = self.freed.iter().map(Vec::len).sum::<usize>() as u64;
        let most = (WAITING.max(self.size / 16) >> layout.cluster_bits).clamp(1, WAITING_CLUSTERS);
        if waiting > most || self.l2.is_full() || self.refcounts.is_full() {
            self.flush(layout)
        } else {
            Ok(())
        }
    }

    /// Writes everything that was changed, in an order that is right wherever it ends. The last of it is durable only when the file
    /// is next made so.
    pub(super) fn flush(&mut self, layout: &Layout) -> io::Result<()> {
        let storage = &layout.storage;
        // Counts go up, and what was copied is there, before anything refers to it.
        if self.refcounts.write(storage)? || self.unsettled {
            storage.sync()?;
            self.unsettled = false;
        }
        self.l2.write(storage)?;
        if !self.l1_dirty.is_empty() {
            storage.sync()?;
            while let Some(sector) = self.l1_dirty.first().copied() {
                let entries = self.l1.iter().skip(sector * 64).take(64);
                let bytes: Vec<u8> = entries.flat_map(|entry| entry.to_be_bytes()).collect();
                storage.write_at(self.l1_at + sector as u64 * 512, &bytes)?;
                self.l1_dirty.remove(&sector);
            }
        }
        if self.freed.iter().any(|list| !list.is_empty()) {
            self.let_go(layout)?;
        }
        Ok(())
    }

    /// Counts released clusters down whose release is in the file and to which no write is under way. Every flush that finds the
    /// writes of the generation before ended begins a new generation.
    fn let_go(&mut self, layout: &Layout) -> io::Result<()> {
        let before = usize::from(1 - self.generation);
        if layout.writes[before].load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        let list = std::mem::take(&mut self.freed[1]);
        let mut result = Ok(());
        if !list.is_empty() {
            // What the flush before this one wrote is durable now; so is what this one did.
            layout.storage.sync()?;
            for number in list {
                // Nothing but such counts has changed since the flush, and they may be written at any time.
                if self.refcounts.is_full() {
                    self.refcounts.write(&layout.storage)?;
                }
                // One that is counted wrongly does not keep the others.
                result = result.and(self.count_down(layout, number));
            }
        }
        self.freed.swap(0, 1);
        self.generation = 1 - self.generation;
        result
    }

    fn count_down(&mut self, layout: &Layout, number: u64) -> io::Result<()> {
        match self.count(layout, number)? {
            0 => return Err(layout.corrupt("a cluster in use is counted as free")),
            1 if !self.metadata.contains(&number) => {
                self.set_count(layout, number, 0)?;
                self.hint = self.hint.min(number);
                // Its space goes back to the host; that it cannot is nothing wrong.
                let _ = layout.storage.punch_at(number << layout.cluster_bits, layout.cluster());
            }
            count => self.set_count(layout, number, count - 1)?,
        }
        Ok(())
    }

    /// Writes everything; no write is under way.
    pub(super) fn close(&mut self, layout: &Layout) -> io::Result<()> {
        // What was freed takes two more rounds to be counted so.
        for _ in 0..4 {
            self.flush(layout)?;
        }
        let length = self.end << layout.cluster_bits;
        if layout.storage.length() > length && !layout.storage.is_device() {
            layout.storage.set_length(length)?;
        }
        Ok(())
    }

    /// Makes the disk larger.
    pub(super) fn grow(&mut self, layout: &Layout, size: u64) -> io::Result<()> {
        let refuse = |what: &str| Err(io::Error::new(io::ErrorKind::Unsupported, what.to_owned()));
        if layout.backing.is_some() {
            return refuse("a qcow2 image that builds upon another cannot change its size");
        }
        if size < self.size {
            return refuse("a qcow2 image cannot become smaller");
        }
        let entries = l1_entries(size, layout.cluster_bits, layout.l2_bits());
        if entries * 8 > MAX_L1 || size > i64::MAX as u64 {
            return refuse("a qcow2 image with clusters of this size cannot become so large");
        }
        self.flush(layout)?;
        let old = self.l1.len() as u64;
        if entries > old {
            let clusters = (entries * 8).div_ceil(layout.cluster());
            let first = self.reserve(layout, clusters)?.first;
            self.hint = self.hint.min(self.end);
            let mut table = self.l1.clone();
            table.resize(entries as usize, 0);
            let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            let at = first << layout.cluster_bits;
            layout.storage.write_at(at, &bytes)?;
            layout.storage.sync()?;
            let mut fields = [0; 12];
            fields[..4].copy_from_slice(&(entries as u32).to_be_bytes());
            fields[4..].copy_from_slice(&at.to_be_bytes());
            layout.storage.write_at(L1_SIZE_AT, &fields)?;
            layout.storage.sync()?;
            self.retire(self.l1_at >> layout.cluster_bits, (old * 8).div_ceil(layout.cluster()));
            self.metadata.extend(first..first + clusters);
            (self.l1, self.l1_at) = (table, at);
        }
        layout.storage.write_at(SIZE_AT, &size.to_be_bytes())?;
        layout.storage.sync()?;
        self.size = size;
        Ok(())
    }
}

/// A count in a block ("Host cluster management").
fn count_in(block: &[u8], index: usize, order: u32) -> u64 {
    if order < 3 {
        let bit = index << order;
        let mask = (1u64 << (1 << order)) - 1;
        return u64::from(block.get(bit / 8).copied().unwrap_or(0)) >> (bit % 8) & mask;
    }
    let width = 1 << (order - 3);
    let bytes = block.get(index * width..(index + 1) * width).unwrap_or(&[]);
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn set_count_in(block: &mut [u8], index: usize, order: u32, count: u64) {
    if order < 3 {
        let bit = index << order;
        let mask = ((1u64 << (1 << order)) - 1) << (bit % 8);
        if let Some(byte) = block.get_mut(bit / 8) {
            *byte = (u64::from(*byte) & !mask | count << (bit % 8) & mask) as u8;
        }
        return;
    }
    let width = 1 << (order - 3);
    if let Some(bytes) = block.get_mut(index * width..(index + 1) * width) {
        bytes.copy_from_slice(&count.to_be_bytes()[8 - width..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_stay_apart() {
        for order in 0..=6 {
            let mut block = [0u8; 512];
            let most = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            let per_block = (512 * 8) >> order;
            for index in 0..per_block {
                set_count_in(&mut block, index, order, if index % 3 == 0 { most } else { index as u64 & 1 });
            }
            for index in 0..per_block {
                let want = if index % 3 == 0 { most } else { index as u64 & 1 };
                assert_eq!(count_in(&block, index, order), want, "order {order}, index {index}");
            }
        }
    }
}
