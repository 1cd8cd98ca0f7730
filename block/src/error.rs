//! What can go wrong while an image is opened.
//!
//! Errors of single requests are plain [`std::io::Error`]s handed back with their token: they concern the guest.

use std::io;
use std::path::{Path, PathBuf};

use crate::format::Format;

/// Why an image could not be opened or an engine not be made. Every variant names the image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `open(2)` failed.
    #[error("cannot open disk image {}", path.display())]
    Open {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The path is a directory.
    #[error("disk image {} is a directory; give a file or a block device", path.display())]
    Directory {
        /// The path as given.
        path: PathBuf,
    },
    /// The path is neither a regular file nor a block device.
    #[error("disk image {} is a {kind}; give a file or a block device", path.display())]
    NotADisk {
        /// The path as given.
        path: PathBuf,
        /// What it is: `FIFO`, `socket` or `character device`.
        kind: &'static str,
    },
    /// The image does not hold a single sector.
    #[error("disk image {} has {size} bytes; it must have at least one sector of 512 bytes", path.display())]
    TooSmall {
        /// The path as given.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Size, block sizes or identity could not be asked for.
    #[error("cannot get the {what} of disk image {}", path.display())]
    Inspect {
        /// The path as given.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The image is not what its format prescribes, or uses what cannot be used.
    #[error("disk image {} is not a usable {format} image: {what}", path.display())]
    Malformed {
        /// The path as given.
        path: PathBuf,
        /// The format.
        format: Format,
        /// What is wrong.
        what: String,
    },
    /// The file that an image builds upon could not be opened.
    #[error("cannot open what disk image {} builds upon", path.display())]
    Backing {
        /// The path as given.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<Error>,
    },
    /// The file system or device cannot do direct I/O.
    #[error("disk image {} cannot be used with direct=on", path.display())]
    Direct {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// With direct I/O the last block would reach past the end.
    #[error(
        "disk image {} has {size} bytes, not a multiple of {block}, which direct=on needs here; \
         extend it or use direct=off",
        path.display()
    )]
    DirectSize {
        /// The path as given.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The block size that direct I/O works in, in bytes.
        block: u32,
    },
    /// Somebody else holds a lock on the image.
    #[error(
        "disk image {} is locked for {theirs} by {holder}; {}",
        path.display(),
        if *ours_writes { "stop it, or use readonly=on in both" } else { "stop it, or open it there with readonly=on" }
    )]
    Locked {
        /// The path as given.
        path: PathBuf,
        /// `reading` or `writing`: what the other one's lock is for.
        theirs: &'static str,
        /// Who it is, as far as it can be known.
        holder: String,
        /// Whether we wanted to write.
        ours_writes: bool,
    },
    /// The lock could not be asked for (no other holder is involved).
    #[error("cannot lock disk image {}", path.display())]
    Lock {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The image cannot have this size.
    #[error("disk image {} cannot be resized from {from} to {to} bytes: {why}", path.display())]
    Resize {
        /// The path as given.
        path: PathBuf,
        /// Its size in bytes.
        from: u64,
        /// The size asked for.
        to: u64,
        /// What is in the way.
        why: String,
    },
    /// The host refused to change the size.
    #[error("cannot change the size of disk image {}", path.display())]
    SetSize {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn malformed(path: &Path, format: Format, what: impl Into<String>) -> Self {
        Error::Malformed { path: path.to_owned(), format, what: what.into() }
    }
}
