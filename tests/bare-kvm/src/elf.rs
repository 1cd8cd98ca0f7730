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

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF with one segment of four bytes at 0x1000 and a PVH note that says entry 0x1000.
    fn image() -> Vec<u8> {
        let mut file = vec![0; 0x200];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &2u16.to_le_bytes());
        for (at, kind, offset, address, len) in
            [(64, PT_LOAD, 0x100u64, 0x1000u64, 4u64), (120, PT_NOTE, 0x180, 0, 24)]
        {
            put(at, &kind.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 24, &address.to_le_bytes());
            put(at + 32, &len.to_le_bytes());
        }
        put(0x100, &[0xf4; 4]);
        for (i, word) in
            [4u32, 8, XEN_ELFNOTE_PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0"), 0x1000, 0].iter().enumerate()
        {
            put(0x180 + i * 4, &word.to_le_bytes());
        }
        file
    }

    #[test]
    fn a_segment_is_copied_and_the_entry_found() {
        let mut memory = vec![0; 0x2000];
        assert_eq!(load(&image(), &mut memory).unwrap(), 0x1000);
        assert_eq!(memory[0x1000..0x1005], [0xf4, 0xf4, 0xf4, 0xf4, 0]);
    }

    #[test]
    fn no_truncation_is_taken_for_a_guest() {
        for len in 0..0x198 {
            assert!(load(&image()[..len], &mut vec![0; 0x2000]).is_err(), "{len} bytes are taken");
        }
    }

    #[test]
    fn a_segment_outside_of_memory_is_refused() {
        let error = load(&image(), &mut vec![0; 0x1002]).unwrap_err();
        assert_eq!(error.to_string(), "a segment lies outside the guest's memory");
    }
}
