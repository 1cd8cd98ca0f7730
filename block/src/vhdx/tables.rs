//! Headers, regions, metadata and the BAT ([MS-VHDX] §2.2, §2.5, §2.6).

use std::io;

use super::{MIB, SECTOR};
use crate::storage::Storage;

const KIB: u64 = 1 << 10;

/// Where the two headers and the two region tables are.
const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
const HEADER_LENGTH: usize = 4096;
const REGIONS: [u64; 2] = [192 * KIB, 256 * KIB];
const REGIONS_LENGTH: usize = 64 << 10;
/// Where the first megabyte, which holds all of them, ends.
const FIRST: u64 = MIB;

/// The largest BAT that is read, in bytes: 4 TiB in blocks of 1 MiB, 128 TiB in blocks of 32 MiB.
const MAX_BAT: u64 = 32 << 20;
/// The largest log, in bytes.
pub(super) const MAX_LOG: u64 = 64 << 20;
/// The most entries of the region and metadata tables.
const MAX_ENTRIES: usize = 2047;

type Guid = [u8; 16];

/// A GUID as it is written down.
const fn guid(text: u128) -> Guid {
    let b = text.to_be_bytes();
    [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
}

const BAT: Guid = guid(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
const METADATA: Guid = guid(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);
const FILE_PARAMETERS: Guid = guid(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
const DISK_SIZE: Guid = guid(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8);
const LOGICAL_SECTOR: Guid = guid(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: Guid = guid(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);
const PAGE_83: Guid = guid(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);

pub(super) fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

/// CRC-32C of a structure whose own checksum is at byte 4.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let table = const {
        let mut table = [0u32; 256];
        let mut n = 0;
        while n < 256 {
            let (mut value, mut bit) = (n as u32, 0);
            while bit < 8 {
                value = if value & 1 != 0 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };
    let step = |crc: u32, (at, byte): (usize, &u8)| {
        let byte = if (4..8).contains(&at) { 0 } else { *byte };
        crc >> 8 ^ table[((crc ^ u32::from(byte)) & 0xff) as usize]
    };
    !bytes.iter().enumerate().fold(!0, step)
}

/// The header that counts, and which of the two it is.
#[derive(Debug)]
pub(super) struct Headers {
    bytes: Vec<u8>,
    current: usize,
}

impl Headers {
    pub(super) fn read(storage: &Storage) -> io::Result<Self> {
        let mut best: Option<Headers> = None;
        for (current, at) in HEADERS.into_iter().enumerate() {
            let mut bytes = vec![0; HEADER_LENGTH];
            storage.read_at(at, &mut bytes)?;
            let valid = bytes.starts_with(b"head") && le32(&bytes, 4) == checksum(&bytes);
            let newer = best.as_ref().is_none_or(|best| le64(&bytes, 8) > le64(&best.bytes, 8));
            if valid && newer {
                best = Some(Headers { bytes, current });
            }
        }
        let headers = best.ok_or_else(|| wrong("neither of its headers is valid"))?;
        let version = le32(&headers.bytes, 64);
        if version >> 16 != 1 {
            return Err(wrong(format!("its version is {}", version >> 16)));
        }
        let (at, length) = headers.log_range();
        if headers.has_log() && (version & 0xffff != 0 || length > MAX_LOG) {
            return Err(wrong("its log is of a kind that is not known, or too long"));
        }
        let fits = at.checked_add(length).is_some_and(|end| end <= storage.length().max(FIRST));
        if length > 0 && (at < FIRST || !at.is_multiple_of(MIB) || !length.is_multiple_of(MIB) || !fits) {
            return Err(wrong("its log is not where it can be"));
        }
        Ok(headers)
    }

    pub(super) fn log_guid(&self) -> &[u8] {
        &self.bytes[48..64]
    }

    /// Whether there is a log to be replayed.
    pub(super) fn has_log(&self) -> bool {
        self.log_guid().iter().any(|byte| *byte != 0)
    }

    /// Position and length of the log.
    pub(super) fn log_range(&self) -> (u64, u64) {
        (le64(&self.bytes, 72), le32(&self.bytes, 68).into())
    }

    /// The log has been replayed.
    pub(super) fn forget_log(&mut self, storage: &Storage) -> io::Result<()> {
        self.bytes[48..64].fill(0);
        self.write(storage)
    }

    /// Says that the file and its data have been changed by somebody (§2.2.2: FileWriteGuid, DataWriteGuid).
    pub(super) fn mark(&mut self, storage: &Storage) -> io::Result<()> {
        let random = &mut self.bytes[16..48];
        // SAFETY: the kernel writes 32 bytes to memory of ours.
        if unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) } != 32 {
            return Err(io::Error::last_os_error());
        }
        self.write(storage)
    }

    /// Writes the header over the older one, which becomes the one that counts, and then once more (§2.2.2.1).
    fn write(&mut self, storage: &Storage) -> io::Result<()> {
        for _ in 0..2 {
            self.current = 1 - self.current;
            let sequence = le64(&self.bytes, 8).wrapping_add(1);
            self.bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
            let sum = checksum(&self.bytes);
            self.bytes[4..8].copy_from_slice(&sum.to_le_bytes());
            storage.write_at(HEADERS[self.current], &self.bytes)?;
            storage.sync()?;
        }
        Ok(())
    }
}

/// Positions and lengths of the regions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regions {
    pub(super) bat: (u64, u64),
    pub(super) metadata: (u64, u64),
}

impl Regions {
    /// What no block may overlap.
    pub(super) fn taken(&self, headers: &Headers) -> Vec<(u64, u64)> {
        vec![(0, FIRST), headers.log_range(), self.bat, self.metadata]
            .into_iter()
            .filter(|(_, length)| *length > 0)
            .collect()
    }
}

pub(super) fn regions(storage: &Storage) -> io::Result<Regions> {
    let mut bytes = vec![0; REGIONS_LENGTH];
    let mut valid = false;
    for at in REGIONS {
        storage.read_at(at, &mut bytes)?;
        valid = bytes.starts_with(b"regi") && le32(&bytes, 4) == checksum(&bytes);
        if valid {
            break;
        }
    }
    let count = le32(&bytes, 8) as usize;
    if !valid || count > MAX_ENTRIES {
        return Err(wrong("neither of its region tables is valid"));
    }
    let (mut bat, mut metadata) = (None, None);
    for entry in bytes[16..].chunks_exact(32).take(count) {
        let (at, length) = (le64(entry, 16), u64::from(le32(entry, 24)));
        let fits = at.checked_add(length).is_some_and(|end| end <= storage.length());
        if at < FIRST || !at.is_multiple_of(MIB) || length == 0 || !length.is_multiple_of(MIB) || !fits {
            return Err(wrong(format!("a region of {length} bytes is at {at:#x}")));
        }
        if entry[..16] == BAT {
            bat = Some((at, length));
        } else if entry[..16] == METADATA {
            metadata = Some((at, length));
        } else if le32(entry, 28) & 1 != 0 {
            return Err(wrong("it has a region that is required and not known"));
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata }),
        _ => Err(wrong("it has no BAT, or no metadata")),
    }
}

/// What does not change.
#[derive(Debug)]
pub(super) struct Parameters {
    /// Bytes of a block.
    pub(super) block: u32,
    /// Bytes of the disk.
    pub(super) size: u64,
    logical_sector: u32,
}

impl Parameters {
    pub(super) fn read(storage: &Storage, (at, length): (u64, u64)) -> io::Result<Self> {
        let mut table = vec![0; REGIONS_LENGTH.min(length as usize)];
        storage.read_at(at, &mut table)?;
        let count = le32(&table, 8) as usize >> 16;
        if !table.starts_with(b"metadata") || count > MAX_ENTRIES {
            return Err(wrong("its metadata table is not valid"));
        }
        let (mut file, mut size, mut sector) = (None, None, None);
        for entry in table[32..].chunks_exact(32).take(count) {
            let (offset, bytes) = (u64::from(le32(entry, 16)), le32(entry, 20));
            let mut item = [0; 8];
            let wanted = bytes.min(8) as usize;
            if offset + u64::from(bytes) > length {
                return Err(wrong("an item of its metadata is outside of the metadata"));
            }
            storage.read_at(at + offset, &mut item[..wanted])?;
            let value = u64::from_le_bytes(item);
            match entry.first_chunk::<16>() {
                Some(&FILE_PARAMETERS) => file = Some(value),
                Some(&DISK_SIZE) => size = Some(value),
                Some(&LOGICAL_SECTOR) => sector = Some(value as u32),
                Some(&PHYSICAL_SECTOR | &PAGE_83) => {}
                _ if le32(entry, 24) & 4 != 0 => {
                    return Err(wrong(
                        "it has metadata that is required and not known: perhaps it builds upon another image",
                    ));
                }
                _ => {}
            }
        }
        let (Some(file), Some(size), Some(logical_sector)) = (file, size, sector) else {
            return Err(wrong("its metadata is not complete"));
        };
        let (block, flags) = (file as u32, file >> 32);
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block.into()) {
            return Err(wrong(format!("its blocks have {block} bytes")));
        }
        if flags & 2 != 0 {
            return Err(wrong("it builds upon another image, which cannot be used"));
        }
        if !matches!(logical_sector, 512 | 4096)
            || size == 0
            || size % u64::from(logical_sector) != 0
            || size > 64 << 40
        {
            return Err(wrong(format!("its size is {size}, in sectors of {logical_sector}")));
        }
        Ok(Parameters { block, size, logical_sector })
    }

    /// Blocks of the disk.
    pub(super) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block.into())
    }

    /// The index in the BAT of a block; entries of sector bitmaps lie in between (§2.5).
    pub(super) fn entry_of(&self, block: u64) -> usize {
        let chunk = (u64::from(self.logical_sector) << 23) / u64::from(self.block);
        (block + block / chunk) as usize
    }

    /// Reads the BAT.
    pub(super) fn bat(&self, storage: &Storage, (at, length): (u64, u64)) -> io::Result<Vec<u64>> {
        let entries = self.entry_of(self.blocks() - 1) as u64 + 1;
        if entries * 8 > length {
            return Err(wrong("its BAT is too short for its size"));
        }
        if entries * 8 > MAX_BAT {
            return Err(wrong("its BAT is too long; larger blocks make it shorter"));
        }
        let mut bytes = vec![0; (entries * 8).next_multiple_of(SECTOR) as usize];
        storage.read_at(at, &mut bytes)?;
        Ok((0..bytes.len() / 8).map(|index| le64(&bytes, index * 8)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnoli_s() {
        // RFC 3720 B.4: 32 bytes of zeros.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(guid(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08)[..4], [0x66, 0x77, 0xc2, 0x2d]);
    }
}
