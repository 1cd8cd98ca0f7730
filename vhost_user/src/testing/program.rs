//! The program at work.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of a test's own.
pub struct Scratch(PathBuf);

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// Makes it; it goes when this is dropped.
    pub fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vhost-user-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file of that many bytes, all zeros.
    pub fn zeros(&self, name: &str, bytes: u64) -> PathBuf {
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

/// The program under test.
#[derive(Clone, Copy)]
pub struct Program {
    /// Where it is.
    pub path: &'static str,
    /// The flag that names a device.
    pub flag: &'static str,
}

impl Program {
    fn name(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.path);
        command.env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Starts it.
    pub fn spawn(&self, scratch: &Scratch, args: &[&str]) -> Daemon {
        let messages = scratch.path("messages");
        let log = File::options().create(true).append(true).open(&messages).unwrap();
        let child = self.command().args(args).stderr(log).spawn().unwrap();
        Daemon { child, messages }
    }

    /// Starts it with one device and waits until it listens.
    pub fn serve(&self, scratch: &Scratch, socket: &Path, keys: &str) -> Daemon {
        let line = format!("socket={},{keys}", socket.display());
        let mut daemon = self.spawn(scratch, &[self.flag, &line]);
        assert!(daemon.listens(socket), "{}", daemon.said());
        daemon
    }

    /// It refuses a device, and says why in these words.
    #[track_caller]
    pub fn refuses(&self, line: &str, chain: &[&str]) {
        let output = self.run(&[self.flag, line]);
        let text = String::from_utf8(output.stderr).unwrap();
        let name = self.name();
        let expected = if let [message] = chain {
            format!("Error: {name} exited with the following error:\n  {message}\n")
        } else {
            let lines = chain.iter().enumerate().map(|(depth, message)| format!("  {depth}: {message}\n"));
            let lines = lines.collect::<String>();
            format!("Error: {name} exited with the following chain of errors:\n{lines}")
        };
        assert_eq!(text, expected, "{line}");
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(output.stdout.is_empty());
    }

    /// Its help names these keys, and what is no command line of its is a usage error.
    #[track_caller]
    pub fn teaches(&self, keys: &[&str]) {
        for args in [&[][..], &[self.flag], &["--nonsense"], &["path=a,socket=b"]] {
            let output = self.run(args);
            assert_eq!(output.status.code(), Some(2), "{args:?}");
            assert!(!output.stderr.is_empty());
        }
        let output = self.run(&["--version"]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().starts_with(&format!("{} ", self.name())));
        for flag in ["--help", "-h"] {
            let output = self.run(&[flag]);
            assert!(output.status.success());
            assert!(String::from_utf8(output.stdout).unwrap().contains(self.flag));
        }
        let help = String::from_utf8(self.run(&["--help"]).stdout).unwrap();
        for key in keys {
            assert!(help.contains(&format!("\n            {key}=")), "{key}: {help}");
        }
    }
}

/// The program at work; killed on drop.
pub struct Daemon {
    child: Child,
    messages: PathBuf,
}

impl Daemon {
    /// Waits until somebody listens on the socket; `false` if the program ends before.
    pub fn listens(&mut self, socket: &Path) -> bool {
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

    /// What it has written so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.messages).unwrap_or_default()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The names of its threads, all of which have filters of system calls in this mode (as `/proc` tells it: 0 none, 2 filtered).
    #[track_caller]
    pub fn threads_filtered(&self, mode: &str) -> Vec<String> {
        let value = |status: &str, key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
            value.unwrap_or_default().to_owned()
        };
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten();
        let read = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).unwrap();
        let named = |status: String| {
            assert_eq!(value(&status, "Seccomp"), mode, "{status}");
            value(&status, "Name")
        };
        tasks.map(read).map(named).collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
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
    pub fn kill(&mut self) {
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
