//! The event monitor: a record of what happens, for programs that watch.
//!
//! Records are JSON, two spaces deep, each followed by an empty line (contract `api.md` §5). A slow or vanished reader never
//! holds the machine up: the descriptor is non-blocking, and errors are told once in the log.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// Writes event records, if anybody asked for them; each event is also logged.
pub struct Monitor {
    begun: Instant,
    file: Option<Mutex<File>>,
    /// Whether it was told that records are lost.
    failed: AtomicBool,
}

#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

#[derive(Serialize)]
struct Record<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: Option<std::collections::BTreeMap<&'a str, &'a str>>,
}

impl Monitor {
    /// A monitor that writes to `file`, which is made non-blocking; `None` only logs.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub fn new(file: Option<File>) -> io::Result<Self> {
        if let Some(file) = &file {
            // SAFETY: a plain fcntl call on a descriptor that `file` keeps open.
            let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
            // SAFETY: as above; where the first call failed, so does this.
            let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
            if flags < 0 || set < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Monitor { begun: Instant::now(), file: file.map(Mutex::new), failed: AtomicBool::new(false) })
    }

    /// Records an event.
    pub fn record(&self, source: &str, event: &str, properties: &[(&str, &str)]) {
        log::info!("Event: source = {source} event = {event} {}", Listed(properties));
        let Some(file) = &self.file else { return };
        let since = self.begun.elapsed();
        let record = Record {
            timestamp: Timestamp { secs: since.as_secs(), nanos: since.subsec_nanos() },
            source,
            event,
            properties: (!properties.is_empty()).then(|| properties.iter().copied().collect()),
        };
        if let Ok(mut text) = serde_json::to_vec_pretty(&record) {
            text.extend_from_slice(b"\n\n");
            // A reader that is slow or gone loses records; the machine goes on.
            let wrote = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text);
            if let Err(e) = wrote
                && e.kind() != io::ErrorKind::WouldBlock
                && !self.failed.swap(true, Ordering::Relaxed)
            {
                log::warn!("event monitor: records are lost: {e}");
            }
        }
    }
}

struct Listed<'a>(&'a [(&'a str, &'a str)]);

impl std::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(key, value)| write!(f, "{key} = {value} "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_record_looks_as_clients_expect() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let monitor = Monitor::new(Some(File::from(OwnedFd::from(here)))).unwrap();
        monitor.record("vm", "booting", &[]);
        monitor.record("vm", "device-removed", &[("id", "_disk2")]);
        drop(monitor);
        let mut text = String::new();
        there.read_to_string(&mut text).unwrap();
        let records: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(records.len(), 2);
        assert!(records[0].starts_with("{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": "), "{text}");
        assert!(records[0].ends_with("\"event\": \"booting\",\n  \"properties\": null\n}"), "{text}");
        assert!(records[1].contains("\"properties\": {\n    \"id\": \"_disk2\"\n  }"), "{text}");
    }
}
