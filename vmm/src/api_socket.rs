//! The socket on which the API is served: made so that two processes never serve the same path.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use spec::{Kind, Refusal};

use crate::cli::{self, Place};

/// A bound socket; dropping it removes the path.
pub struct ApiSocket {
    listener: UnixListener,
    path: Option<PathBuf>,
    // The lock is held as long as the file is open; the file itself stays, as removing it would race.
    _lock: Option<File>,
}

impl ApiSocket {
    /// Binds the path, or takes the descriptor over.
    ///
    /// # Errors
    /// Another process serves the path, or it cannot be bound.
    pub fn open(place: Place) -> Result<Self, Refusal> {
        match place {
            Place::Fd(fd) => {
                let fd = cli::open_fd(fd, "--api-socket")?;
                Ok(ApiSocket { listener: fd.into(), path: None, _lock: None })
            }
            Place::Path(path) => {
                let lock = lock(&path)?;
                let bind = |e| Refusal::host(format!("Cannot listen on API socket {}", path.display()), e);
                remove_stale(&path).map_err(bind)?;
                let listener = UnixListener::bind(&path).map_err(bind)?;
                Ok(ApiSocket { listener, path: Some(path), _lock: Some(lock) })
            }
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

impl Drop for ApiSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(e) = std::fs::remove_file(path)
        {
            log::warn!("cannot remove {}: {e}", path.display());
        }
    }
}

fn lock(path: &Path) -> Result<File, Refusal> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(|e| Refusal::host(format!("Cannot create lock file {}", name.display()), e))?;
    // SAFETY: flock takes an open descriptor and an integer.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(file);
    }
    let e = io::Error::last_os_error();
    Err(if e.kind() == io::ErrorKind::WouldBlock {
        Refusal::new(
            Kind::Host,
            format!("API socket {} is already in use by another running instance", path.display()),
        )
    } else {
        Refusal::host(format!("Cannot lock {}", name.display()), e)
    })
}

/// Removes the socket that an earlier process left; anything else in its place is not ours to remove.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is no socket")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}
