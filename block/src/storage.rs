//! An open, locked file or block device that holds an image, or a part of one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::direct::{self, Alignment};
use crate::geometry::{self, PUNCH, Sparse, Topology};
use crate::lock::{self, Granularity};
use crate::vectored::{self, Direction, Segment};
use crate::{Error, Result};

/// How a file is to be opened.
#[derive(Clone, Debug)]
pub struct Access {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// For reading only.
    pub readonly: bool,
    /// Go around the host's page cache.
    pub direct: bool,
    /// How much of it to lock.
    pub lock: Granularity,
    /// Whether the path may be a link.
    pub follow: bool,
}

/// See the module. The lock lasts as long as the value.
#[derive(Debug)]
pub struct Storage {
    file: File,
    path: PathBuf,
    is_device: bool,
    /// Bytes that there are.
    length: AtomicU64,
    readonly: bool,
    direct: Option<Alignment>,
    topology: Topology,
    sparse: Sparse,
    id: String,
    inode: (u64, u64),
    granularity: Granularity,
    /// See [`crate::direct::detour`].
    exclusive: Mutex<()>,
}

impl Storage {
    /// Opens and locks.
    ///
    /// # Errors
    /// Each names the path: not there or not permitted, no file or block device, locked by somebody else, not able to do direct I/O.
    pub fn open(access: &Access) -> Result<Self> {
        let path = &access.path;
        let inspect = |what| move |source| Error::Inspect { path: path.clone(), what, source };
        let file = open_file(access)?;
        let metadata = file.metadata().map_err(inspect("type"))?;
        let is_device = check_type(path, metadata.file_type())?;
        let length =
            if is_device { geometry::device_size(&file).map_err(inspect("size"))? } else { metadata.len() };
        lock::acquire(&file, path, length, access.lock, !access.readonly)?;
        // From here on an error closes the file, which unlocks it: no ring holds it yet.
        let direct =
            set_flags(&file, access.direct).map_err(|source| Error::Direct { path: path.clone(), source })?;
        let topology = if is_device {
            geometry::device_topology(&file).map_err(inspect("block size"))?
        } else {
            geometry::file_topology(metadata.blksize(), direct)
        };
        Ok(Storage {
            sparse: geometry::sparse(&file, is_device, length, access.readonly),
            id: identity(metadata.dev(), metadata.rdev(), metadata.ino()),
            inode: (metadata.dev(), metadata.ino()),
            path: path.clone(),
            granularity: access.lock,
            is_device,
            length: AtomicU64::new(length),
            readonly: access.readonly,
            direct,
            topology,
            exclusive: Mutex::new(()),
            file,
        })
    }

    /// The file, for what does not go through an engine.
    pub fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that there are.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    pub(crate) fn readonly(&self) -> bool {
        self.readonly
    }

    /// What direct I/O demands, if it is in use.
    pub(crate) fn direct(&self) -> Option<Alignment> {
        self.direct
    }

    pub(crate) fn topology(&self) -> Topology {
        self.topology
    }

    pub(crate) fn sparse(&self) -> Sparse {
        self.sparse
    }

    /// At most 20 decimal digits that tell this file from others on the host.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Device and number of the inode.
    pub(crate) fn inode(&self) -> (u64, u64) {
        self.inode
    }

    /// Locks this many bytes, or what was to be locked from the beginning.
    pub(crate) fn lock(&self, bytes: u64) -> Result<()> {
        lock::acquire(&self.file, &self.path, bytes, self.granularity, !self.readonly)
    }

    /// An error unless direct I/O can reach the first `size` bytes.
    pub(crate) fn check_direct(&self, size: u64) -> Result<()> {
        match self.direct {
            Some(alignment) if !size.is_multiple_of(u64::from(alignment.block)) => {
                Err(Error::DirectSize { path: self.path.clone(), size, block: alignment.block })
            }
            _ => Ok(()),
        }
    }

    /// Moves bytes at once, by whatever way direct I/O needs.
    ///
    /// # Safety
    /// As for [`vectored::transfer`].
    pub(crate) unsafe fn transfer(
        &self,
        direction: Direction,
        offset: u64,
        segments: &mut [Segment],
    ) -> io::Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            match self.direct.filter(|alignment| !alignment.accepts(offset, segments)) {
                Some(alignment) => {
                    direct::detour(&self.file, alignment, &self.exclusive, direction, offset, segments)
                }
                None => vectored::transfer(&self.file, direction, offset, segments),
            }
        }
    }

    /// Fills `buffer` from `offset` on; past the end there are zeros.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let there = self.length().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (real, past) = buffer.split_at_mut(there);
        past.fill(0);
        if real.is_empty() {
            return Ok(());
        }
        let mut segment = [Segment::new(real.as_mut_ptr(), real.len())];
        // SAFETY: the memory is `real`, borrowed for the call.
        unsafe { self.transfer(Direction::Read, offset, &mut segment) }
    }

    /// Writes `bytes`; the file grows if it must.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut segment = [Segment::new(bytes.as_ptr().cast_mut(), bytes.len())];
        // SAFETY: the memory is `bytes`, borrowed for the call, and is only read.
        unsafe { self.transfer(Direction::Write, offset, &mut segment)? };
        self.length.fetch_max(offset.saturating_add(bytes.len() as u64), Ordering::AcqRel);
        Ok(())
    }

    /// Makes everything durable that was written before.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes the file longer or shorter.
    pub(crate) fn set_length(&self, length: u64) -> io::Result<()> {
        if self.is_device {
            return Err(io::Error::other("a block device cannot change its size from here"));
        }
        self.file.set_len(length)?;
        self.length.store(length, Ordering::Release);
        Ok(())
    }

    /// Looks how long the file or device is now.
    pub(crate) fn measure(&self) -> io::Result<u64> {
        let length = match self.is_device {
            true => geometry::device_size(&self.file)?,
            false => self.file.metadata()?.len(),
        };
        self.length.store(length, Ordering::Release);
        Ok(length)
    }

    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    /// Makes a hole.
    pub(crate) fn punch_at(&self, offset: u64, length: u64) -> io::Result<()> {
        let narrow =
            |value| libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG));
        geometry::fallocate(&self.file, PUNCH, narrow(offset)?, narrow(length)?)
    }

    /// Fills a range with zeros, by a hole if that can be.
    pub(crate) fn zero_at(&self, offset: u64, length: u64) -> io::Result<()> {
        static ZEROS: [u8; 4096] = [0; 4096];
        if length == 0 {
            return Ok(());
        }
        if self.punch_at(offset, length).is_ok() {
            return Ok(());
        }
        let mut done = 0;
        while done < length {
            let step = (length - done).min(ZEROS.len() as u64);
            self.write_at(offset + done, &ZEROS[..step as usize])?;
            done += step;
        }
        Ok(())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Err(error) = lock::release(&self.file) {
            log::warn!("cannot unlock disk image {}: {error}", self.path.display());
        }
    }
}

/// Opens without being held up by a FIFO and without becoming the owner of a terminal.
fn open_file(access: &Access) -> Result<File> {
    let path = &access.path;
    let links = if access.follow { 0 } else { libc::O_NOFOLLOW };
    OpenOptions::new()
        .read(true)
        .write(!access.readonly)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY | links)
        .open(path)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EISDIR) => Error::Directory { path: path.to_owned() },
            // What open(2) says of a socket.
            Some(libc::ENXIO) if path.metadata().is_ok_and(|it| it.file_type().is_socket()) => {
                Error::NotADisk { path: path.to_owned(), kind: "socket" }
            }
            _ => Error::Open { path: path.to_owned(), source },
        })
}

/// Whether it is a block device; an error unless it is one or a regular file.
fn check_type(path: &Path, kind: std::fs::FileType) -> Result<bool> {
    let path = || path.to_owned();
    if kind.is_block_device() {
        Ok(true)
    } else if kind.is_file() {
        Ok(false)
    } else if kind.is_dir() {
        Err(Error::Directory { path: path() })
    } else if kind.is_fifo() {
        Err(Error::NotADisk { path: path(), kind: "FIFO" })
    } else {
        Err(Error::NotADisk { path: path(), kind: "character device" })
    }
}

/// Clears `O_NONBLOCK` (io_uring would fail requests that have to wait) and sets `O_DIRECT` if wanted.
fn set_flags(file: &File, direct: bool) -> io::Result<Option<Alignment>> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    // SAFETY: no pointers are passed; F_SETFL replaces the status flags.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    direct.then(|| Alignment::probe(file)).transpose()
}

/// The digits of the three numbers that identify a file on its host, cut to the 20 bytes of a virtio serial number.
fn identity(dev: u64, rdev: u64, ino: u64) -> String {
    let mut digits = format!("{dev}{rdev}{ino}");
    digits.truncate(20);
    digits
}
