//! ELF kernels: segments to load and the PVH entry point from the notes.
//!
//! Only what PVH needs of the ELF specification: 64-bit little-endian x86-64 program headers. Sections, symbols and
//! relocations are never read.

use std::sync::Arc;

use device::Span;

use super::file::{BootFile, le16, le32, le64};
use super::{Placement, Source};
use crate::{Error, Result};

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
/// XEN_ELFNOTE_PHYS32_ENTRY: physical address of the 32-bit entry point.
const PHYS32_ENTRY: u32 = 18;
/// Notes of real kernels take half a KiB; a header that says more than this is not believed.
const MAX_NOTES: u64 = 1 << 20;

/// What was learnt from the headers.
#[derive(Debug)]
pub(super) struct Image {
    /// Physical address to start at; lies in a loaded segment.
    pub(super) entry: u64,
    /// In the order of the file, empty ones left out; disjoint.
    pub(super) segments: Vec<Segment>,
}

/// One PT_LOAD entry. `memory_size >= file_size`, and no sum overflows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    address: u64,
    memory_size: u64,
    offset: u64,
    file_size: u64,
}

impl Segment {
    /// The memory it takes, with what follows its file part and starts as zeroes.
    pub(super) fn memory(&self) -> Span {
        Span { base: self.address, length: self.memory_size }
    }

    /// Its part of the file; the rest is zero in fresh RAM already.
    pub(super) fn placement(&self, file: &Arc<BootFile>) -> Option<Placement> {
        (self.file_size > 0).then(|| Placement {
            gpa: self.address,
            len: self.file_size,
            source: Source::File { file: file.clone(), offset: self.offset },
        })
    }
}

impl Image {
    /// Reads the headers of a file that starts with the ELF magic.
    pub(super) fn read(file: &BootFile) -> Result<Self> {
        let header = file.read_part("ELF header", 0, HEADER_LEN)?;
        let machine = le16(&header, 18);
        if header[5] != 1 || machine != EM_X86_64 {
            let machine =
                if header[5] == 2 { "a big-endian processor".into() } else { machine_name(machine) };
            return Err(Error::KernelWrongMachine { path: file.path().into(), machine });
        }
        if header[4] != 2 {
            return Err(file.malformed("not a 64-bit ELF file"));
        }
        let table = le64(&header, 32);
        let (entry_size, count) = (le16(&header, 54), le16(&header, 56));
        if usize::from(entry_size) != PROGRAM_HEADER_LEN {
            return Err(file.malformed(format!("program headers of {entry_size} bytes")));
        }
        let table_len = usize::from(count) * PROGRAM_HEADER_LEN;
        let headers = file.read_part("program header table", table, table_len)?;

        let mut segments = Vec::new();
        let mut entry = None;
        for header in headers.chunks_exact(PROGRAM_HEADER_LEN) {
            match le32(header, 0) {
                PT_LOAD => segments.extend(segment(file, header)?),
                PT_NOTE if entry.is_none() => entry = find_entry(file, header)?,
                _ => {}
            }
        }
        let Some(entry) = entry else {
            return Err(Error::KernelLacksPvh { path: file.path().into() });
        };
        check_segments(file, &segments)?;
        if !segments.iter().any(|s| s.address <= entry && entry < s.memory().end()) {
            return Err(file.malformed(format!("PVH entry point {entry:#x} lies in no loaded segment")));
        }
        Ok(Image { entry, segments })
    }
}

fn segment(file: &BootFile, header: &[u8]) -> Result<Option<Segment>> {
    let segment = Segment {
        offset: le64(header, 8),
        address: le64(header, 24),
        file_size: le64(header, 32),
        memory_size: le64(header, 40),
    };
    if segment.memory_size == 0 {
        return Ok(None);
    }
    if segment.file_size > segment.memory_size {
        return Err(file.malformed("a segment is longer in the file than in memory"));
    }
    if segment.address.checked_add(segment.memory_size).is_none() {
        return Err(file.malformed("a segment wraps around the address space"));
    }
    file.require("segment", segment.offset, segment.file_size)?;
    Ok(Some(segment))
}

/// Segments that share memory would make the outcome depend on the order of loading.
fn check_segments(file: &BootFile, segments: &[Segment]) -> Result<()> {
    let mut spans: Vec<Span> = segments.iter().map(Segment::memory).collect();
    spans.sort_unstable_by_key(|span| span.base);
    match spans.windows(2).find(|pair| pair[0].overlaps(&pair[1])) {
        Some(pair) => Err(file.malformed(format!("segments overlap at {:#x}", pair[1].base))),
        None => Ok(()),
    }
}

/// Walks the notes of one PT_NOTE segment.
fn find_entry(file: &BootFile, header: &[u8]) -> Result<Option<u64>> {
    let (offset, len, align) = (le64(header, 8), le64(header, 32), le64(header, 48));
    if len > MAX_NOTES {
        return Err(file.malformed(format!("{len:#x} bytes of notes")));
    }
    let notes = file.read_part("note segment", offset, len as usize)?;
    // The generic ABI says 4 for ELF32 and 8 for ELF64; in practice everything is 4 except where the header says 8.
    let align = if align == 8 { 8 } else { 4 };
    let mut rest = notes.as_slice();
    while rest.len() >= 12 {
        let (name_len, desc_len, kind) = (le32(rest, 0) as usize, le32(rest, 4) as usize, le32(rest, 8));
        // Lengths are at most 2^32, so these sums cannot overflow 64 bits.
        let desc_at = (12 + name_len).next_multiple_of(align);
        let end = desc_at + desc_len;
        let (Some(name), Some(desc)) = (rest.get(12..12 + name_len), rest.get(desc_at..end)) else {
            return Err(file.malformed("a note is longer than its segment"));
        };
        if kind == PHYS32_ENTRY && name == b"Xen\0" {
            return match desc_len {
                4 => Ok(Some(u64::from(le32(desc, 0)))),
                8 if le64(desc, 0) <= u64::from(u32::MAX) => Ok(Some(le64(desc, 0))),
                _ => Err(file.malformed("its PVH note is no 32-bit address")),
            };
        }
        rest = rest.get(end.next_multiple_of(align)..).unwrap_or_default();
    }
    Ok(None)
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "i386 (32-bit)".into(),
        20 | 21 => "PowerPC".into(),
        22 => "s390x".into(),
        40 => "arm (32-bit)".into(),
        183 => "aarch64".into(),
        243 => "riscv".into(),
        258 => "loongarch".into(),
        other => format!("ELF machine {other}"),
    }
}
