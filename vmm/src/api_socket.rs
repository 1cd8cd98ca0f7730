//! The socket on which the API is served: made so that two processes never serve the same path.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use sandbox::{HostPath, Use};
use spec::{Kind, Refusal};

use crate::cli::{self, Place};

/// A bound socket; dropping it removes the path.
pub struct ApiSocket {
    path: Option<Bound>,
    listener: UnixListener,
    lock: Option<Lock>,
}

/// The path of a socket, which goes when this is dropped.
struct Bound(PathBuf);

/// What is left of a socket for the process outside a jail: the path, and the lock.
pub struct Outside {
    _path: Option<Bound>,
    _lock: Option<Lock>,
}

/// Bytes that the path of a socket may have: the kernel's field, without the closing NUL.
const MAX_PATH: usize = 107;

impl ApiSocket {
    /// Binds the path, or takes the descriptor over.
    ///
    /// # Errors
    /// Another process serves the path, or it cannot be bound.
    pub fn open(place: Place) -> Result<Self, Refusal> {
        match place {
            Place::Fd(fd) => {
                let taken = cli::open_fd(fd, "--api-socket")?;
                if !listens(&taken) {
                    return Err(Refusal::invalid(format!(
                        "--api-socket: descriptor {fd} is not a listening UNIX stream socket"
                    )));
                }
                Ok(ApiSocket { listener: taken.into(), path: None, lock: None })
            }
            Place::Path(path) => {
                let bind = |e| Refusal::host(format!("Cannot listen on API socket {}", path.display()), e);
                // What can be known before is, so that a slip leaves no lock file behind.
                check_path(&path).map_err(bind)?;
                let lock = Lock::take(&path)?;
                remove_stale(&path).map_err(bind)?;
                let listener = UnixListener::bind(&path).map_err(bind)?;
                Ok(ApiSocket { listener, path: Some(Bound(path)), lock: Some(lock) })
            }
        }
    }

    /// The process has come to serve: from now on its lock file stays.
    pub fn serving(&mut self) {
        if let Some(lock) = &mut self.lock {
            lock.made = None;
        }
    }

    /// The paths that are still needed: what was made is removed in the end.
    pub fn paths(&self) -> Option<HostPath> {
        self.path.as_ref().map(|Bound(path)| HostPath::new(path, Use::Listen))
    }

    /// In the process outside a jail: closes the socket, and removes path and lock file when it is dropped.
    pub fn outside(self) -> Outside {
        Outside { _path: self.path, _lock: self.lock }
    }

    /// In the jail: path and lock file are for the process outside to remove.
    pub fn inside(&mut self) {
        if let Some(path) = self.path.take() {
            std::mem::forget(path);
        }
        if let Some(mut lock) = self.lock.take() {
            lock.made = None;
        }
    }

    /// The listening socket.
    ///
    /// # Errors
    /// No descriptor could be had.
    pub fn listener(&self) -> Result<UnixListener, Refusal> {
        self.listener.try_clone().map_err(|e| Refusal::host("cannot duplicate the API socket", e))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.0) {
            log::warn!("cannot remove {}: {e}", self.0.display());
        }
    }
}

/// Holds `<path>.lock` exclusively. The file stays when the process ends, as other programs expect; one that was made by a
/// process that never came to serve goes again.
struct Lock {
    file: File,
    /// Where it is, if it is ours to remove.
    made: Option<PathBuf>,
}

impl Lock {
    fn take(path: &Path) -> Result<Lock, Refusal> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        let failed = |e| Refusal::host(format!("Cannot create lock file {}", name.display()), e);
        loop {
            let made = match OpenOptions::new().create_new(true).write(true).open(&name) {
                Ok(file) => Some(file),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
                Err(e) => return Err(failed(e)),
            };
            let mut lock = match made {
                Some(file) => Lock { file, made: Some(name.clone()) },
                None => match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&name) {
                    Ok(file) => Lock { file, made: None },
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // its maker gave up just now
                    Err(e) => return Err(failed(e)),
                },
            };
            // SAFETY: flock takes an open descriptor and an integer.
            if unsafe { libc::flock(lock.file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                let e = io::Error::last_os_error();
                lock.made = None; // whoever holds it needs it
                return Err(if e.kind() == io::ErrorKind::WouldBlock {
                    let path = path.display();
                    let text = format!("API socket {path} is already in use by another running instance");
                    Refusal::new(Kind::Host, text)
                } else {
                    Refusal::host(format!("Cannot lock {}", name.display()), e)
                });
            }
            if lock.is_at(&name) {
                return Ok(lock);
            }
            // Its maker removed it between our open and our lock: it protects nothing.
            lock.made = None;
        }
    }

    fn is_at(&self, name: &Path) -> bool {
        match (self.file.metadata(), std::fs::metadata(name)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked: nobody can have taken it meanwhile.
        if let Some(path) = &self.made
            && let Err(e) = std::fs::remove_file(path)
        {
            log::warn!("cannot remove {}: {e}", path.display());
        }
    }
}

/// Refuses a path that no socket can be bound to.
fn check_path(path: &Path) -> io::Result<()> {
    let length = path.as_os_str().len();
    if length == 0 || length > MAX_PATH {
        let text = format!("the path has {length} bytes; that of a socket has 1 to {MAX_PATH}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is no socket"))
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes the socket that an earlier process left; anything else in its place is not ours to remove.
fn remove_stale(path: &Path) -> io::Result<()> {
    check_path(path)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether the descriptor is a listening UNIX stream socket.
fn listens(fd: &OwnedFd) -> bool {
    let option = |name| {
        let (mut value, mut length) = (0i32, 4);
        let to = std::ptr::from_mut(&mut value).cast();
        // SAFETY: the kernel writes at most `length` bytes, the size of `value`.
        let got = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, to, &mut length) };
        (got == 0).then_some(value)
    };
    option(libc::SO_DOMAIN) == Some(libc::AF_UNIX)
        && option(libc::SO_TYPE) == Some(libc::SOCK_STREAM)
        && option(libc::SO_ACCEPTCONN) == Some(1)
}
