//! Disk images with known content, and the checks that the probe's disk tests leave to the host.

use std::path::{Path, PathBuf};

/// Bytes in a sector.
pub const SECTOR: u64 = 512;

/// The 64-bit word at `index` of `sector` in the pattern `seed`: SplitMix64's output function over the word's number. The probe's
/// `blk-write` writes the same.
pub fn pattern_word(seed: u64, sector: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((sector * 64 + index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `sectors` sectors of the pattern `seed`, from sector `first` on.
pub fn pattern(seed: u64, first: u64, sectors: u64) -> Vec<u8> {
    (0..sectors * 64).flat_map(|i| pattern_word(seed, first + i / 64, i % 64).to_le_bytes()).collect()
}

/// The number of the write that the probe stamped a sector with; 0 if it is all zeroes, nothing if it is not whole.
pub fn stamp(bytes: &[u8], sector: u64) -> Option<u64> {
    let words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let number = *words.first()?;
    if number == 0 {
        return words.iter().all(|word| *word == 0).then_some(0);
    }
    let sum = words[..63].iter().fold(0u64, |sum, word| sum.rotate_left(1).wrapping_add(*word));
    let pattern = (1..63).all(|i| words[i as usize] == pattern_word(number, sector, i));
    (pattern && words[63] == sum).then_some(number)
}

/// Writes an image of the pattern `seed` to `path`.
pub fn make(path: &Path, seed: u64, sectors: u64) -> PathBuf {
    std::fs::write(path, pattern(seed, 0, sectors)).expect("the scratch directory has room for an image");
    path.to_path_buf()
}

/// CRC-32 as in zlib.
pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ CRC32[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(u32::MAX, step)
}

/// What each byte does to the checksum.
const CRC32: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_everybody_knows() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
