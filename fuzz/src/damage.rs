//! Good images, what is done to them, and a file that none of them may reach.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use crate::input::Input;
use crate::scratch;

pub const SECTOR: u64 = 512;

/// A good image.
pub struct Good {
    length: u64,
    /// Sectors that are not empty.
    sectors: Vec<(u64, Vec<u8>)>,
    /// Offsets of words that are not as those before: where something is said.
    words: Vec<u64>,
    pub backing: bool,
}

impl Good {
    fn unpack(packed: &[u8], backing: bool) -> Good {
        let bytes = miniz_oxide::inflate::decompress_to_vec_zlib(packed).unwrap();
        let (length, sectors) = bytes.split_first_chunk().unwrap();
        let sectors: Vec<_> = sectors
            .chunks_exact(4 + SECTOR as usize)
            .map(|chunk| {
                let (number, bytes) = chunk.split_first_chunk().unwrap();
                (u64::from(u32::from_le_bytes(*number)) * SECTOR, bytes.to_vec())
            })
            .collect();
        let mut words = Vec::new();
        let mut before: &[u8] = &[0; 8];
        for (offset, bytes) in &sectors {
            for (at, word) in (*offset..).step_by(8).zip(bytes.chunks_exact(8)) {
                if word != before && word != [0; 8] {
                    words.push(at);
                }
                before = word;
            }
        }
        Good { length: u64::from_le_bytes(*length), sectors, words, backing }
    }

    pub fn write(&self, file: &File) {
        file.set_len(0).unwrap();
        file.set_len(self.length).unwrap();
        for (offset, bytes) in &self.sectors {
            file.write_all_at(bytes, *offset).unwrap();
        }
    }
}

macro_rules! good {
    ($($name:literal $backing:literal),+) => {
        LazyLock::new(|| vec![$( Good::unpack(include_bytes!(concat!("../images/", $name, ".z")), $backing) ),+])
    };
}

pub static QCOW2: LazyLock<Vec<Good>> = good!(
    "qcow2" false, "qcow2_old" false, "qcow2_zlib" false, "qcow2_zstd" false, "qcow2_over" true
);
pub static VHD: LazyLock<Vec<Good>> = good!("vhd" false);
pub static VHDX: LazyLock<Vec<Good>> = good!("vhdx" false, "vhdx_fixed" false, "vhdx_log" false);

/// A file outside of the images' directory: sixteen bytes, again and again.
pub struct Secret {
    pub path: PathBuf,
    bytes: Vec<u8>,
    /// Of the sixteen bytes as they look from each of them on. Not the bytes themselves: the fuzzer would learn them from comparisons.
    hashes: Vec<u64>,
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

pub static SECRET: LazyLock<Secret> = LazyLock::new(|| {
    let random = device::fake::random::Random(u64::from(std::process::id())).bytes(16);
    let bytes = random.repeat(0x1_0000 / 16);
    let path = scratch::file("secret");
    fs::write(&path, &bytes).unwrap();
    fs::write(scratch::file("images/base"), vec![b'B'; 0x1_0000]).unwrap();
    let hashes = (0..16).map(|from| hash(&bytes[from..from + 16])).collect();
    Secret { path, bytes, hashes }
});

impl Secret {
    pub fn assert_untold(&self, read: &[u8]) {
        for sector in read.chunks_exact(SECTOR as usize) {
            assert!(!self.hashes.contains(&hash(&sector[..16])), "the guest reads a file outside");
        }
    }

    pub fn assert_untouched(&self) {
        assert!(fs::read(&self.path).unwrap() == self.bytes, "the guest writes a file outside");
    }
}

/// Puts a right checksum where one is wanted, so that a change is not all that is found.
pub type Mend = fn(&File);

fn crc32c(bytes: &[u8]) -> u32 {
    static TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
        std::array::from_fn(|n| {
            (0..8).fold(n as u32, |c, _| c >> 1 ^ if c & 1 != 0 { 0x82f6_3b78 } else { 0 })
        })
    });
    !bytes.iter().fold(!0, |crc: u32, byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

/// VHDX: the headers, the region tables, and entries of the log where QEMU has it.
pub fn mend_vhdx(file: &File) {
    for at in (0x10_0000..0x11_0000).step_by(0x1000) {
        let mut entry = vec![0; 0x1000];
        if file.read_exact_at(&mut entry, at).is_ok() && entry.starts_with(b"loge") {
            let length = u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]).clamp(0x1000, 0x4000);
            mend_at(file, at, length as usize);
        }
    }
    for (offset, length) in
        [(0x1_0000, 0x1000), (0x2_0000, 0x1000), (0x3_0000, 0x1_0000), (0x4_0000, 0x1_0000)]
    {
        mend_at(file, offset, length);
    }
}

/// A structure whose checksum is at byte 4.
fn mend_at(file: &File, offset: u64, length: usize) {
    let mut bytes = vec![0; length];
    if file.read_exact_at(&mut bytes, offset).is_ok() {
        bytes[4..8].fill(0);
        file.write_all_at(&crc32c(&bytes).to_le_bytes(), offset + 4).unwrap();
    }
}

/// VHD: the footer, whose bytes without the checksum and the checksum itself have the sum of all ones.
pub fn mend_vhd(file: &File) {
    let Some(at) = file.metadata().unwrap().len().checked_sub(SECTOR) else { return };
    let mut footer = [0; SECTOR as usize];
    file.read_exact_at(&mut footer, at).unwrap();
    footer[64..68].fill(0);
    let sum = !footer.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    file.write_all_at(&sum.to_be_bytes(), at + 64).unwrap();
}

/// Changes an image; whether anything was.
pub fn damage(good: &Good, file: &File, input: &mut Input<'_>, mend: Mend) -> bool {
    let (count, mends) = (input.u8() % 24, input.flag());
    for _ in 0..count {
        let how = input.u8();
        let at = match how & 3 {
            0 => u64::from(input.u32()) % (good.length + 1),
            1 => input.one_of(&good.words),
            2 => input.one_of(&good.words) + u64::from(input.u8()),
            _ => good.length.saturating_sub(u64::from(input.u16())),
        };
        let bytes: Vec<u8> = match how >> 2 & 7 {
            0 => vec![input.u8()],
            1 => input.value().to_be_bytes().to_vec(),
            2 => input.value().to_le_bytes().to_vec(),
            3 => (input.value() as u32).to_be_bytes().to_vec(),
            4 => (input.value() as u32).to_le_bytes().to_vec(),
            5 => {
                // What is said elsewhere.
                let mut word = [0; 8];
                file.read_exact_at(&mut word, input.one_of(&good.words)).unwrap();
                word.to_vec()
            }
            6 => {
                let mut bit = [0];
                let _past = file.read_at(&mut bit, at);
                vec![bit[0] ^ 1 << (input.u8() & 7)]
            }
            _ => {
                let length = input.u8() as usize;
                input.bytes(length).to_vec()
            }
        };
        file.write_all_at(&bytes, at).unwrap();
    }
    let cut = input.u8();
    if cut & 0xf == 1 {
        file.set_len(u64::from(input.u32()) % (2 * good.length)).unwrap();
    }
    if mends {
        mend(file);
    }
    count > 0 || cut & 0xf == 1
}
