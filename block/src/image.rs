//! Opening a disk image, and what is known of it then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::direct::Alignment;
use crate::engine::{self, Choice, Engine};
use crate::format::{self, Format};
use crate::geometry::{Sparse, Topology};
use crate::lock::Granularity;
use crate::map::{Map, Place};
use crate::qcow2::Qcow2;
use crate::storage::{Access, Storage};
use crate::vhdx::Vhdx;
use crate::{Error, Result, SECTOR, vhd, vmdk};

/// What is known of an image's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    /// The user stated it.
    Stated(Format),
    /// It was found by looking at the image, when the machine was first made. It stays so, whatever the image looks like now.
    Found(Format),
    /// Nothing: it is to be found by looking.
    #[default]
    Unknown,
}

/// How an image is to be opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Open it for reading only.
    pub readonly: bool,
    /// Go around the host's page cache.
    pub direct: bool,
    /// The format. If it was not stated, the first sector of a raw or VHD image is protected, and no image may name other files.
    pub format: Type,
    /// How much of it to lock.
    pub lock: Granularity,
    /// Whether the image may name a file that it builds upon.
    pub backing_files: bool,
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
    /// Where the data is.
    storage: Arc<Storage>,
    path: PathBuf,
    format: Format,
    /// In what order, if not in that of the disk.
    map: Option<Arc<dyn Map>>,
    size: AtomicU64,
    protect_sector0: AtomicBool,
}

/// An image by its parts: where the data is, in what order, and how much.
pub(crate) struct Opened {
    pub(crate) storage: Arc<Storage>,
    pub(crate) map: Option<Arc<dyn Map>>,
    pub(crate) size: u64,
}

impl Image {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// Each names the path: not there or not permitted, a directory, a FIFO, smaller than a sector, of another format, malformed,
    /// locked by somebody else, not able to do direct I/O.
    pub fn open(options: &Options) -> Result<Arc<Self>> {
        Image::open_in_chain(options, &[])
    }

    /// Opens an image on which others build: those with these inodes.
    pub(crate) fn open_in_chain(options: &Options, above: &[(u64, u64)]) -> Result<Arc<Self>> {
        let path = &options.path;
        let access = Access {
            path: path.clone(),
            readonly: options.readonly,
            direct: options.direct,
            lock: options.lock,
            follow: true,
        };
        let storage = Arc::new(Storage::open(&access)?);
        if above.contains(&storage.inode()) {
            return Err(Error::malformed(path, Format::Qcow2, "it builds upon itself"));
        }
        if storage.length() < SECTOR && options.format != Type::Stated(Format::Vmdk) {
            return Err(Error::TooSmall { path: path.clone(), size: storage.length() });
        }
        let (format, stated) = match options.format {
            Type::Stated(format) => (format, true),
            Type::Found(format) => (format, false),
            Type::Unknown => {
                let inspect = |source| Error::Inspect { path: path.clone(), what: "format", source };
                (format::probe(&storage).map_err(inspect)?, false)
            }
        };
        let opened = match format {
            Format::Raw => raw(storage)?,
            Format::Vhd => vhd::open(storage)?,
            Format::Vmdk if !stated => {
                let what =
                    "it names other files, and is opened only if the type is stated: say image_type=vmdk";
                return Err(Error::malformed(path, format, what));
            }
            Format::Vmdk => vmdk::open(&storage, &access)?,
            Format::Qcow2 => Qcow2::open(storage, options, stated, above)?,
            Format::Vhdx => Vhdx::open(storage)?,
        };
        if opened.map.is_none() {
            opened.storage.check_direct(opened.size)?;
        }
        let protect_sector0 = !stated && !options.readonly && matches!(format, Format::Raw | Format::Vhd);
        if !stated {
            let consequence =
                if protect_sector0 { ", and the guest may not write to its first sector" } else { "" };
            log::warn!(
                "the type of disk image {} was not given; it is taken as {format}{consequence}: say image_type={format}",
                path.display()
            );
        }
        let Opened { storage, map, size } = opened;
        Ok(Arc::new(Image {
            storage,
            path: path.clone(),
            format,
            map,
            size: AtomicU64::new(size),
            protect_sector0: AtomicBool::new(protect_sector0),
        }))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes that are usable, a multiple of [`SECTOR`] and never zero.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Whether it was opened for reading only.
    pub fn readonly(&self) -> bool {
        self.storage.readonly()
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
        self.storage.topology()
    }

    /// What can be done without writing data.
    pub fn sparse(&self) -> Sparse {
        if self.map.is_some() { Sparse { punch: !self.readonly() } } else { self.storage.sparse() }
    }

    /// Most bytes that one request should discard or zero, at least [`SECTOR`]; `None` if the kernel does it, however many there are.
    ///
    /// Formats with a map do it block by block while the request is being queued.
    pub fn most_zeroed(&self) -> Option<u64> {
        self.map.as_ref().map(|map| map.most_zeroed())
    }

    /// What direct I/O demands, if it is in use.
    pub fn direct(&self) -> Option<Alignment> {
        self.storage.direct()
    }

    /// At most 20 decimal digits that tell this image from others on the host; the serial number of last resort.
    pub fn id(&self) -> &str {
        self.storage.id()
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
        if self.readonly() {
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
    pub fn engine(self: &Arc<Self>, depth: usize, choice: Choice) -> Box<dyn Engine> {
        match &self.map {
            None => engine::make(self.files(), depth, choice),
            Some(map) => engine::make_mapped(self.files(), map, depth, choice),
        }
    }

    /// Changes the size to this many bytes; no request may be under way. A file of raw bytes is made longer or cut, a qcow2 image
    /// can only become larger; a block device must have that many bytes already, and is looked at no further than that.
    ///
    /// # Errors
    /// A size that cannot be, a read-only image, a format that does not allow it, a range that somebody else has locked, or what the
    /// host refused. The size is as before.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let path = &self.path;
        let refuse =
            |why: String| Err(Error::Resize { path: path.clone(), from: self.size(), to: bytes, why });
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return refuse("it is no multiple of 512 bytes, or nothing".into());
        }
        if self.map.is_none() && self.direct().is_some_and(|it| !bytes.is_multiple_of(u64::from(it.block))) {
            return refuse("it is no multiple of the block size of direct I/O".into());
        }
        if self.readonly() {
            return refuse("the image is read-only".into());
        }
        let failed = |source| Error::SetSize { path: path.clone(), source };
        match (self.format, &self.map) {
            (Format::Raw, _) if self.storage.is_device() => {
                let inspect = |source| Error::Inspect { path: path.clone(), what: "size", source };
                if bytes > self.storage.measure().map_err(inspect)? {
                    return refuse("the block device has fewer bytes".into());
                }
            }
            (Format::Raw, _) => {
                self.storage.lock(bytes.max(self.size()))?;
                self.storage.set_length(bytes).map_err(failed)?;
            }
            (_, Some(map)) => match map.grow(bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return refuse(error.to_string()),
                Err(error) => return Err(failed(error)),
            },
            (format, None) => return refuse(format!("a {format} image cannot change its size")),
        }
        self.size.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Its own file, and those that it builds upon.
    pub(crate) fn files(&self) -> Vec<Arc<Storage>> {
        let below = self.map.as_ref().map(|map| map.below()).unwrap_or_default();
        [self.storage.clone()].into_iter().chain(below).collect()
    }

    /// Where bytes are; past the end there are zeros.
    pub(crate) fn find(&self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        match (&self.map, self.size().saturating_sub(offset)) {
            (_, 0) => Ok((Place::Zeros, length)),
            (None, there) => Ok((Place::File { file: 0, at: offset }, length.min(there))),
            (Some(map), there) => map.find(offset, length.min(there)),
        }
    }

    /// Writes what is known of the image in memory only, so that another process finds all that was reported as written.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn settle(&self) -> io::Result<()> {
        self.map.as_ref().map_or(Ok(()), |map| map.flush())
    }

    /// Fills `buffer` at once; past the end there are zeros. For images that others build upon.
    pub(crate) fn read_at(&self, mut offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let there = self.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (mut rest, past) = buffer.split_at_mut(there);
        past.fill(0);
        let Some(map) = &self.map else { return self.storage.read_at(offset, rest) };
        while !rest.is_empty() {
            let (place, length) = map.find(offset, rest.len() as u64)?;
            let (now, later) = rest.split_at_mut(length as usize);
            match place {
                Place::File { file: 0, at } => self.storage.read_at(at, now)?,
                Place::Zeros => now.fill(0),
                Place::File { .. } | Place::Elsewhere => map.read(offset, now)?,
            }
            (rest, offset) = (later, offset + length);
        }
        Ok(())
    }
}

/// A raw image: what the file has, in whole sectors.
fn raw(storage: Arc<Storage>) -> Result<Opened> {
    let (bytes, path) = (storage.length(), storage.path());
    let size = bytes - bytes % SECTOR;
    if size != bytes {
        log::warn!(
            "disk image {} has {bytes} bytes, not a multiple of 512; the last {} are not visible to the guest",
            path.display(),
            bytes - size
        );
    }
    Ok(Opened { map: None, size, storage })
}
