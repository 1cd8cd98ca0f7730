//! Running the probe guest under the VMM, and reading its report.
//!
//! ```no_run
//! # use tests::probe::Guest;
//! Guest::new("hello,memory-map").memory("size=128M").run().all_passed();
//! ```

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::scratch::Scratch;
use crate::terminal::Terminal;
use crate::{permissions, programs, remote};

/// How long a guest may take to its end before it counts as hung. The longest take seconds where they have a processor to themselves.
const PATIENCE: Duration = Duration::from_secs(300);

/// A machine to be started with the probe in it.
#[derive(Debug)]
pub struct Guest {
    scratch: Scratch,
    arguments: Vec<String>,
    cmdline: String,
    memory: String,
    cpus: String,
    console: String,
    serial: Option<String>,
    private_network: bool,
    heeds_permissions: bool,
    unprivileged: bool,
    terminal: Option<(OwnedFd, OwnedFd)>,
}

impl Guest {
    /// One vCPU and 256 MiB, to run the probe's `tests` (names with commas between).
    pub fn new(tests: &str) -> Guest {
        Guest {
            scratch: Scratch::new(),
            arguments: Vec::new(),
            cmdline: format!("probe.run={tests}"),
            memory: "size=256M".to_string(),
            cpus: "boot=1".to_string(),
            console: "off".to_string(),
            serial: None,
            private_network: false,
            heeds_permissions: false,
            unprivileged: false,
            terminal: None,
        }
    }

    /// The value of `--memory`.
    pub fn memory(mut self, value: &str) -> Guest {
        self.memory = value.to_string();
        self
    }

    /// The value of `--cpus`.
    pub fn cpus(mut self, value: &str) -> Guest {
        self.cpus = value.to_string();
        self
    }

    /// The value of `--console`.
    pub fn console(mut self, value: &str) -> Guest {
        self.console = value.to_string();
        self
    }

    /// The value of `--serial`, whose output is not read then.
    pub fn serial(mut self, value: &str) -> Guest {
        self.serial = Some(value.to_string());
        self
    }

    /// More words for the probe's command line.
    pub fn option(mut self, words: &str) -> Guest {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// The probe's command line as it is.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// More arguments for the VMM.
    pub fn with(mut self, arguments: &[&str]) -> Guest {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Starts the VMM in a network namespace of its own, which goes when it does: its taps disturb nobody.
    pub fn in_private_network(mut self) -> Guest {
        self.private_network = true;
        self
    }

    /// Starts the VMM without the privileges that let root ignore permissions.
    pub fn heeding_permissions(mut self) -> Guest {
        self.heeds_permissions = true;
        self
    }

    /// Starts the VMM as a user without privileges, to whom [`permissions::open_to_everybody`] has opened what it needs.
    pub fn as_nobody(mut self) -> Guest {
        self.unprivileged = true;
        self
    }

    /// The guest's scratch directory.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Lets the VMM be asked.
    pub fn with_api(self) -> Guest {
        let socket = self.scratch.file("api").display().to_string();
        self.with(&["--api-socket", &socket])
    }

    /// Gives the VMM `terminal` for its standard input and output.
    pub fn on(mut self, terminal: &Terminal) -> Guest {
        self.terminal = Some((terminal.program_end(), terminal.program_end()));
        self
    }

    /// A file in the guest's own scratch directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Report {
        self.start().finish()
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let serial = self.scratch.file("serial");
        let messages = self.scratch.file("messages");
        let to = self.serial.unwrap_or_else(|| format!("file={}", serial.display()));
        let mut command = Command::new(programs::cloud_hypervisor());
        command
            .arg("--kernel")
            .arg(programs::probe())
            .args(["--cmdline", &self.cmdline, "--memory", &self.memory, "--cpus", &self.cpus])
            .args(["--console", &self.console, "--serial", &to])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(File::create(self.scratch.file("stdout")).expect("the scratch directory takes files"))
            .stderr(File::create(&messages).expect("the scratch directory takes files"));
        if let Some((input, output)) = self.terminal {
            command.stdin(input).stdout(output);
        }
        if self.heeds_permissions {
            permissions::heeding_permissions(&mut command);
        }
        if self.unprivileged {
            permissions::unprivileged(&mut command);
        }
        if self.private_network {
            // SAFETY: unshare is a plain system call, safe between fork and exec.
            unsafe {
                command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                });
            }
        }
        programs::ends_with_us(&mut command, libc::SIGKILL);
        let child = command.spawn().expect("the VMM starts");
        Running { child, scratch: self.scratch, serial, messages, ended: false }
    }
}

/// A VMM at work; killed on drop if it has not ended.
#[derive(Debug)]
pub struct Running {
    child: Child,
    scratch: Scratch,
    serial: PathBuf,
    messages: PathBuf,
    ended: bool,
}

impl Running {
    /// What the guest has written to its serial port so far.
    pub fn serial(&self) -> String {
        read(&self.serial)
    }

    /// Asks the VMM, which was [given a socket](Guest::with_api), with `ch-remote`.
    ///
    /// # Panics
    /// If it refuses.
    #[track_caller]
    pub fn ask(&self, command: &[&str]) -> String {
        self.remote(command).unwrap_or_else(|error| {
            panic!("ch-remote {}: {error}\n{}\n{}", command.join(" "), self.serial(), read(&self.messages))
        })
    }

    /// What `ch-remote` answers, or its error.
    ///
    /// # Errors
    /// What it wrote to its standard error.
    pub fn remote(&self, command: &[&str]) -> Result<String, String> {
        remote::ask(&self.api_socket(), command)
    }

    /// What `vm.info` tells.
    #[track_caller]
    pub fn info(&self) -> serde_json::Value {
        serde_json::from_str(&self.ask(&["info"])).expect("vm.info is JSON")
    }

    /// The API's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.scratch.file("api")
    }

    /// A file in the guest's scratch directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    /// The VMM's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the serial port has shown `text` `times` times.
    ///
    /// # Panics
    /// After [`PATIENCE`], or if the VMM ends before.
    pub fn wait_for(&mut self, text: &str, times: usize) {
        self.wait_until(&format!("{text:?}, {times} times"), |running| {
            running.serial().matches(text).count() >= times
        });
    }

    /// Waits until the VMM has said `text` on its standard error.
    ///
    /// # Panics
    /// As [`wait_for`](Running::wait_for).
    pub fn wait_for_message(&mut self, text: &str) {
        self.wait_until(&format!("the message {text:?}"), |running| read(&running.messages).contains(text));
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// As [`wait_for`](Running::wait_for).
    pub fn wait_until(&mut self, what: &str, so: impl Fn(&Running) -> bool) {
        let start = Instant::now();
        while !so(self) {
            let ended = self.child.try_wait().expect("a child can be waited for");
            self.ended |= ended.is_some();
            assert!(
                (ended.is_none() || so(self)) && start.elapsed() < PATIENCE,
                "{what} does not come ({ended:?}):\n{}\n{}",
                self.serial(),
                read(&self.messages)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends the VMM a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Waits for the VMM's end and reads the report.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    pub fn finish(mut self) -> Report {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                self.ended = true;
                break status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "the VMM does not end:\n{}\n{}",
                self.serial(),
                read(&self.messages)
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        Report {
            status,
            serial: self.serial(),
            messages: read(&self.messages),
            stdout: read(&self.scratch.file("stdout")),
            console: read(&self.scratch.file("console")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // Both fail only if it has ended meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read(path: &PathBuf) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(), // not written yet
    }
}

/// What came of a guest.
#[derive(Debug)]
pub struct Report {
    /// How the VMM ended.
    pub status: ExitStatus,
    /// Everything from the serial port.
    pub serial: String,
    /// Everything from the VMM's standard error.
    pub messages: String,
    /// Everything from the VMM's standard output.
    pub stdout: String,
    /// What is in the scratch file `console`.
    pub console: String,
}

impl Report {
    /// The facts of the line `PASS name facts`.
    ///
    /// # Panics
    /// If there is none.
    pub fn passed(&self, name: &str) -> &str {
        let line = self.serial.lines().find_map(|line| {
            let rest = line.strip_prefix("PASS ")?.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim_start())
        });
        line.unwrap_or_else(|| panic!("{name} did not pass:\n{self}"))
    }

    /// One fact, `key=value`, of a test that passed.
    ///
    /// # Panics
    /// If there is none.
    pub fn fact(&self, name: &str, key: &str) -> &str {
        let fact = self.passed(name).split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        fact.unwrap_or_else(|| panic!("{name} says nothing of {key}:\n{self}"))
    }

    /// Checks that every test passed, none was skipped, the report is whole, and the VMM ended well and without a panic.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn all_passed(&self) -> &Report {
        let wrong = |prefix| self.serial.lines().any(|line| line.starts_with(prefix));
        let done = self.serial.lines().any(|line| line.starts_with("DONE pass="));
        assert!(done && !wrong("FAIL ") && !wrong("SKIP "), "not everything passed:\n{self}");
        self.ended_well()
    }

    /// Checks that the VMM ended with status 0 and without a panic.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn ended_well(&self) -> &Report {
        assert!(
            self.status.success() && !self.messages.contains("panicked at"),
            "the VMM ended badly:\n{self}"
        );
        self
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n--- serial\n{}\n--- messages\n{}", self.status, self.serial, self.messages)
    }
}
