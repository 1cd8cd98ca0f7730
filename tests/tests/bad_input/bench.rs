//! A directory in which the program is run, and the checks after each run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub(crate) use tests::permissions::heeding_permissions;
use tests::programs;
use tests::scratch::Scratch;
use tests::terminal::Terminal;

/// How long a refusal may take before it counts as a hang. A loaded machine is slow; a right answer takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the program runs. Names in arguments are relative to it, so that messages are the same each time.
pub(crate) struct Bench {
    scratch: Scratch,
}

/// How a run ended.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    /// Standard error without log records.
    pub(crate) messages: String,
    /// Log records.
    pub(crate) log: String,
}

impl Bench {
    /// An empty directory.
    pub(crate) fn new() -> Bench {
        let bench = Bench { scratch: Scratch::new() };
        fs::create_dir(bench.directory()).expect("the scratch directory takes a directory");
        bench
    }

    /// Where the program runs.
    pub(crate) fn directory(&self) -> PathBuf {
        self.scratch.file("work")
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Writes a file into it.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("the scratch directory takes files");
    }

    /// Makes a FIFO in it.
    pub(crate) fn fifo(&self, name: &str) {
        let status = Command::new("mkfifo").arg(self.path(name)).status().expect("mkfifo runs");
        assert!(status.success());
    }

    /// The program with these arguments and a small machine around them, to be run here.
    pub(crate) fn machine(&self, args: &[&str]) -> Command {
        self.command(&machine(args).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The program with these arguments only, to be run here.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs::cloud_hypervisor());
        command.args(args).current_dir(self.directory());
        command
    }

    /// Runs a machine with these arguments, which must be refused with exactly this chain of errors.
    #[track_caller]
    pub(crate) fn refuses(&self, args: &[&str], chain: &[&str]) {
        self.refused(&mut self.machine(args), chain);
    }

    /// Runs a command that must be refused with exactly this chain of errors.
    #[track_caller]
    pub(crate) fn refused(&self, command: &mut Command, chain: &[&str]) {
        let outcome = self.run_unchanged(command);
        assert_eq!(outcome.messages, told(chain), "{command:?}\n{}", outcome.log);
        assert_eq!(outcome.status.code(), Some(1), "{command:?}");
        assert_eq!(outcome.stdout, "", "{command:?}");
    }

    /// Runs a command of which nothing may be left: no file, no process, no terminal setting.
    #[track_caller]
    pub(crate) fn run_unchanged(&self, command: &mut Command) -> Outcome {
        let before = contents(&self.directory());
        let mut terminal = Terminal::new();
        let settings = terminal.settings();
        command.stdin(terminal.program_end()).stdout(terminal.program_end());
        let mut outcome = self.run(command);
        outcome.stdout = terminal.shown();
        assert_eq!(terminal.settings(), settings, "{command:?} changed the terminal");
        let after = contents(&self.directory());
        assert!(before == after, "{command:?} changed files:\n{before:#?}\n{after:#?}\n{}", outcome.messages);
        outcome
    }

    /// Runs a command to its end, after which nobody is here.
    #[track_caller]
    pub(crate) fn run(&self, command: &mut Command) -> Outcome {
        let outcome = self.outcome(command);
        self.nobody_is_here();
        outcome
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn outcome(&self, command: &mut Command) -> Outcome {
        let errors = self.scratch.file("stderr");
        command.stderr(File::create(&errors).expect("the scratch directory takes files"));
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let status = wait(&mut child).unwrap_or_else(|| panic!("{command:?} hangs:\n{}", read(&errors)));
        let (log, messages): (Vec<_>, Vec<_>) =
            read(&errors).split_inclusive('\n').map(str::to_owned).partition(|line| line.ends_with("\r\n"));
        Outcome { status, stdout: String::new(), messages: messages.concat(), log: log.concat() }
    }

    /// Checks that no process has this directory for its own: all that ran here have ended.
    #[track_caller]
    pub(crate) fn nobody_is_here(&self) {
        let here = self.directory();
        for process in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
            if fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == here) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                panic!("process {:?} ({}) is left", process.file_name(), name.trim_end());
            }
        }
    }
}

/// These arguments, and those of a small machine where they do not say otherwise.
pub(crate) fn machine(args: &[&str]) -> Vec<String> {
    let probe = programs::probe().display().to_string();
    let defaults = [("--kernel", probe.as_str()), ("--console", "off"), ("--memory", "size=64M")];
    let missing = defaults.iter().filter(|(flag, _)| !args.contains(flag));
    missing.flat_map(|(flag, value)| [*flag, *value]).chain(args.iter().copied()).map(str::to_owned).collect()
}

/// How a chain of errors is told.
pub(crate) fn told(chain: &[&str]) -> String {
    if let [message] = chain {
        return format!("Error: Cloud Hypervisor exited with the following error:\n  {message}\n");
    }
    let lines = chain.iter().enumerate().map(|(depth, message)| format!("  {depth}: {message}\n"));
    format!(
        "Error: Cloud Hypervisor exited with the following chain of errors:\n{}",
        lines.collect::<String>()
    )
}

/// Waits for a child's end; `None`, and the child killed, if it does not come.
pub(crate) fn wait(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // Both fail only if it has ended meanwhile.
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// What is in a directory: names, kinds and permissions, and every byte of the files.
pub(crate) fn contents(directory: &Path) -> BTreeMap<String, Content> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("the directory is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let meta = entry.path().symlink_metadata().expect("nobody else removes files here");
        let kind = meta.file_type();
        if kind.is_dir() {
            let inner = contents(&entry.path()).into_iter();
            all.extend(inner.map(|(inner, content)| (format!("{name}/{inner}"), content)));
        }
        let bytes = if kind.is_file() { fs::read(entry.path()).unwrap_or_default() } else { Vec::new() };
        let socket = kind.is_socket();
        all.insert(name, Content { inode: meta.ino(), mode: meta.mode(), size: meta.size(), socket, bytes });
    }
    all
}

#[derive(PartialEq)]
pub(crate) struct Content {
    inode: u64,
    mode: u32,
    size: u64,
    socket: bool,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inode {} mode {:o} of {} bytes", self.inode, self.mode, self.size)
    }
}

/// Whether this is root. If not, says loudly that `what` is not tested.
pub(crate) fn root(what: &str) -> bool {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        skipped(what, "it needs root");
    }
    root
}

/// Says on the real standard error, which the test harness does not keep to itself, that something is not tested.
pub(crate) fn skipped(what: &str, why: &str) {
    use std::io::Write;
    // A test that cannot say so is skipped all the same.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {what}: {why}\n").as_bytes());
}

/// Silences a command that is only to be up.
pub(crate) fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}
