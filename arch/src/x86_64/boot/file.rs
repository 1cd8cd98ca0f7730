//! A kernel or initramfs on the host: opened once, then only read through its descriptor.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// An open regular file and its length at the time.
#[derive(Debug)]
pub struct BootFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl BootFile {
    /// Opens `path` for reading; `what` is what the user calls it ("kernel").
    pub(super) fn open(what: &'static str, path: &Path) -> Result<Self> {
        let error = |source| Error::OpenFile { what, path: path.into(), source };
        // A FIFO would block here for ever without O_NONBLOCK, which does nothing to regular files.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { what, path: path.into() });
        }
        Ok(BootFile { file, path: path.into(), len: metadata.len() })
    }

    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it had no bytes when it was opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// A second descriptor, for readers that need a position; all of them share one.
    pub(super) fn reader(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    /// Fills `buf` from `offset`.
    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|source| Error::ReadFile {
            path: self.path.clone(),
            offset,
            len: buf.len() as u64,
            source,
        })
    }

    /// Reads `len` bytes, bounded by the file; `part` names them if the file is too short for them.
    pub(super) fn read_part(&self, part: &'static str, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.require(part, offset, len as u64)?;
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Refuses a file that ends before `offset + len`.
    pub(super) fn require(&self, part: &'static str, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            end => Err(Error::KernelTruncated {
                path: self.path.clone(),
                part,
                needed: end.unwrap_or(u64::MAX),
                len: self.len,
            }),
        }
    }

    pub(super) fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::KernelMalformed { path: self.path.clone(), reason: reason.into() }
    }
}

/// Little-endian fields of a header. Panics outside `bytes`: offsets are constants within a length checked before.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// See [`le16`].
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

/// See [`le16`].
pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
