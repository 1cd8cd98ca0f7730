//! Disk images with known content, and the checks that the probe's disk tests leave to the host.

use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Checks that each sector of an image is one that the probe's `load` writes there, or empty; how many it has written.
///
/// # Panics
/// If one is torn, or there are not as many as that.
pub fn written(image: &Path, sectors: u64) -> usize {
    let bytes = std::fs::read(image).expect("the image is there");
    assert_eq!(bytes.len() as u64, sectors * SECTOR, "{} has another size", image.display());
    let whole = |(sector, bytes): (usize, &[u8])| {
        let number = stamp(bytes, sector as u64);
        number.unwrap_or_else(|| panic!("sector {sector} is neither empty nor written, but torn")) != 0
    };
    bytes.chunks(SECTOR as usize).enumerate().filter(|sector| whole(*sector)).count()
}

/// Runs `qemu-img`.
///
/// # Panics
/// If it fails.
pub fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().expect("qemu-img runs");
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Checks that an image is in order, apart from clusters lost to a writer that was killed, and makes a raw one of it; a raw one is itself.
///
/// # Panics
/// If it is not in order.
pub fn raw_copy(image: &Path, image_type: &str) -> PathBuf {
    if image_type == "raw" {
        return image.to_path_buf();
    }
    let output = Command::new("qemu-img").args(["check", "-f", image_type, text(image)]).output();
    let output = output.expect("qemu-img runs");
    // 3 means that clusters are counted which nothing refers to.
    let good = matches!(output.status.code(), Some(0 | 3));
    assert!(good, "qemu-img check of {}: {output:?}", image.display());
    let raw = image.with_extension("raw");
    qemu_img(&["convert", "-f", image_type, "-O", "raw", text(image), text(&raw)]);
    raw
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
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
