//! Opening a disk image, and what is known of it then.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::direct::Alignment;
use crate::engine::{self, Choice, Engine};
use crate::format::{self, Format};
use crate::geometry::{self, Sparse, Topology};
use crate::lock::{self, Granularity};
use crate::{Error, Result, SECTOR};

/// How an image is to be opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Open it for reading only.
    pub readonly: bool,
    /// Go around the host's page cache.
    pub direct: bool,
    /// The format if it was stated. If it was not, the image must look raw, and its first sector is protected.
    pub format: Option<Format>,
    /// How much of it to lock.
    pub lock: Granularity,
}

/// Why a request may not go to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// It reaches past the end.
    PastEnd,
    /// It writes, and the image is read-only.
    ReadOnly,
    /// It writes to the first sector of an image whose format was not stated.
    Sector0,
}

/// An open, locked disk image. The lock lasts as long as the value.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    size: AtomicU64,
    lock: Granularity,
    readonly: bool,
    is_device: bool,
    protect_sector0: AtomicBool,
    direct: Option<Alignment>,
    topology: Topology,
    sparse: Sparse,
    id: String,
    /// See [`crate::direct::detour`].
    exclusive: Mutex<()>,
}

impl Image {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// Each names the path: not there or not permitted, a directory, a FIFO, smaller than a sector, in another format,
    /// locked by somebody else, not able to do direct I/O.
    pub fn open(options: &Options) -> Result<Arc<Self>> {
        let path = &options.path;
        let inspect = |what| move |source| Error::Inspect { path: path.clone(), what, source };
        let file = open_file(path, options.readonly)?;
        let metadata = file.metadata().map_err(inspect("type"))?;
        let is_device = check_type(path, metadata.file_type())?;
        let bytes =
            if is_device { geometry::device_size(&file).map_err(inspect("size"))? } else { metadata.len() };
        if bytes < SECTOR {
            return Err(Error::TooSmall { path: path.clone(), size: bytes });
        }
        let size = bytes - bytes % SECTOR;
        lock::acquire(&file, path, bytes, options.lock, !options.readonly)?;
        // From here on an error closes the file, which unlocks it: no ring holds it yet.

        let found = match options.format {
            Some(format) => format,
            None => format::probe(&file, bytes).map_err(inspect("format"))?,
        };
        if found != Format::Raw {
            return Err(Error::Format { path: path.clone(), format: found });
        }
        let direct = set_flags(&file, options.direct)
            .map_err(|source| Error::Direct { path: path.clone(), source })?;
        if let Some(alignment) = direct
            && !size.is_multiple_of(u64::from(alignment.block))
        {
            return Err(Error::DirectSize { path: path.clone(), size: bytes, block: alignment.block });
        }
        let topology = if is_device {
            geometry::device_topology(&file).map_err(inspect("block size"))?
        } else {
            geometry::file_topology(metadata.blksize(), direct)
        };

        if size != bytes {
            log::warn!(
                "disk image {} has {bytes} bytes, not a multiple of 512; the last {} are not visible to the guest",
                path.display(),
                bytes - size
            );
        }
        let protect_sector0 = options.format.is_none() && !options.readonly;
        if protect_sector0 {
            log::warn!(
                "the type of disk image {} was not given; it is taken as raw, and the guest may not write to its \
                 first sector: say image_type=raw to allow that",
                path.display()
            );
        }
        Ok(Arc::new(Image {
            sparse: geometry::sparse(&file, is_device, bytes, options.readonly),
            id: identity(metadata.dev(), metadata.rdev(), metadata.ino()),
            path: path.clone(),
            readonly: options.readonly,
            exclusive: Mutex::new(()),
            file,
            size: AtomicU64::new(size),
            lock: options.lock,
            is_device,
            protect_sector0: AtomicBool::new(protect_sector0),
            direct,
            topology,
        }))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are usable, a multiple of [`SECTOR`] and never zero.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Changes the size to this many bytes; no request may be under way. A file is made longer or cut; a block device must have that
    /// many bytes already, and is looked at no further than that.
    ///
    /// # Errors
    /// A size that cannot be, a read-only image, a range that somebody else has locked, or what the host refused. The size is
    /// as before.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let refuse = |why: &'static str| {
            Err(Error::Resize { path: self.path.clone(), from: self.size(), to: bytes, why })
        };
        let inspect = |source| Error::Inspect { path: self.path.clone(), what: "size", source };
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return refuse("it is no multiple of 512 bytes, or nothing");
        }
        if self.direct.is_some_and(|direct| !bytes.is_multiple_of(u64::from(direct.block))) {
            return refuse("it is no multiple of the block size of direct I/O");
        }
        if self.readonly {
            return refuse("the image is read-only");
        }
        if self.is_device {
            if bytes > geometry::device_size(&self.file).map_err(inspect)? {
                return refuse("the block device has fewer bytes");
            }
        } else {
            lock::acquire(&self.file, &self.path, bytes.max(self.size()), self.lock, true)?;
            self.file.set_len(bytes).map_err(|source| Error::SetSize { path: self.path.clone(), source })?;
        }
        self.size.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Whether it was opened for reading only.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Whether writes to the first sector are forbidden because the format was not stated.
    pub fn protects_sector0(&self) -> bool {
        self.protect_sector0.load(Ordering::Relaxed)
    }

    /// Forbids writes to the first sector from now on: the format was not stated when the machine was first made.
    pub fn protect_sector0(&self) {
        self.protect_sector0.store(true, Ordering::Relaxed);
    }

    /// Its block sizes.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// What can be done without writing data.
    pub fn sparse(&self) -> Sparse {
        self.sparse
    }

    /// What direct I/O demands, if it is in use.
    pub fn direct(&self) -> Option<Alignment> {
        self.direct
    }

    /// At most 20 decimal digits that tell this image from others on the host; the serial number of last resort.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether `len` bytes at `offset` may be read.
    ///
    /// # Errors
    /// [`Forbidden::PastEnd`].
    pub fn may_read(&self, offset: u64, len: u64) -> std::result::Result<(), Forbidden> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Forbidden::PastEnd),
        }
    }

    /// Whether `len` bytes at `offset` may be written, discarded or zeroed.
    ///
    /// # Errors
    /// Any [`Forbidden`].
    pub fn may_write(&self, offset: u64, len: u64) -> std::result::Result<(), Forbidden> {
        self.may_read(offset, len)?;
        if self.readonly {
            return Err(Forbidden::ReadOnly);
        }
        if self.protects_sector0() && offset < SECTOR && len > 0 {
            return Err(Forbidden::Sector0);
        }
        Ok(())
    }

    /// Makes an engine for one queue that has up to `depth` requests under way at once (at least 1, at most
    /// [`MAX_DEPTH`](crate::MAX_DEPTH); other values are brought into that range).
    ///
    /// It may be made on any thread; the thread that first submits to it is the only one that may use it from then on.
    ///
    /// # Errors
    /// [`Error::Engine`] if the kernel refuses.
    pub fn engine(self: &Arc<Self>, depth: usize, choice: Choice) -> Result<Box<dyn Engine>> {
        engine::make(self, depth, choice)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn exclusive(&self) -> &Mutex<()> {
        &self.exclusive
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = lock::release(&self.file) {
            log::warn!("cannot unlock disk image {}: {error}", self.path.display());
        }
    }
}

/// Opens without being held up by a FIFO and without becoming the owner of a terminal.
fn open_file(path: &Path, readonly: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!readonly)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
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
