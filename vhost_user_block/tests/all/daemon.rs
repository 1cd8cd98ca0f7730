//! The program at work.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of a test's own.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vub-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// An image of that many bytes, all zeros.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program; killed on drop.
pub(crate) struct Daemon {
    child: Child,
    messages: PathBuf,
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost_user_block"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

impl Daemon {
    /// Starts it with one disk and waits until it listens.
    pub(crate) fn start(scratch: &Scratch, image: &Path, socket: &Path, keys: &str) -> Daemon {
        let line = format!("path={},socket={}{keys}", image.display(), socket.display());
        let mut daemon = Daemon::spawn(scratch, &["--block-backend", &line]);
        assert!(daemon.listens(socket), "{}", daemon.said());
        daemon
    }

    pub(crate) fn spawn(scratch: &Scratch, args: &[&str]) -> Daemon {
        let messages = scratch.path("messages");
        let log = File::options().create(true).append(true).open(&messages).unwrap();
        let child = command().args(args).stderr(log).spawn().unwrap();
        Daemon { child, messages }
    }

    /// Waits until somebody listens on the socket; `false` if the program ends before.
    pub(crate) fn listens(&mut self, socket: &Path) -> bool {
        let begun = Instant::now();
        while UnixStream::connect(socket).is_err() {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(begun.elapsed() < PATIENCE, "nobody listens: {}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.messages).unwrap_or_default()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it as the kernel would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
