//! The header (QEMU's `docs/interop/qcow2.txt`, "Header" and "Header extensions"). All numbers are big-endian.

use crate::SECTOR;

/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;

/// Header extension: the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// The longest name of a backing file, in bytes.
const MAX_NAME: usize = 1023;

/// The most bytes of an L1 table and of a refcount table: what QEMU takes too.
pub(super) const MAX_L1: u64 = 32 << 20;
pub(super) const MAX_REFCOUNT_TABLE: u64 = 8 << 20;

/// Positions of fields that are written.
pub(super) const SIZE_AT: u64 = 24;
pub(super) const L1_SIZE_AT: u64 = 36;
pub(super) const REFCOUNT_TABLE_AT: u64 = 48;
pub(super) const AUTOCLEAR_AT: u64 = 88;

/// Bits of `incompatible_features`.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const COMPRESSION: u64 = 1 << 3;
const EXTERNAL_DATA: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;

/// Clusters that are divided into subclusters have at least so many bits: a subcluster has at least a sector.
const MIN_DIVIDED: u32 = 14;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Deflate,
    Zstd,
}

/// What the header says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1_entries: u32,
    pub(super) l1_at: u64,
    pub(super) refcount_table_at: u64,
    pub(super) refcount_table_clusters: u32,
    pub(super) refcount_order: u32,
    pub(super) autoclear: u64,
    pub(super) compression: Compression,
    /// L2 entries have 128 bits.
    pub(super) extended: bool,
    pub(super) backing: Option<String>,
    pub(super) backing_format: Option<String>,
}

impl Header {
    /// Reads the header from the beginning of the file: its first cluster, or what there is of it.
    ///
    /// # Errors
    /// What cannot be.
    pub(super) fn parse(start: &[u8], writable: bool) -> Result<Self, String> {
        let at = |at: usize, length: usize| {
            let bytes = start.get(at..at + length)?;
            Some(bytes.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
        };
        let u32_at = |offset: usize| at(offset, 4).map(|value| value as u32).ok_or("its header is cut off");
        let u64_at = |offset: usize| at(offset, 8).ok_or("its header is cut off");
        if u32_at(0)? != MAGIC {
            return Err("it does not begin with QFI\\xfb".into());
        }
        let version = u32_at(4)?;
        if !matches!(version, 2 | 3) {
            return Err(format!("its version is {version}, and 2 and 3 are known"));
        }
        let (incompatible, autoclear, refcount_order, length) = match version {
            2 => (0, 0, 4, 72),
            _ => (u64_at(72)?, u64_at(AUTOCLEAR_AT as usize)?, u32_at(96)?, u32_at(100)? as usize),
        };
        check_features(incompatible, writable)?;
        let cluster_bits = u32_at(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(format!("its clusters have 2^{cluster_bits} bytes; 2^9 to 2^21 are possible"));
        }
        let extended = incompatible & EXTENDED_L2 != 0;
        if extended && cluster_bits < MIN_DIVIDED {
            return Err(format!(
                "its clusters have 2^{cluster_bits} bytes; with extended L2 entries at least 2^{MIN_DIVIDED} are needed"
            ));
        }
        if refcount_order > 6 {
            return Err(format!(
                "its reference counts have 2^{refcount_order} bits; at most 2^6 are possible"
            ));
        }
        if u32_at(32)? != 0 {
            return Err("it is encrypted".into());
        }
        let cluster = 1usize << cluster_bits;
        if version == 3 && (!(104..=cluster).contains(&length) || !length.is_multiple_of(8)) {
            return Err(format!("its header has {length} bytes"));
        }
        let compression =
            match (incompatible & COMPRESSION != 0, if length > 104 { at(104, 1) } else { Some(0) }) {
                (false, Some(0)) => Compression::Deflate,
                (true, Some(1)) => Compression::Zstd,
                (_, kind) => return Err(format!("its compression type is {kind:?}")),
            };
        let header = Header {
            version,
            cluster_bits,
            size: u64_at(SIZE_AT as usize)?,
            l1_entries: u32_at(L1_SIZE_AT as usize)?,
            l1_at: u64_at(40)?,
            refcount_table_at: u64_at(REFCOUNT_TABLE_AT as usize)?,
            refcount_table_clusters: u32_at(56)?,
            refcount_order,
            autoclear,
            compression,
            extended,
            backing: name(start, u64_at(8)?, u32_at(16)? as usize)?,
            backing_format: extension(start, length, BACKING_FORMAT)?
                .map(|format| String::from_utf8_lossy(format).into_owned()),
        };
        header.check_tables()?;
        Ok(header)
    }

    fn check_tables(&self) -> Result<(), String> {
        let cluster = 1u64 << self.cluster_bits;
        let size = self.size;
        if size < SECTOR || !size.is_multiple_of(SECTOR) || size > i64::MAX as u64 {
            return Err(format!("its size is {size}"));
        }
        let needed = l1_entries(size, self.cluster_bits, l2_bits(self.cluster_bits, self.extended));
        let l1 = u64::from(self.l1_entries);
        if l1 < needed || l1 * 8 > MAX_L1 {
            return Err(format!("its L1 table has {l1} entries, for a size that takes {needed}"));
        }
        let table = u64::from(self.refcount_table_clusters).saturating_mul(cluster);
        if table == 0 || table > MAX_REFCOUNT_TABLE {
            return Err(format!("its refcount table has {} clusters", self.refcount_table_clusters));
        }
        for (what, at, length) in [("L1", self.l1_at, l1 * 8), ("refcount", self.refcount_table_at, table)] {
            let end = at.checked_add(length).filter(|end| *end <= i64::MAX as u64);
            if at < cluster || !at.is_multiple_of(cluster) || end.is_none() {
                return Err(format!("its {what} table is at {at:#x}"));
            }
        }
        let (a, b) = (self.l1_at, self.refcount_table_at);
        if a < b + table && b < a + l1 * 8 {
            return Err("its L1 and refcount tables overlap".into());
        }
        Ok(())
    }
}

/// Binary logarithm of the entries of an L2 table.
pub(super) fn l2_bits(cluster_bits: u32, extended: bool) -> u32 {
    cluster_bits - if extended { 4 } else { 3 }
}

/// Entries of the L1 table that a disk of this size takes.
pub(super) fn l1_entries(size: u64, cluster_bits: u32, l2_bits: u32) -> u64 {
    size.div_ceil(1 << (cluster_bits + l2_bits))
}

fn check_features(incompatible: u64, writable: bool) -> Result<(), String> {
    if incompatible & EXTERNAL_DATA != 0 {
        return Err("it has an external data file, which cannot be used".into());
    }
    let unknown = incompatible & !(DIRTY | CORRUPT | COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        return Err(format!("it uses features that are not known: {unknown:#x}"));
    }
    if writable && incompatible & DIRTY != 0 {
        return Err(
            "its reference counts are out of date: run qemu-img check -r all, or use readonly=on".into()
        );
    }
    if writable && incompatible & CORRUPT != 0 {
        return Err("it is marked as corrupt: run qemu-img check -r all, or use readonly=on".into());
    }
    Ok(())
}

/// The name of the backing file.
fn name(start: &[u8], at: u64, length: usize) -> Result<Option<String>, String> {
    if at == 0 {
        return Ok(None);
    }
    let begin = usize::try_from(at).ok().filter(|_| (1..=MAX_NAME).contains(&length));
    let bytes = begin.and_then(|begin| start.get(begin..begin.checked_add(length)?));
    let bytes = bytes.ok_or("the name of its backing file is not in its first cluster")?;
    String::from_utf8(bytes.to_vec())
        .map(Some)
        .map_err(|_| "the name of its backing file is not UTF-8".into())
}

/// The data of a header extension. Each has at least eight bytes, so that this ends.
fn extension(start: &[u8], mut at: usize, wanted: u32) -> Result<Option<&[u8]>, String> {
    loop {
        let Some([a, b, c, d, e, f, g, h]) = start.get(at..).and_then(|rest| rest.first_chunk()) else {
            return Ok(None);
        };
        let (kind, length) =
            (u32::from_be_bytes([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h]) as usize);
        let end = (at + 8).checked_add(length).filter(|end| *end <= start.len());
        match (kind, end) {
            (0, _) => return Ok(None),
            (_, None) => return Err("a header extension reaches past its first cluster".into()),
            (kind, Some(end)) if kind == wanted => return Ok(Some(&start[at + 8..end])),
            (_, Some(end)) => at = end.next_multiple_of(8),
        }
    }
}
