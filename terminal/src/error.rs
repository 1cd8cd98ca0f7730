//! Why a terminal could not be had.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a terminal could not be had.
#[derive(Debug, Error)]
pub enum TerminalError {
    /// The file for the output could not be made.
    #[error("cannot create {path}", path = path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file for the output is a FIFO that nobody has open.
    #[error("nobody reads from the FIFO {path}: start its reader first", path = .0.display())]
    NoReader(PathBuf),
    /// Mode file or socket without its path.
    #[error("Path missing when using {0} console mode")]
    PathMissing(&'static str),
    /// No pseudo-terminal could be had.
    #[error("cannot open a pseudo-terminal")]
    Pty(#[source] io::Error),
    /// Standard output cannot be used.
    #[error("cannot use standard output as a terminal")]
    Stdout(#[source] io::Error),
    /// The terminal's settings could not be changed.
    #[error("cannot set the terminal's mode")]
    Raw(#[source] io::Error),
    /// Somebody listens on the socket's path.
    #[error("socket path {path} is in use", path = .0.display())]
    SocketTaken(PathBuf),
    /// The socket could not be made.
    #[error("cannot listen on {path}", path = path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An eventfd or timer could not be had.
    #[error("cannot make a descriptor to wait for")]
    Event(#[source] io::Error),
}
