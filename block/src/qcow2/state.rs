//! What changes: the tables, and which clusters are free. This file finds and reads; `write` and `refcount` change.

use std::collections::{BTreeSet, HashSet};
use std::io;

use super::cache::Cache;
use super::entry::{Cluster, Part, Raw};
use super::header::Header;
use super::{Layout, OFFSET, compressed};
use crate::map::Place;

/// A decompressed cluster, kept because the next request is often for its neighbour.
#[derive(Debug)]
struct Decompressed {
    entry: u64,
    bytes: Box<[u8]>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) size: u64,
    pub(super) l1: Vec<u64>,
    pub(super) l1_at: u64,
    /// Sectors of the L1 table that are not in the file yet.
    pub(super) l1_dirty: BTreeSet<usize>,
    pub(super) l2: Cache,
    pub(super) refcount_table: Vec<u64>,
    pub(super) refcount_table_at: u64,
    pub(super) refcounts: Cache,
    /// Something was written that must be durable before L2 tables that rely on it.
    pub(super) unsettled: bool,
    /// Clusters of the header and of tables, by number: never the guest's. Empty if the image is read-only.
    pub(super) metadata: HashSet<u64>,
    /// Clusters that the file has.
    pub(super) end: u64,
    /// Where to look for a free cluster.
    pub(super) hint: u64,
    /// Clusters to be counted once less when the tables that do not refer to them are in the file: those of now, and those from
    /// before the last flush.
    pub(super) freed: [Vec<u64>; 2],
    pub(super) generation: u8,
    decompressed: Option<Decompressed>,
}

impl State {
    pub(super) fn open(layout: &Layout, header: &Header, writable: bool) -> io::Result<Self> {
        let cluster = layout.cluster();
        let table = u64::from(header.refcount_table_clusters) * cluster;
        let storage = &layout.storage;
        let end = match storage.is_device() {
            true => storage.length() / cluster,
            false => storage.length().div_ceil(cluster),
        };
        if writable && storage.length() < end * cluster {
            // So that clusters are there as a whole.
            storage.set_length(end * cluster)?;
        }
        let mut state = State {
            size: header.size,
            l1: read_table(layout, header.l1_at, u64::from(header.l1_entries) * 8)?,
            l1_at: header.l1_at,
            l1_dirty: BTreeSet::new(),
            l2: Cache::new(cluster as usize),
            refcount_table: Vec::new(),
            refcount_table_at: header.refcount_table_at,
            refcounts: Cache::new(cluster as usize),
            unsettled: false,
            metadata: HashSet::new(),
            end,
            hint: 0,
            freed: Default::default(),
            generation: 0,
            decompressed: None,
        };
        if writable {
            state.refcount_table = read_table(layout, header.refcount_table_at, table)?;
            if storage.is_device() {
                // A device may be larger than the image in it.
                state.end = state.used(layout)?;
            }
            state.note_metadata(layout, header, table)?;
        }
        Ok(state)
    }

    /// Notes which clusters hold metadata; two uses of one are a lie.
    fn note_metadata(&mut self, layout: &Layout, header: &Header, refcount_table: u64) -> io::Result<()> {
        let clusters = |at: u64, length: u64| at / layout.cluster()..(at + length).div_ceil(layout.cluster());
        let mut note = |number: u64, what: &str| match self.metadata.insert(number) {
            true if number < self.end => Ok(()),
            true => Err(layout.corrupt(&format!("{what} is past the end of the file"))),
            false => Err(layout.corrupt(&format!("{what} is where other metadata is"))),
        };
        note(0, "the header")?;
        for number in clusters(header.l1_at, u64::from(header.l1_entries) * 8) {
            note(number, "the L1 table")?;
        }
        for number in clusters(header.refcount_table_at, refcount_table) {
            note(number, "the refcount table")?;
        }
        for entry in self.refcount_table.iter().filter(|entry| **entry != 0) {
            note(aligned(layout, *entry, "a refcount block")?, "a refcount block")?;
        }
        for entry in self.l1.iter().map(|entry| entry & OFFSET).filter(|at| *at != 0) {
            note(aligned(layout, entry, "an L2 table")?, "an L2 table")?;
        }
        Ok(())
    }

    /// Whether something other than zeros may be at a position, or as far as its L2 table reaches.
    pub(super) fn has_table(&self, layout: &Layout, offset: u64) -> bool {
        let index = (offset >> (layout.cluster_bits + layout.l2_bits())) as usize;
        layout.is_backed(offset) || self.l1.get(index).is_none_or(|entry| entry & OFFSET != 0)
    }

    /// Where an L2 table is in the file; 0 if there is none.
    pub(super) fn l2_at(&self, layout: &Layout, offset: u64) -> io::Result<u64> {
        let index = offset >> (layout.cluster_bits + layout.l2_bits());
        let entry = self.l1.get(index as usize).ok_or_else(|| layout.corrupt("the L1 table is too short"))?;
        let at = entry & OFFSET;
        if at != 0 && aligned(layout, at, "an L2 table")? >= self.end {
            return Err(layout.corrupt("an L2 table is past the end of the file"));
        }
        Ok(at)
    }

    /// The L2 entry of a position.
    pub(super) fn entry(&mut self, layout: &Layout, offset: u64) -> io::Result<Raw> {
        let at = self.l2_at(layout, offset)?;
        if at == 0 {
            return Ok(Raw::default());
        }
        let table = self.l2.get(&layout.storage, at)?;
        let index = l2_index(layout, offset);
        Ok(match layout.extended {
            true => Raw { descriptor: be64(table, 2 * index), parts: be64(table, 2 * index + 1) },
            false => Raw { descriptor: be64(table, index), parts: 0 },
        })
    }

    /// Sets the entry of a position in the L2 table at `table`.
    pub(super) fn set_entry(
        &mut self,
        layout: &Layout,
        table: u64,
        offset: u64,
        entry: Raw,
    ) -> io::Result<()> {
        let index = l2_index(layout, offset);
        let table = self.l2.change(&layout.storage, table)?;
        if layout.extended {
            set_be64(table, 2 * index, entry.descriptor);
            set_be64(table, 2 * index + 1, entry.parts);
        } else {
            set_be64(table, index, entry.descriptor);
        }
        Ok(())
    }

    /// Where the bytes at `offset` are, and for how many of the same cluster that is so.
    pub(super) fn find(&mut self, layout: &Layout, offset: u64) -> io::Result<(Place, u64)> {
        let within = offset & (layout.cluster() - 1);
        let Cluster::Plain(plain) = self.entry(layout, offset)?.decode(layout)? else {
            return Ok((Place::Elsewhere, layout.cluster() - within));
        };
        let index = layout.part_at(offset);
        let end = u64::from(index + plain.alike(index, layout)) * layout.subcluster();
        let rest = end - within;
        match plain.part(index) {
            Part::Zeros => Ok((Place::Zeros, rest)),
            Part::Absent => match &layout.backing {
                None => Ok((Place::Zeros, rest)),
                Some(image) => Ok(match image.find(offset, rest)? {
                    (Place::File { file, at }, run) => (Place::File { file: file + 1, at }, run),
                    other => other,
                }),
            },
            Part::Data(at) => {
                let position = at + within;
                Ok(match layout.storage.length().checked_sub(position) {
                    None | Some(0) => (Place::Zeros, rest),
                    Some(there) => (Place::File { file: 0, at: position }, there.min(rest)),
                })
            }
        }
    }

    /// Reads bytes, wherever they are.
    pub(super) fn read(&mut self, layout: &Layout, mut offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let cluster = (offset & (layout.cluster() - 1)) as usize;
            let entry = self.entry(layout, offset)?;
            let found = entry.decode(layout)?;
            let (unit, within) = match found {
                Cluster::Compressed => (layout.cluster(), cluster),
                Cluster::Plain(_) => (layout.subcluster(), (offset & (layout.subcluster() - 1)) as usize),
            };
            let step = rest.len().min(unit as usize - within);
            let (now, later) = rest.split_at_mut(step);
            match found {
                Cluster::Compressed => {
                    let bytes = self.decompress(layout, entry.descriptor)?;
                    now.copy_from_slice(&bytes[cluster..cluster + step]);
                }
                Cluster::Plain(plain) => match plain.part(layout.part_at(offset)) {
                    Part::Zeros => now.fill(0),
                    Part::Data(at) => layout.storage.read_at(at + cluster as u64, now)?,
                    Part::Absent => match &layout.backing {
                        Some(image) => image.read_at(offset, now)?,
                        None => now.fill(0),
                    },
                },
            }
            (rest, offset) = (later, offset + step as u64);
        }
        Ok(())
    }

    fn decompress(&mut self, layout: &Layout, entry: u64) -> io::Result<&[u8]> {
        if self.decompressed.as_ref().is_none_or(|kept| kept.entry != entry) {
            let (at, length) = compressed_range(layout, entry);
            if at >= layout.storage.length() {
                return Err(layout.corrupt("a compressed cluster is past the end of the file"));
            }
            let mut input = vec![0; length as usize];
            layout.storage.read_at(at, &mut input)?;
            let mut bytes = match self.decompressed.take() {
                Some(kept) => kept.bytes,
                None => vec![0; layout.cluster() as usize].into_boxed_slice(),
            };
            compressed::inflate(layout.compression, &input, &mut bytes)?;
            self.decompressed = Some(Decompressed { entry, bytes });
        }
        self.decompressed.as_ref().map(|kept| &*kept.bytes).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Forgets a compressed cluster, whose place may become another's.
    pub(super) fn forget_decompressed(&mut self) {
        self.decompressed = None;
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation
    }
}

/// Position and length in the file of a compressed cluster ("Compressed Clusters Descriptor").
pub(super) fn compressed_range(layout: &Layout, entry: u64) -> (u64, u64) {
    let split = 62 - (layout.cluster_bits - 8);
    let at = entry & ((1 << split) - 1);
    let sectors = (entry >> split & ((1 << (62 - split)) - 1)) + 1;
    (at, sectors * 512 - at % 512)
}

fn l2_index(layout: &Layout, offset: u64) -> usize {
    (offset >> layout.cluster_bits & ((1 << layout.l2_bits()) - 1)) as usize
}

/// The number of an aligned cluster.
pub(super) fn aligned(layout: &Layout, at: u64, what: &str) -> io::Result<u64> {
    match at.is_multiple_of(layout.cluster()) {
        true => Ok(at >> layout.cluster_bits),
        false => Err(layout.corrupt(&format!("{what} is not aligned"))),
    }
}

/// Reads a table of `length` bytes.
fn read_table(layout: &Layout, at: u64, length: u64) -> io::Result<Vec<u64>> {
    if at
        .checked_add(length)
        .is_none_or(|end| end > layout.storage.length().next_multiple_of(layout.cluster()))
    {
        return Err(layout.corrupt("a table reaches past the end of the file"));
    }
    let mut bytes = vec![0; length as usize];
    layout.storage.read_at(at, &mut bytes)?;
    Ok((0..bytes.len() / 8).map(|index| be64(&bytes, index)).collect())
}

/// The big-endian number with this index.
fn be64(bytes: &[u8], index: usize) -> u64 {
    bytes.get(index * 8..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_be_bytes(*word))
}

/// Sets it.
fn set_be64(bytes: &mut [u8], index: usize, value: u64) {
    if let Some(word) = bytes.get_mut(index * 8..).and_then(|rest| rest.first_chunk_mut()) {
        *word = value.to_be_bytes();
    }
}
