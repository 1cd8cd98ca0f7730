//! `vhost_user_block` at work, to be killed and started again.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::programs;

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon; killed on drop.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    line: String,
    socket: PathBuf,
}

impl Daemon {
    /// Serves an image at a socket; `keys` is the rest of the line, with a comma in front.
    ///
    /// # Panics
    /// If it does not come to listen.
    pub fn start(image: &Path, socket: &Path, keys: &str) -> Daemon {
        let line = format!("path={},socket={}{keys}", image.display(), socket.display());
        Daemon::go(line, socket.to_path_buf())
    }

    fn go(line: String, socket: PathBuf) -> Daemon {
        let mut command = Command::new(programs::vhost_user_block());
        command.args(["--block-backend", &line]).stdin(Stdio::null());
        let child = command.spawn().expect("the daemon starts");
        let mut daemon = Daemon { child, line, socket };
        let begun = Instant::now();
        while UnixStream::connect(&daemon.socket).is_err() {
            let ended = daemon.child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "the daemon does not listen: {ended:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// Kills it; the line that starts it again.
    pub fn die(mut self) -> Dead {
        self.child.kill().expect("the daemon runs");
        self.child.wait().expect("a child can be waited for");
        Dead { line: self.line.clone(), socket: self.socket.clone() }
    }

    /// Killed, and another one in its place.
    #[must_use]
    pub fn die_and_rise(self) -> Daemon {
        self.die().rise()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon that was killed.
#[derive(Debug)]
pub struct Dead {
    line: String,
    socket: PathBuf,
}

impl Dead {
    /// Another one in its place.
    pub fn rise(self) -> Daemon {
        Daemon::go(self.line, self.socket)
    }
}
