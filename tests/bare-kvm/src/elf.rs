//! The part of ELF-64 that a PVH loader needs: loadable segments, and the Xen note with the 32-bit entry point.

use std::io::{Error, ErrorKind};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

fn bad(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why.to_string())
}

fn bytes(file: &[u8], at: usize, len: usize) -> Result<&[u8], Error> {
    at.checked_add(len).and_then(|end| file.get(at..end)).ok_or_else(|| bad("the ELF file is truncated"))
}

fn number(file: &[u8], at: usize, len: usize) -> Result<u64, Error> {
    let mut value = [0; 8];
    value[..len].copy_from_slice(bytes(file, at, len)?);
    Ok(u64::from_le_bytes(value))
}

/// Copies the loadable segments of `file` to their physical addresses in `memory`; returns the PVH entry point.
pub(crate) fn load(file: &[u8], memory: &mut [u8]) -> Result<u32, Error> {
    if bytes(file, 0, 6)? != b"\x7fELF\x02\x01" {
        return Err(bad("not a little-endian ELF-64 file"));
    }
    let (table, size, count) = (number(file, 32, 8)? as usize, number(file, 54, 2)?, number(file, 56, 2)?);
    let mut entry = None;
    for i in 0..count {
        let header =
            table.checked_add((i * size) as usize).ok_or_else(|| bad("the ELF file is truncated"))?;
        let kind = number(file, header, 4)? as u32;
        let offset = number(file, header + 8, 8)? as usize;
        let address = number(file, header + 24, 8)? as usize;
        let data = bytes(file, offset, number(file, header + 32, 8)? as usize)?;
        match kind {
            PT_LOAD => {
                let target = address.checked_add(data.len()).and_then(|end| memory.get_mut(address..end));
                target.ok_or_else(|| bad("a segment lies outside the guest's memory"))?.copy_from_slice(data);
            }
            PT_NOTE => entry = entry.or(pvh_entry(data)?),
            _ => {}
        }
    }
    entry.ok_or_else(|| bad("the ELF file has no PVH note"))
}

fn pvh_entry(notes: &[u8]) -> Result<Option<u32>, Error> {
    let mut at = 0;
    while at + 12 <= notes.len() {
        let (name_len, data_len) = (number(notes, at, 4)? as usize, number(notes, at + 4, 4)? as usize);
        let kind = number(notes, at + 8, 4)? as u32;
        let name = bytes(notes, at + 12, name_len)?;
        let data_at = at + 12 + name_len.next_multiple_of(4);
        if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            return Ok(Some(number(notes, data_at, data_len.min(8))? as u32));
        }
        at = data_at + data_len.next_multiple_of(4);
    }
    Ok(None)
}
