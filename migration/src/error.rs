//! What can go wrong with a machine in files.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a snapshot cannot be written, or cannot be read.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such directory.
    #[error("directory {0:?} does not exist")]
    Missing(PathBuf),
    /// Something else has that name.
    #[error("{0:?} is not a directory")]
    NotADirectory(PathBuf),
    /// The directory for a new snapshot has something in it.
    #[error("directory {path:?} is not empty: it contains {entry:?}")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of its entries.
        entry: String,
    },
    /// Nothing can be written to that file system.
    #[error("{0:?} is on a file system that is mounted read-only")]
    ReadOnly(PathBuf),
    /// We may not do that there.
    #[error("no permission to {action} {path:?}")]
    Denied {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// The file system is full, or a limit on the size of files was met.
    #[error("no space for {path:?} after {bytes} bytes")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes written to it before.
        bytes: u64,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// The host refused something else.
    #[error("cannot {action} {path:?}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// Somebody else has the file.
    #[error("{0:?} is in use by another process")]
    Busy(PathBuf),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,

    /// A snapshot whose writing did not end.
    #[error("{0:?} is not a complete snapshot: it has no state.json")]
    Incomplete(PathBuf),
    /// A device, a link, a directory in the place of a file.
    #[error("{0:?} is not a regular file")]
    NotAFile(PathBuf),
    /// A file is longer than any good one.
    #[error("{path:?} has {length} bytes, and at most {limit} are read")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// What is in a file would take more memory than what is in any good one.
    #[error("what is in {path:?} would take {bytes} bytes of memory, and at most {limit} are allowed")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it may take in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A form, a version or an architecture that this program does not know.
    #[error("{path:?} has {what} {found}, and this program reads {known}")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What is unknown.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What would be right.
        known: String,
    },
    /// A file does not have the form it ought to have.
    #[error("{path:?} is malformed")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file is not what was once written, or belongs to another snapshot.
    #[error("{path:?} is damaged or belongs to another snapshot: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },

    /// Guest memory is not laid out as it has to be.
    #[error("guest memory does not fit: {0}")]
    Layout(String),
    /// Guest memory cannot be mapped or looked at.
    #[error("cannot {action} guest memory at {address:#x}")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// Guest address.
        address: u64,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// Memory cannot be paged in on demand on this host, or no longer.
    #[error("cannot {action} for memory on demand{hint}")]
    Userfault {
        /// What was tried.
        action: &'static str,
        /// What may help.
        hint: &'static str,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The error of an operation on a file, by what the host answered.
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::EROFS) => Error::ReadOnly(path),
            Some(libc::EACCES | libc::EPERM) => Error::Denied { action, path, source },
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Error::NoSpace { path, bytes: 0, source },
            _ => Error::File { action, path, source },
        }
    }

    /// The error of a write after `bytes` bytes.
    pub(crate) fn write(path: &Path, bytes: u64, source: io::Error) -> Self {
        match Error::file("write", path, source) {
            Error::NoSpace { path, source, .. } => Error::NoSpace { path, bytes, source },
            other => other,
        }
    }

    /// A file that is not what was written.
    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Error::Damaged { path: path.to_owned(), what: what.into() }
    }
}
