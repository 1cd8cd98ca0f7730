//! Fixed VHD (Microsoft, "Virtual Hard Disk Image Format Specification" 1.0): the disk's bytes, and a footer of 512 bytes.
//!
//! Nothing here is ever written.

use std::sync::Arc;

use crate::format::Format;
use crate::image::Opened;
use crate::storage::Storage;
use crate::{Error, Result, SECTOR};

/// `Disk Type` of a fixed disk.
const FIXED: u32 = 2;

/// Opens a fixed VHD.
pub(crate) fn open(storage: Arc<Storage>) -> Result<Opened> {
    let malformed = |what: &str| Error::malformed(storage.path(), Format::Vhd, what);
    // The footer is the last sector. A device may be larger than the image, and then there is no telling where it is.
    let room = storage.length().saturating_sub(SECTOR);
    let mut footer = [0; SECTOR as usize];
    let inspect = |source| Error::Inspect { path: storage.path().to_owned(), what: "footer", source };
    storage.read_at(room, &mut footer).map_err(inspect)?;
    if !footer.starts_with(b"conectix") {
        return Err(malformed("there is no footer in its last 512 bytes"));
    }
    if checksum(&footer) != be32(&footer, 64) {
        return Err(malformed("the footer's checksum is wrong"));
    }
    match be32(&footer, 60) {
        FIXED => {}
        3 | 4 => {
            return Err(malformed(
                "only fixed ones can be used, and it is dynamic or differencing: convert it, for instance \
                 with qemu-img convert -O vpc -o subformat=fixed",
            ));
        }
        _ => return Err(malformed("its disk type is unknown")),
    }
    let size = u64::from(be32(&footer, 48)) << 32 | u64::from(be32(&footer, 52));
    if size < SECTOR || size % SECTOR != 0 || size > room {
        return Err(malformed("the footer's size does not fit the file"));
    }
    Ok(Opened { map: None, size, storage })
}

/// The one's complement of the sum of all bytes but the checksum's.
fn checksum(footer: &[u8]) -> u32 {
    let bytes = footer.iter().enumerate().filter(|(at, _)| !(64..68).contains(at));
    !bytes.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}
