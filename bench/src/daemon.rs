//! A program that serves something at a socket, at work.

use std::io::{Error, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::process;
use crate::served::unique;

/// How long it may take to listen, and to end.
const LIMIT: Duration = Duration::from_secs(20);

/// Ended on drop.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
}

/// The name of a new socket.
pub(crate) fn socket(scratch: &Path) -> PathBuf {
    scratch.join(format!("bench-{}-{}.vhost", std::process::id(), unique()))
}

/// Whether somebody in this thread's network namespace listens there; a socket is there before.
fn listens(socket: &Path) -> Result<bool, Error> {
    const LISTENS: &str = "00010000";
    let text = std::fs::read_to_string("/proc/thread-self/net/unix")?;
    let path = socket.to_string_lossy();
    // Number, references, protocol, flags, type, state, inode, path.
    Ok(text.lines().any(|line| line.ends_with(&*path) && line.split_whitespace().nth(3) == Some(LISTENS)))
}

impl Daemon {
    /// Starts it, and waits until it listens; it is asked by a connection only where it takes several.
    pub(crate) fn start(mut command: Command, socket: PathBuf, connect: bool) -> Result<Daemon, Error> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut daemon = Daemon { child, socket };
        let begun = Instant::now();
        let listens = |socket: &Path| {
            if connect { Ok(UnixStream::connect(socket).is_ok()) } else { listens(socket) }
        };
        while !listens(&daemon.socket)? {
            if daemon.child.try_wait()?.is_some() || begun.elapsed() > LIMIT {
                return Err(Error::other(format!("it does not listen: {}", daemon.said())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(daemon)
    }

    /// What it said; ends it, if it has not ended.
    fn said(&mut self) -> String {
        // It fails only if it has ended.
        let _ = self.child.kill();
        let mut text = String::new();
        if let Some(mut pipe) = self.child.stderr.take()
            && let Err(e) = pipe.read_to_string(&mut text)
        {
            text = e.to_string();
        }
        text
    }

    /// CPU time of all its threads so far, the kernel's on their behalf included.
    pub(crate) fn cpu(&self) -> Result<Duration, Error> {
        process::used(self.child.id())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It is to let go of its files before the next one comes for them, which one that is killed with requests under way does later.
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let begun = Instant::now();
        while begun.elapsed() < LIMIT && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Both fail only if it has ended; the socket may be gone, and only virtiofsd writes its number beside it, and passt has a second one.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
        for beside in ["vhost.pid", "vhost.repair"] {
            let _ = std::fs::remove_file(self.socket.with_extension(beside));
        }
    }
}
