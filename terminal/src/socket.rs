//! Listening sockets that clean up after themselves.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::TerminalError;

/// Bytes that the path of a socket may have: the kernel's field, without the closing NUL.
const MAX_PATH: usize = 107;

/// A listening socket; its file goes with it. Accepting does not block.
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    // Which file is ours, lest somebody else's be removed.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`. A socket that nobody listens on any more is replaced; one that is in use, or any other file, is not.
    ///
    /// # Errors
    /// Somebody listens there, or the host refused.
    pub fn bind(path: &Path) -> Result<Self, TerminalError> {
        let failed = |source| TerminalError::Listen { path: path.to_owned(), source };
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            let text = format!("the path has {length} bytes; that of a socket has at most {MAX_PATH}");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let socket = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                let stale = path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket());
                if !stale {
                    return Err(failed(io::Error::new(e.kind(), "the path exists and is no socket")));
                }
                match UnixStream::connect(path) {
                    Ok(_) => return Err(TerminalError::SocketTaken(path.to_owned())),
                    Err(r) if r.kind() == io::ErrorKind::ConnectionRefused => {
                        std::fs::remove_file(path).map_err(failed)?;
                        UnixListener::bind(path).map_err(failed)?
                    }
                    Err(_) => return Err(failed(e)),
                }
            }
            answer => answer.map_err(failed)?,
        };
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Listener { socket, path: path.to_owned(), file: identity(path) })
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|m| (m.dev(), m.ino()))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some()
            && identity(&self.path) == self.file
            && let Err(e) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}
