//! Machines to which things happen while their guest, the probe, works: its serial port is a terminal in the test's hands, and the VMM
//! has an API socket.
//!
//! The guest's part is the probe's `load`, which tells its progress line by line until it is told to end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::held::Held;
use crate::probe::Report;
use crate::wire::Wire;
use crate::{ask, programs};

/// How long a sign of life may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// The VMM at work; killed on drop if it has not ended.
#[derive(Debug)]
pub struct Living {
    child: Child,
    wire: Wire,
    socket: PathBuf,
    messages: PathBuf,
    ended: bool,
}

/// What a load has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Requests answered by disks.
    pub disk: u64,
    /// Frames that came back.
    pub net: u64,
    /// Pages of memory looked at.
    pub memory: u64,
    /// What went wrong.
    pub errors: u64,
    /// Requests that a disk said it could not do, where that is no error.
    pub failures: u64,
}

impl Beat {
    /// Of the words behind `LOAD`; nothing if it is not all there.
    fn parse(text: &str) -> Option<Beat> {
        let number = |key: &str| {
            text.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
        };
        Some(Beat {
            disk: number("disk")?,
            net: number("net")?,
            memory: number("memory")?,
            errors: number("errors")?,
            // The guests of the first snapshots do not count them.
            failures: number("failures").unwrap_or_default(),
        })
    }
}

impl Living {
    /// Starts the probe with this command line, one vCPU and 256 MiB, unless the further arguments for the VMM say otherwise. Its files lie in `directory` and
    /// begin with `name`.
    pub fn boot(directory: &Path, name: &str, cmdline: &str, arguments: &[&str]) -> Living {
        Living::start(directory, name, Living::command(cmdline, arguments))
    }

    /// The command by which [`boot`](Living::boot) starts the VMM.
    pub fn command(cmdline: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs::cloud_hypervisor());
        command.arg("--kernel").arg(programs::probe()).args(["--cmdline", cmdline]);
        let defaults = [["--memory", "size=256M"], ["--cpus", "boot=1"], ["--console", "off"]];
        let missing = defaults.iter().filter(|[flag, _]| !arguments.contains(flag));
        command.args(missing.flatten()).args(["--serial", "tty"]).args(arguments);
        command
    }

    /// Goes on with a snapshot; `restore` is the value of `--restore`.
    pub fn restore(directory: &Path, name: &str, restore: &str, arguments: &[&str]) -> Living {
        let mut command = Command::new(programs::cloud_hypervisor());
        command.args(["--restore", restore]).args(arguments);
        Living::start(directory, name, command)
    }

    /// A VMM that waits for questions.
    pub fn wait(directory: &Path, name: &str) -> Living {
        Living::wait_with(directory, name, &[])
    }

    /// The same with further arguments.
    pub fn wait_with(directory: &Path, name: &str, arguments: &[&str]) -> Living {
        let mut command = Command::new(programs::cloud_hypervisor());
        command.args(arguments);
        Living::start(directory, name, command)
    }

    /// Starts this command, which is the VMM's with its arguments, in its way.
    pub fn start(directory: &Path, name: &str, mut command: Command) -> Living {
        let file = |what: &str| directory.join(format!("{name}.{what}"));
        let (socket, messages) = (file("api"), file("messages"));
        let (wire, theirs) = Wire::pty();
        let log = File::create(&messages).expect("the directory takes files");
        command.arg("--api-socket").arg(&socket).stderr(log);
        command.stdin(theirs.try_clone().expect("a descriptor can be duplicated")).stdout(theirs);
        programs::ends_with_us(&mut command, libc::SIGKILL);
        let child = command.spawn().expect("the VMM starts");
        // It holds the terminal's other end, which is to be closed when the VMM ends.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Living { child, wire, socket, messages, ended: false }
    }

    /// The API's socket.
    pub fn api_socket(&self) -> &Path {
        &self.socket
    }

    /// The VMM's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many descriptors the VMM has open, and threads.
    fn holdings(&self) -> [usize; 2] {
        let held = Held::now(self.id());
        [held.descriptors.len(), held.threads]
    }

    /// What the VMM holds when the last answer's connection is closed, which is when the server gets to it: descriptors and threads.
    pub fn settled(&self) -> [usize; 2] {
        let mut last = self.holdings();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(10));
            last = [0, 1].map(|i| last[i].min(self.holdings()[i]));
        }
        last
    }

    /// Checks that the VMM comes to hold no more than `held`, which [`settled`](Living::settled) said before.
    ///
    /// # Panics
    /// If it still does after a minute.
    #[track_caller]
    pub fn holds_no_more_than(&self, held: [usize; 2]) {
        let begun = Instant::now();
        loop {
            let now = self.settled();
            if now[0] <= held[0] && now[1] <= held[1] {
                return;
            }
            let late = begun.elapsed() > PATIENCE;
            assert!(!late, "{held:?} descriptors and threads have become {now:?}");
        }
    }

    /// Asks the VMM; its status and answer.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn ask(&self, verb: &str, name: &str, body: &Value) -> (u16, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        // The socket may not be there yet.
        let begun = Instant::now();
        loop {
            if let Some(answer) = ask::ask(&self.socket, verb, name, body.as_bytes()) {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "{name} is not answered:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has the VMM do something, and says how long it took.
    ///
    /// # Panics
    /// If it refuses.
    #[track_caller]
    pub fn put(&self, name: &str, body: &Value) -> Duration {
        let begun = Instant::now();
        let (status, text) = self.ask("PUT", name, body);
        let took = begun.elapsed();
        assert!(status == 204 || status == 200, "{name}: {status} {text}\n{}", self.said());
        took
    }

    /// The answer to `vm.info`.
    ///
    /// # Panics
    /// If it is refused.
    pub fn info(&self) -> Value {
        let (status, text) = self.ask("GET", "vm.info", &Value::Null);
        assert_eq!(status, 200, "vm.info: {text}");
        serde_json::from_str(&text).expect("vm.info is JSON")
    }

    /// Pauses for a moment; how long pausing and resuming took.
    pub fn pause_and_resume(&self, moment: Duration) -> (Duration, Duration) {
        let pause = self.put("vm.pause", &Value::Null);
        std::thread::sleep(moment);
        (pause, self.put("vm.resume", &Value::Null))
    }

    /// Waits for a line of the guest's, and returns the rest of it.
    ///
    /// # Panics
    /// If it does not come in time.
    #[track_caller]
    pub fn wait_for(&mut self, begin: &str) -> String {
        self.look_for(begin).unwrap_or_else(|| panic!("{begin:?} does not come:\n{}", self.said()))
    }

    /// The same, but nothing if it does not come in time or the VMM ends.
    pub fn look_for(&mut self, begin: &str) -> Option<String> {
        self.wire.wait_for(begin, PATIENCE).and_then(|_| self.wire.wait_for("\n", PATIENCE))
    }

    /// The next sign of life.
    ///
    /// # Panics
    /// If none comes in time, or if it tells of an error.
    #[track_caller]
    pub fn beat(&mut self) -> Beat {
        let line = self.wait_for("LOAD ");
        let beat = Beat::parse(&line).unwrap_or_else(|| panic!("no figures in {line:?}"));
        assert_eq!(beat.errors, 0, "the guest found errors:\n{}", self.said());
        beat
    }

    /// Waits until disks (`disk`) and cards (`net`) have done that much more than a sign of life from now says.
    ///
    /// # Panics
    /// If one of them stands still for a minute, or there are errors.
    #[track_caller]
    pub fn progress(&mut self, disk: u64, net: u64) -> Beat {
        // Signs from before say nothing of now.
        while self.wire.unseen().contains("LOAD ") {
            self.beat();
        }
        let first = self.beat();
        let begun = Instant::now();
        loop {
            let now = self.beat();
            if now.disk >= first.disk + disk && now.net >= first.net + net {
                return now;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{now:?} is all that has come of {first:?}:\n{}",
                self.said()
            );
        }
    }

    /// Types something at the guest's serial port.
    pub fn type_in(&mut self, text: &str) {
        self.wire.send(text.as_bytes());
    }

    /// Tells the guest's load to end.
    pub fn end_load(&mut self) {
        self.type_in("q");
    }

    /// Everything from the serial port so far.
    pub fn serial(&self) -> String {
        self.wire.everything()
    }

    /// Tells the guest's load to end, and waits for the guest and the VMM.
    ///
    /// # Panics
    /// If one of them does not end in time.
    #[track_caller]
    pub fn end(mut self) -> Report {
        self.end_load();
        self.wait_for("DONE ");
        self.finish()
    }

    /// Waits for the guest's own end, and the VMM's.
    ///
    /// # Panics
    /// If they do not come in time.
    #[track_caller]
    pub fn ends(self) -> Report {
        self.finish()
    }

    /// Whether the VMM has ended.
    ///
    /// # Panics
    /// If the host cannot tell.
    pub fn has_ended(&mut self) -> bool {
        self.ended = self.child.try_wait().expect("a child can be waited for").is_some();
        self.ended
    }

    /// Ends the VMM, whatever the guest does.
    ///
    /// # Panics
    /// If it does not end in time.
    #[track_caller]
    pub fn shut_down(self) -> Report {
        self.put("vmm.shutdown", &Value::Null);
        self.finish()
    }

    /// Sends the VMM a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Ends the VMM by a signal.
    ///
    /// # Panics
    /// If it does not end in time.
    #[track_caller]
    pub fn killed(self, signal: i32) -> Report {
        self.signal(signal);
        self.finish()
    }

    /// Waits for the end of a VMM that refuses what it was told.
    ///
    /// # Panics
    /// If it does not end in time, or well.
    #[track_caller]
    pub fn refused(self) -> Report {
        let report = self.finish();
        assert!(!report.status.success(), "it was not refused:\n{report}");
        report
    }

    #[track_caller]
    fn finish(mut self) -> Report {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "the VMM does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(2));
        };
        self.ended = true;
        Report {
            status,
            serial: self.serial(),
            messages: self.messages(),
            stdout: String::new(),
            console: String::new(),
        }
    }

    /// Waits until the VMM has said `text` on its standard error.
    ///
    /// # Panics
    /// If it does not in time.
    #[track_caller]
    pub fn wait_for_message(&self, text: &str) {
        let begun = Instant::now();
        while !self.messages().contains(text) {
            assert!(begun.elapsed() < PATIENCE, "{text:?} is not said:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything from the VMM's standard error so far.
    pub fn messages(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.messages).unwrap_or_default()).into_owned()
    }

    /// The end of what guest and VMM said, for an error.
    pub fn said(&self) -> String {
        format!("--- serial\n{}\n--- messages\n{}", self.wire.tail(), self.messages())
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        if !self.ended {
            // Both fail only if it has ended meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Times of the same thing done often.
#[derive(Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// One more.
    pub fn note(&mut self, time: Duration) {
        self.0.push(time);
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let Some(&most) = sorted.last() else { return write!(f, "none") };
        let (median, p99) = (sorted[sorted.len() / 2], sorted[sorted.len() * 99 / 100]);
        write!(f, "{} times: median {median:.2?}, p99 {p99:.2?}, max {most:.2?}", sorted.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_read_whole_or_not_at_all() {
        let beat = Beat { disk: 7, net: 8, memory: 9, errors: 0, failures: 3 };
        assert_eq!(Beat::parse("disk=7 net=8 memory=9 errors=0 failures=3"), Some(beat));
        assert_eq!(Beat::parse("disk=7 net=8 mem"), None);
    }

    #[test]
    fn times_are_told_by_rank() {
        let times = Times((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(times.to_string(), "200 times: median 101.00ms, p99 199.00ms, max 200.00ms");
    }
}
