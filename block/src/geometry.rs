//! Size, block sizes and sparseness of an image, as the kernel tells them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use crate::SECTOR;
use crate::direct::Alignment;

// From <linux/fs.h>; the request codes are the same on every architecture supported here.
pub(crate) const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
pub(crate) const BLKIOMIN: libc::c_ulong = 0x1278;
pub(crate) const BLKIOOPT: libc::c_ulong = 0x1279;
pub(crate) const BLKPBSZGET: libc::c_ulong = 0x127b;
pub(crate) const BLKSSZGET: libc::c_ulong = 0x1268;

/// The largest physical block size that is passed on; a file system may claim megabytes.
const MAX_PHYSICAL: u32 = 64 << 10;

/// Block sizes of an image, in bytes. Logical and physical are powers of two, at least 512, logical <= physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The smallest unit that can be transferred without reading around it.
    pub logical_block: u32,
    /// The unit the medium really works in.
    pub physical_block: u32,
    /// Smallest preferred request.
    pub min_io: u32,
    /// Best request size for long transfers, 0 if there is no preference.
    pub opt_io: u32,
}

/// Whether ranges of the image can be given back or zeroed without writing data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Holes can be punched: the range reads as zeros afterwards and takes no space.
    pub punch: bool,
}

/// Size in bytes of a block device.
pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(size) }
}

/// Block sizes of a block device.
pub(crate) fn device_topology(file: &File) -> io::Result<Topology> {
    let logical_block = block_size(ioctl_u32(file, BLKSSZGET)?);
    let physical_block = block_size(ioctl_u32(file, BLKPBSZGET)?).max(logical_block);
    Ok(Topology {
        logical_block,
        physical_block,
        min_io: ioctl_u32(file, BLKIOMIN)?.max(logical_block),
        opt_io: ioctl_u32(file, BLKIOOPT)?,
    })
}

/// Block sizes of a regular file. `direct` tells in what units direct I/O works on it, if it is used.
pub(crate) fn file_topology(preferred_io: u64, direct: Option<Alignment>) -> Topology {
    let logical_block = block_size(direct.map_or(SECTOR as u32, |alignment| alignment.block));
    let preferred = u32::try_from(preferred_io).unwrap_or(MAX_PHYSICAL).min(MAX_PHYSICAL);
    let physical_block = block_size(preferred).max(logical_block);
    Topology { logical_block, physical_block, min_io: physical_block, opt_io: 0 }
}

/// Whether holes can be punched, found out without changing the image.
pub(crate) fn sparse(file: &File, is_device: bool, size: u64, readonly: bool) -> Sparse {
    if readonly {
        return Sparse { punch: false };
    }
    if is_device {
        return Sparse { punch: device_can_zero(file) };
    }
    // Past the end there is nothing to lose; a file system without holes says so before it looks at the range.
    let Ok(offset) = libc::off_t::try_from(size.next_multiple_of(1 << 20)) else {
        return Sparse { punch: false };
    };
    let before = file.metadata().and_then(|metadata| metadata.modified());
    let punch = fallocate(file, PUNCH, offset, 4096).is_ok();
    // Some file systems take even this for a change of the content.
    if let Ok(before) = before
        && let Err(error) = file.set_modified(before)
    {
        log::debug!("cannot put the modification time of the image back: {error}");
    }
    Sparse { punch }
}

/// `fallocate(2)` mode that makes a hole.
pub(crate) const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// `fallocate(2)` mode that zeroes a range and keeps its space.
pub(crate) const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// `fallocate(2)`, restarted when interrupted.
pub(crate) fn fallocate(file: &File, mode: i32, offset: libc::off_t, len: libc::off_t) -> io::Result<()> {
    loop {
        // SAFETY: no pointers; the descriptor is open for the whole call.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A device zeroes without data if the queue of its whole disk says so in sysfs.
fn device_can_zero(file: &File) -> bool {
    let Ok(rdev) = file.metadata().map(|metadata| metadata.rdev()) else {
        return false;
    };
    let base = format!("/sys/dev/block/{}:{}", libc::major(rdev), libc::minor(rdev));
    // A partition has no queue of its own; its parent directory is the disk.
    [format!("{base}/queue/write_zeroes_max_bytes"), format!("{base}/../queue/write_zeroes_max_bytes")]
        .iter()
        .find_map(|attribute| fs::read_to_string(attribute).ok())
        .and_then(|text| text.trim().parse::<u64>().ok())
        .is_some_and(|limit| limit > 0)
}

/// The nearest sensible block size: a power of two, at least a sector.
fn block_size(size: u32) -> u32 {
    if size.is_power_of_two() && u64::from(size) >= SECTOR { size } else { SECTOR as u32 }
}

fn ioctl_u32(file: &File, request: libc::c_ulong) -> io::Result<u32> {
    let mut value = 0u32;
    // SAFETY: each of the requests used here writes one 32-bit integer through the pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw mut value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
