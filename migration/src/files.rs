//! Files of one directory, opened by that directory's descriptor, so that neither a link nor a path that is moved leads elsewhere.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// Name of the machine's configuration.
pub const CONFIG: &str = "config.json";
/// Name of the manifest with the states of devices.
pub const STATE: &str = "state.json";
/// Name of guest memory.
pub const MEMORY: &str = "memory-ranges";

/// What an operation of the C library answered.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// A directory that was opened once.
#[derive(Debug)]
pub(crate) struct Folder {
    file: File,
    path: PathBuf,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let opened = c_string(path.as_os_str()).and_then(|name| {
            // SAFETY: the name is a NUL-terminated string.
            check(unsafe { libc::open(name.as_ptr(), flags) })
        });
        match opened {
            // SAFETY: the descriptor is new and ours.
            Ok(fd) => Ok(Folder { file: unsafe { File::from_raw_fd(fd) }, path: path.to_owned() }),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Err(Error::Missing(path.to_owned())),
            Err(e) if e.raw_os_error() == Some(libc::ENOTDIR) => Err(Error::NotADirectory(path.to_owned())),
            Err(e) => Err(Error::file("open", path, e)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of an entry, for messages only.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether files can be made here.
    pub(crate) fn check_writable(&self) -> Result<(), Error> {
        // SAFETY: the name is a NUL-terminated string.
        check(unsafe {
            libc::faccessat(self.file.as_raw_fd(), c".".as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS)
        })
        .map(drop)
        .map_err(|e| Error::file("write to", &self.path, e))
    }

    /// The first entry found that `allowed` does not name.
    pub(crate) fn other_than(&self, allowed: &[&str]) -> Result<Option<String>, Error> {
        let fail = |e| Error::file("list", &self.path, e);
        // A description of its own: a stream moves the position in the directory.
        let fd = self.open_at(c".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(fail)?;
        // SAFETY: the descriptor is new; the stream takes it over when it is made.
        let stream = unsafe { libc::fdopendir(fd.as_raw_fd()) };
        if stream.is_null() {
            return Err(fail(io::Error::last_os_error()));
        }
        std::mem::forget(fd);
        let found = loop {
            // SAFETY: errno is this thread's own.
            unsafe { *libc::__errno_location() = 0 };
            // SAFETY: the stream is open, and only used here.
            let entry = unsafe { libc::readdir(stream) };
            if entry.is_null() {
                // SAFETY: as above.
                let errno = unsafe { *libc::__errno_location() };
                break if errno == 0 { Ok(None) } else { Err(fail(io::Error::from_raw_os_error(errno))) };
            }
            // SAFETY: an entry is valid, its name NUL-terminated, until the next call on this stream.
            let name = unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) }.to_string_lossy();
            if ![".", ".."].contains(&&*name) && !allowed.contains(&&*name) {
                break Ok(Some(name.into_owned()));
            }
        };
        // SAFETY: the stream is open and not used after.
        unsafe { libc::closedir(stream) };
        found
    }

    /// Makes a file that must not exist.
    pub(crate) fn create(&self, name: &str) -> Result<File, Error> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        c_string(name.as_ref())
            .and_then(|c| self.open_at(&c, flags, 0o600))
            .map_err(|e| Error::file("create", &self.join(name), e))
    }

    /// Opens a regular file for reading; `None` if there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<File>, Error> {
        let path = self.join(name);
        // Without O_NONBLOCK a pipe in its place would make us wait for ever.
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = match c_string(name.as_ref()).and_then(|c| self.open_at(&c, flags, 0)) {
            Ok(file) => file,
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOENT) => return Ok(None),
                Some(libc::ELOOP | libc::ENXIO) => return Err(Error::NotAFile(path)),
                _ => return Err(Error::file("open", &path, e)),
            },
        };
        let metadata = file.metadata().map_err(|e| Error::file("look at", &path, e))?;
        if metadata.is_file() { Ok(Some(file)) } else { Err(Error::NotAFile(path)) }
    }

    /// Reads all of a file of at most `limit` bytes; `None` if there is none.
    pub(crate) fn read_all(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let path = self.join(name);
        let Some(file) = self.read(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        // One more than allowed: the file may grow while it is read.
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::file("read", &path, e))?;
        let length = bytes.len() as u64;
        if length > limit { Err(Error::TooLong { path, length, limit }) } else { Ok(Some(bytes)) }
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let rename = || {
            let (from, to) = (c_string(from.as_ref())?, c_string(to.as_ref())?);
            let fd = self.file.as_raw_fd();
            // SAFETY: both names are NUL-terminated strings.
            check(unsafe { libc::renameat2(fd, from.as_ptr(), fd, to.as_ptr(), libc::RENAME_NOREPLACE) })
        };
        rename().map(drop).map_err(|e| Error::file("create", &self.join(to), e))
    }

    /// Removes `name` if it still is `file`.
    pub(crate) fn remove(&self, name: &str, file: &File) -> io::Result<()> {
        let there = match self.read(name) {
            Ok(Some(there)) => there.metadata()?,
            _ => return Ok(()),
        };
        let ours = file.metadata()?;
        if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) {
            return Ok(());
        }
        let name = c_string(name.as_ref())?;
        // SAFETY: the name is a NUL-terminated string.
        check(unsafe { libc::unlinkat(self.file.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
    }

    /// Makes the names of the files last.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(|e| Error::file("sync", &self.path, e))
    }

    fn open_at(&self, name: &CStr, flags: libc::c_int, mode: libc::c_uint) -> io::Result<File> {
        // SAFETY: the name is a NUL-terminated string.
        let fd = check(unsafe {
            libc::openat(self.file.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, mode)
        })?;
        // SAFETY: the descriptor is new and ours.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

/// Locks all of a file for as long as its description is open: against writers, or (`exclusive`) against everybody who asks.
pub(crate) fn lock(file: &File, path: &Path, exclusive: bool) -> Result<(), Error> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    // SAFETY: a structure of plain numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the kernel reads the structure, which lives during the call.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        Ok(_) => Ok(()),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Err(Error::Busy(path.to_owned())),
            // A file system without locks (some network ones) has nobody to tell.
            Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
            _ => Err(Error::file("lock", path, e)),
        },
    }
}
