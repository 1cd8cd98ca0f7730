//! A program that waits for requests over the API.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use serde_json::Value;
use tests::ask;

use crate::bench::{Bench, quiet, read, until, wait};
use crate::saved::Snapshot;

/// A program that waits for requests.
pub(crate) struct Server {
    pub(crate) bench: Bench,
    child: Child,
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::start_in(Bench::new())
    }

    /// Starts it in this directory.
    pub(crate) fn start_in(bench: Bench) -> Server {
        Server::start_as(bench, |command| command)
    }

    /// Starts it in a directory of its own, beside copies of this one's good snapshot and disk.
    pub(crate) fn start_in_copy(bench: &Bench) -> Server {
        let copy = Bench::new();
        std::fs::copy(bench.path("disk"), copy.path("disk")).unwrap();
        Snapshot::read(bench.path("good")).copy(copy.path("good"), false);
        Server::start_in(copy)
    }

    /// Starts it in this directory, the way that `wrap` says.
    pub(crate) fn start_as(bench: Bench, wrap: impl FnOnce(Command) -> Command) -> Server {
        let log = File::options().create(true).append(true).open(bench.path("log")).unwrap();
        let mut command = wrap(bench.command(&["--api-socket", "s"]));
        let child = quiet(&mut command).stderr(log).spawn().unwrap();
        until("the API socket", || UnixStream::connect(bench.path("s")).is_ok());
        Server { bench, child }
    }

    /// Starts it again where it has ended.
    pub(crate) fn start_again(&mut self) {
        let log = File::options().append(true).open(self.bench.path("log")).unwrap();
        let _ = std::fs::remove_file(self.bench.path("s"));
        self.child = quiet(&mut self.bench.command(&["--api-socket", "s"])).stderr(log).spawn().unwrap();
        until("the API socket", || UnixStream::connect(self.bench.path("s")).is_ok());
    }

    /// Its end, which has to come.
    pub(crate) fn end(&mut self) -> ExitStatus {
        wait(&mut self.child).expect("the program ends")
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Everything from its standard error since this was last asked.
    pub(crate) fn take_log(&self) -> String {
        let log = self.log();
        File::create(self.bench.path("log")).unwrap();
        log
    }

    /// Everything from its standard error.
    pub(crate) fn log(&self) -> String {
        read(&self.bench.path("log"))
    }

    /// How many descriptors and threads it has when the connections of questions that were answered are closed: the server gets to that in
    /// a moment, and the fewest count.
    pub(crate) fn settled(&self) -> [usize; 2] {
        let mut held = self.holdings();
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(10));
            held = [0, 1].map(|i| held[i].min(self.holdings()[i]));
        }
        held
    }

    /// How many descriptors it has open, and threads, without those that io_uring lends it now and then.
    pub(crate) fn holdings(&self) -> [usize; 2] {
        let list = |what: &str| {
            let entries = std::fs::read_dir(format!("/proc/{}/{what}", self.id())).expect("the program runs");
            entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let own = |task: &&PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| !name.starts_with("iou-"))
        };
        [list("fd").len(), list("task").iter().filter(own).count()]
    }

    /// Sends these bytes and reads one answer: its status and body; `None` if the connection ends without.
    pub(crate) fn send(&self, request: &[u8]) -> Option<(u16, String)> {
        ask::exchange(&self.bench.path("s"), request)
    }

    /// Asks, with a body unless it is empty.
    #[track_caller]
    pub(crate) fn ask(&self, verb: &str, name: &str, body: &[u8]) -> (u16, String) {
        let answer = ask::ask(&self.bench.path("s"), verb, name, body);
        answer.unwrap_or_else(|| {
            // Of a process that has ended, and was not waited for, the kernel keeps how (proc(5), exit_code).
            let stat = read(format!("/proc/{}/stat", self.id()).as_ref());
            let serial = read(&self.bench.path("serial"));
            panic!(
                "{verb} {name} has no answer; the process: {stat}its log: {}its guest: {serial}",
                self.log()
            )
        })
    }

    pub(crate) fn put(&self, name: &str) -> (u16, String) {
        self.ask("PUT", name, b"")
    }

    /// Asks for what must be refused with this status and these messages.
    #[track_caller]
    pub(crate) fn refuses(&self, verb: &str, name: &str, body: &[u8], status: u16, messages: &[&str]) {
        let (told, text) = self.ask(verb, name, body);
        let list: Vec<String> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}: {text}"));
        assert_eq!(
            (told, list),
            (status, messages.iter().map(ToString::to_string).collect()),
            "{verb} {name}"
        );
    }

    #[track_caller]
    pub(crate) fn does(&self, name: &str, body: &Value) {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.ask("PUT", name, text.as_bytes());
        assert_eq!(answer, (204, String::new()), "{name}");
    }

    pub(crate) fn info(&self) -> Value {
        let (status, text) = self.ask("GET", "vm.info", b"");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Checks that it still answers, and ends it.
    #[track_caller]
    pub(crate) fn ends_well(mut self) {
        assert_eq!(self.ask("GET", "vmm.ping", b"").0, 200);
        assert_eq!(self.put("vmm.shutdown").0, 200);
        assert_eq!(wait(&mut self.child).and_then(|status| status.code()), Some(0));
        assert!(!self.bench.path("s").exists(), "the socket is left");
        let log = read(&self.bench.path("log"));
        assert!(!log.contains("panicked"), "{log}");
        self.bench.nobody_is_here();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
