//! A machine that is told what to do over its API while it runs: for pauses and snapshots. A program that refuses is skipped, with its own words.

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::ask;

use crate::process::Process;
use crate::subject::{Extra, Subject};

/// How long a guest may take until it says that it is ready; one that touches gigabytes takes seconds.
const LIMIT: Duration = Duration::from_secs(120);

/// Killed on drop, like its process.
#[derive(Debug)]
pub(crate) struct Served {
    _process: Process,
    socket: PathBuf,
}

impl Served {
    /// Starts the probe with `mib` of memory and waits until it says `ready`.
    pub(crate) fn start(
        subject: &Subject,
        probe: &Path,
        (cmdline, ready): (&str, &str),
        mib: u64,
        scratch: &Path,
        extra: Extra<'_>,
    ) -> Result<Served, Error> {
        let socket = scratch.join(format!("bench-{}-{}.api", std::process::id(), unique()));
        let mut command = subject.run_with(probe, cmdline, mib, extra);
        command.arg("--api-socket").arg(&socket);
        let mut process = Process::start(command)?;
        process.read_until(LIMIT, |seen| String::from_utf8_lossy(seen).contains(ready))?;
        Ok(Served { _process: process, socket })
    }

    /// Has it do something; how long that took. [`Unsupported`](ErrorKind::Unsupported) is what it refuses.
    fn put(&self, name: &str, body: &str) -> Result<Duration, Error> {
        let begun = Instant::now();
        let answer = ask::ask(&self.socket, "PUT", name, body.as_bytes());
        let took = begun.elapsed();
        match answer {
            Some((200 | 204, _)) => Ok(took),
            Some((status, text)) => {
                Err(Error::new(ErrorKind::Unsupported, format!("{name} is answered by {status}: {text}")))
            }
            None => Err(Error::other(format!("{name} is not answered"))),
        }
    }

    pub(crate) fn pause(&self) -> Result<Duration, Error> {
        self.put("vm.pause", "")
    }

    pub(crate) fn resume(&self) -> Result<Duration, Error> {
        self.put("vm.resume", "")
    }

    /// Into a new directory.
    pub(crate) fn snapshot(&self, directory: &Path) -> Result<Duration, Error> {
        std::fs::create_dir(directory)?;
        let url = format!("file://{}", directory.display());
        self.put("vm.snapshot", &json!({ "destination_url": url }).to_string())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Killed programs leave both behind; either may not be there.
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("api.lock"));
    }
}

/// A number that no other call gets.
pub(crate) fn unique() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// A directory that is removed with everything in it on drop.
#[derive(Debug)]
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    /// The name of a new one; it is not made.
    pub(crate) fn new(scratch: &Path) -> Directory {
        // Absolute, for URLs.
        let scratch = scratch.canonicalize().unwrap_or_else(|_| scratch.to_path_buf());
        Directory(scratch.join(format!("bench-{}-{}.snapshot", std::process::id(), unique())))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It may not have been made.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
