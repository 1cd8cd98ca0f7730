//! Recognising image formats by their magic numbers, for users that do not state them.
//!
//! The guest can write whatever it likes to a raw disk, a header of another format too. Therefore an image whose format was only
//! recognised may name no other file, and the guest may not write where the magic number is.

use std::fmt;
use std::io;

use crate::SECTOR;
use crate::storage::Storage;

/// An image format, named as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Bytes as the guest sees them.
    Raw,
    /// QEMU copy on write, any version.
    Qcow2,
    /// Virtual PC disk (footer in the last sector).
    Vhd,
    /// Hyper-V disk.
    Vhdx,
    /// VMware disk, sparse extent or text descriptor.
    Vmdk,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vhd => "vhd",
            Format::Vhdx => "vhdx",
            Format::Vmdk => "vmdk",
        })
    }
}

/// Magic numbers at the start of an image.
const HEADERS: [(&[u8], Format); 5] = [
    (b"QFI\xfb", Format::Qcow2),
    (b"vhdxfile", Format::Vhdx),
    (b"KDMV", Format::Vmdk),
    (b"# Disk DescriptorFile", Format::Vmdk),
    // Dynamic VHDs carry a copy of the footer at the start.
    (b"conectix", Format::Vhd),
];

/// Magic number at the start of a VHD's last sector.
const VHD_FOOTER: &[u8] = b"conectix";

/// The format of the image (of at least one sector) that a file holds.
pub(crate) fn probe(storage: &Storage) -> io::Result<Format> {
    let mut head = [0u8; 32];
    storage.read_at(0, &mut head)?;
    if let Some((_, format)) = HEADERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Ok(*format);
    }
    // Some tools wrote footers of 511 bytes; both begin within the last 512.
    for footer_size in [SECTOR, SECTOR - 1] {
        let mut foot = [0u8; VHD_FOOTER.len()];
        storage.read_at(storage.length() - footer_size, &mut foot)?;
        if foot == VHD_FOOTER {
            return Ok(Format::Vhd);
        }
    }
    Ok(Format::Raw)
}
