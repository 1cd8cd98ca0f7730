//! The file behind persistent memory: opened once, locked as long as it is in use, and as long as it has to be.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ::block::{Access, Error, Granularity, Storage};
use ::spec::Refusal;
use device::{DeviceError, MapMode, Mapping};
use log::warn;

use super::{ALIGN, pages};
use crate::block::fault;

/// See the module.
pub(super) struct Backing {
    file: Held,
    path: PathBuf,
    /// Bytes in use, a multiple of [`ALIGN`].
    length: u64,
    /// Bytes that there were when it was opened.
    file_length: u64,
    /// Whether a flush must reach the file, or need not, or cannot.
    mode: MapMode,
    /// What tells which pages of a private mapping have been written to, or why nothing does.
    pages: Option<io::Result<File>>,
}

enum Held {
    /// A file that others see too.
    Storage(Storage),
    /// One without a name: nobody else can open it, and nothing of it is left.
    Nameless(File),
}

impl Backing {
    /// Opens `path`, of which `size` bytes are to be used, or all there are. Tells how it is to be mapped.
    ///
    /// # Errors
    /// What the host answered, a size that does not fit the file, or somebody else's lock.
    pub(super) fn open(path: &Path, size: Option<u64>, discard: bool) -> Result<(Self, MapMode), Refusal> {
        let (held, mode) = match open_storage(path, discard) {
            Ok((storage, mode)) => (Held::Storage(storage), mode),
            Err(Error::Directory { .. }) => {
                let size = size.ok_or_else(|| {
                    Refusal::invalid(format!("size is needed, because {} is a directory", path.display()))
                })?;
                let file = nameless(path, size).map_err(|e| {
                    Refusal::host(format!("cannot make a file of {size} bytes in {}", path.display()), e)
                })?;
                (Held::Nameless(file), if discard { MapMode::Private } else { MapMode::Shared })
            }
            Err(e) => return Err(Refusal::new(fault(&e), "the file cannot be used").because(e)),
        };
        let there = match &held {
            Held::Storage(storage) => storage.length(),
            Held::Nameless(_) => size.unwrap_or(0),
        };
        let length = size.unwrap_or(there);
        let refuse =
            |what: &str| Err(Refusal::invalid(format!("{} has {there} bytes, {what}", path.display())));
        if length > there {
            return refuse(&format!("and {length} are to be used"));
        }
        if length == 0 || !length.is_multiple_of(ALIGN) {
            return refuse("no multiple of 2M; size= says how much of it to use");
        }
        if mode == MapMode::ReadOnly {
            warn!("{} cannot be opened for writing; what the guest writes to it is dropped", path.display());
        }
        let pages = (mode == MapMode::Private).then(pages::open);
        let path = path.to_owned();
        Ok((Backing { file: held, path, length, file_length: there, mode, pages }, mode))
    }

    /// Bytes in use.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that there were when it was opened.
    pub(super) fn file_length(&self) -> u64 {
        self.file_length
    }

    /// The path as given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self) -> &File {
        match &self.file {
            Held::Storage(storage) => storage.file(),
            Held::Nameless(file) => file,
        }
    }

    /// Maps it.
    pub(super) fn map(&self, mode: MapMode) -> io::Result<Mapping> {
        Mapping::of_file(self.file(), self.length, mode)
    }

    /// Returns when all that the guest wrote is durable.
    ///
    /// # Errors
    /// What the host answered; or that nothing of it was kept.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self.mode {
            MapMode::Shared => self.file().sync_data(),
            // It was agreed that nothing lasts.
            MapMode::Private => Ok(()),
            // A guest that flushes has written.
            MapMode::ReadOnly => Err(io::Error::from_raw_os_error(libc::EROFS)),
        }
    }

    /// Whether a snapshot would find again what the guest has in this memory: it is not written with it, since it is in the file.
    ///
    /// # Errors
    /// It would not.
    pub(super) fn check_save(&self, mapping: &Mapping) -> Result<(), DeviceError> {
        let path = self.path.display();
        let error = |what: String| DeviceError { what, source: None };
        if let Held::Nameless(_) = self.file {
            return Err(error(format!(
                "persistent memory in a file without a name in {path} ends with this process, and a snapshot does not contain it"
            )));
        }
        let written = match &self.pages {
            None => Ok(false),
            Some(Ok(pages)) => pages::written(pages, mapping.span()),
            Some(Err(e)) => Err(e.kind().into()),
        };
        let unknown = || format!("cannot tell whether the guest wrote to its copy of {path}");
        if written.map_err(|e| DeviceError::new(unknown(), e))? {
            return Err(error(format!(
                "the guest has written to its copy of {path} (discard_writes=on), which a snapshot does not contain"
            )));
        }
        Ok(())
    }
}

/// Opens a file, for writing if that is wanted and possible.
fn open_storage(path: &Path, discard: bool) -> Result<(Storage, MapMode), Error> {
    let open = |readonly| {
        Storage::open(&Access {
            path: path.to_owned(),
            readonly,
            direct: false,
            lock: Granularity::ByteRange,
            follow: true,
        })
    };
    if discard {
        return Ok((open(true)?, MapMode::Private));
    }
    match open(false) {
        Ok(storage) => Ok((storage, MapMode::Shared)),
        Err(Error::Open { source, .. })
            if matches!(
                source.raw_os_error(),
                Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY)
            ) =>
        {
            Ok((open(true)?, MapMode::ReadOnly))
        }
        Err(e) => Err(e),
    }
}

/// A file without a name, full of zeros.
fn nameless(directory: &Path, size: u64) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | libc::O_EXCL)
        .mode(0o600)
        .open(directory)?;
    file.set_len(size)?;
    Ok(file)
}
