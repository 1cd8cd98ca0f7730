//! UNIX sockets: those that listen clean up after themselves, those that connect do not wait.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::TerminalError;

/// Bytes that the path of a socket may have: the kernel's field, without the closing NUL.
const MAX_PATH: usize = 107;

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// A listening socket; its file goes with it. Accepting does not block.
#[derive(Debug)]
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
        Self::bind_by(path, |path| UnixListener::bind(path))
    }

    /// The same, with a file that only its owner can connect to, from its first moment.
    ///
    /// # Errors
    /// Somebody listens there, the path is no place for a socket, or what the kernel answered.
    pub fn bind_private(path: &Path) -> Result<Self, TerminalError> {
        Self::bind_by(path, bind_private)
    }

    fn bind_by(path: &Path, bind: fn(&Path) -> io::Result<UnixListener>) -> Result<Self, TerminalError> {
        let failed = |source| TerminalError::Listen { path: path.to_owned(), source };
        check_length(path).map_err(failed)?;
        let socket = match bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                let stale = path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket());
                if !stale {
                    return Err(failed(io::Error::new(e.kind(), "the path exists and is no socket")));
                }
                match connect(path) {
                    Ok(_) => return Err(TerminalError::SocketTaken(path.to_owned())),
                    // Somebody listens, and has more to accept than the kernel holds.
                    Err(r) if r.kind() == io::ErrorKind::WouldBlock => {
                        return Err(TerminalError::SocketTaken(path.to_owned()));
                    }
                    Err(r) if r.kind() == io::ErrorKind::ConnectionRefused => {
                        std::fs::remove_file(path).map_err(failed)?;
                        bind(path).map_err(failed)?
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn check_length(path: &Path) -> io::Result<()> {
    let length = path.as_os_str().len();
    if length <= MAX_PATH {
        return Ok(());
    }
    let text = format!("the path has {length} bytes; that of a socket has at most {MAX_PATH}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// A stream socket that does not wait.
fn stream_socket() -> io::Result<OwnedFd> {
    // SAFETY: three integers.
    let fd = unsafe {
        libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A path as the kernel takes it.
fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    check_length(path)?;
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no path of a socket"));
    }
    // SAFETY: all-zero bytes are a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // At most the size of the structure.
    let length = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, length as libc::socklen_t))
}

/// Whether a socket can be at this path, whatever is there now.
///
/// # Errors
/// The path is empty, or longer than the kernel takes.
pub fn check_path(path: &Path) -> io::Result<()> {
    address(path).map(drop)
}

/// Connects, or fails at once.
///
/// # Errors
/// What the kernel answered: `WouldBlock` if the listener has as many connections to accept as the kernel holds for it.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (address, length) = address(path)?;
    let socket = stream_socket()?;
    // SAFETY: an address of that length, which outlives the call.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let (address, length) = address(path)?;
    let socket = stream_socket()?;
    let fd = socket.as_raw_fd();
    // On Linux the file takes its mode from the socket that is bound.
    // SAFETY: an open descriptor and integers; an address of that length, which outlives the call.
    let failed = unsafe {
        libc::fchmod(fd, 0o600) != 0
            || libc::bind(fd, (&raw const address).cast(), length) != 0
            || libc::listen(fd, BACKLOG) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(socket.into()) }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_socket_is_its_owners_alone_and_goes_with_its_listener() {
        let dir = std::env::temp_dir().join(format!("virga-private-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("s");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        // One that nobody listens on any more.
        drop(UnixListener::bind(&path).unwrap());
        let first = Listener::bind_private(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let mut held = Vec::new();
        // Also when no more can wait to be accepted, and without waiting.
        for _ in 0..2 * BACKLOG {
            assert!(matches!(Listener::bind_private(&path), Err(TerminalError::SocketTaken(_))));
            held.extend(connect(&path));
        }
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        assert!(!path.exists());
        let long = dir.join("x".repeat(MAX_PATH));
        assert_eq!(connect(&long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(matches!(Listener::bind_private(&long), Err(TerminalError::Listen { .. })));
        std::fs::remove_dir(&dir).unwrap();
    }
}
