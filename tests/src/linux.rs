//! A stock Linux under the VMM, and a shell in it.
//!
//! ```no_run
//! # use tests::linux::{Linux, Pvh};
//! # #[test] fn a_story() {
//! tests::elsewhere!();
//! let mut guest = Linux::new("6.12", Pvh).cpus("boot=2").boot();
//! assert_eq!(guest.sh("nproc"), "2");
//! guest.power_off();
//! # }
//! ```
//!
//! The guest runs a loop of shell on its console that takes commands and tells their output and status. All of it lies in the
//! story's scratch directory and ends with it.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::stock::Stock;
use crate::wire::Wire;
use crate::{cpio, place, programs, remote};

mod saved;
pub use saved::Saved;

/// How long a guest may take to a shell, and a command to its end: emulated machines on a busy host are slow.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The loop: a command ends with the character 4; the answer is its output, then `agent: status N.` on a line of its own. Without job control, for a
/// shell would tell amid that output of what has ended in the background.
const AGENT: &str = "stty raw -echo; set +m; PS1=; d=$(printf '\\004'); dmesg -n 1; printf 'agent: %s\\n' ready; \
    while IFS= read -r -d \"$d\" c; do eval \"$c\" < /dev/null 2>&1; s=$?; printf '\\nagent: %s.\\n' \"status $s\"; done";

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Uncompressed ELF with the PVH note.
    Pvh,
    /// bzImage by the Linux boot protocol.
    BzImage,
}
pub use Format::{BzImage, Pvh};

/// Where the agent's console is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// A terminal that we give to the VMM as its standard streams.
    Tty,
    /// A pty that the VMM makes.
    Pty,
}

/// A machine to be booted.
#[derive(Debug)]
pub struct Linux {
    kernel: String,
    format: Format,
    cpus: String,
    memory: String,
    cmdline: String,
    serial: String,
    line: Line,
    files: Vec<(String, Vec<u8>)>,
    root: bool,
    qemu: bool,
    arguments: Vec<String>,
}

impl Linux {
    /// One vCPU, 512 MiB, console and nothing more, the small initramfs with the drivers of that kernel.
    pub fn new(kernel: &str, format: Format) -> Linux {
        Linux {
            kernel: kernel.to_string(),
            format,
            cpus: "boot=1".to_string(),
            memory: "size=512M".to_string(),
            // A guest that panics stays as it is, for us to see.
            cmdline: "console=hvc0 quiet".to_string(),
            serial: "null".to_string(),
            line: Line::Tty,
            files: Vec::new(),
            root: false,
            qemu: false,
            arguments: Vec::new(),
        }
    }

    /// The value of `--cpus`.
    pub fn cpus(mut self, value: &str) -> Linux {
        self.cpus = value.to_string();
        self
    }

    /// The value of `--memory`.
    pub fn memory(mut self, value: &str) -> Linux {
        self.memory = value.to_string();
        self
    }

    /// The value of `--serial`.
    pub fn serial(mut self, value: &str) -> Linux {
        self.serial = value.to_string();
        self
    }

    /// More words for the kernel's command line.
    pub fn option(mut self, words: &str) -> Linux {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// The console on a pty that the VMM makes, instead of on its own terminal.
    pub fn console_pty(mut self) -> Linux {
        self.line = Line::Pty;
        self
    }

    /// A file in the root of the initramfs.
    pub fn file(mut self, path: &str, content: &[u8]) -> Linux {
        self.files.push((path.to_string(), content.to_vec()));
        self
    }

    /// Boots the Linux on `/dev/vda` instead, which gives a root shell on its console by itself.
    pub fn root_on_disk(mut self) -> Linux {
        self.root = true;
        self.option("root=/dev/vda")
    }

    /// Boots the Debian of all stories, of which nothing can be written.
    pub fn debian(self) -> Linux {
        let disk = format!("path={},image_type=raw,readonly=on", Stock::get().debian().display());
        self.root_on_disk().with(&["--disk", &disk])
    }

    /// More arguments for the VMM.
    pub fn with(mut self, arguments: &[&str]) -> Linux {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// QEMU instead of the VMM, for programs of ours that others use; [`with`](Linux::with) then adds arguments for it.
    pub fn under_qemu(mut self) -> Linux {
        self.qemu = true;
        self
    }

    /// Starts it and waits for the shell.
    pub fn boot(self) -> Running {
        let mut running = self.start();
        running.meet();
        running
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let stock = Stock::get();
        let directory = place::scratch();
        let initramfs = directory.join(format!("{}.cpio", unique()));
        let mut archive = std::fs::read(stock.initramfs(&self.kernel)).expect("the initramfs can be read");
        let mut files: Vec<(&str, &[u8])> =
            self.files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
        if !self.root {
            files.push(("script", AGENT.as_bytes()));
        }
        archive.extend(cpio::archive(&files));
        std::fs::write(&initramfs, archive).expect("the scratch directory takes files");

        let kernel = match self.format {
            Pvh => stock.vmlinux(&self.kernel),
            BzImage => stock.bzimage(&self.kernel),
        };
        let description = format!("{} by {:?}, --cpus {}", self.kernel, self.format, self.cpus);
        if self.qemu {
            let mut command = Command::new("qemu-system-x86_64");
            command.args(["-accel", "kvm", "-cpu", "host", "-nodefaults", "-display", "none", "-no-reboot"]);
            command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs).args(["-append", &self.cmdline]);
            command.args(["-chardev", "stdio,id=console,signal=off", "-device", "virtio-serial-pci"]);
            command.args(["-device", "virtconsole,chardev=console"]).args(&self.arguments);
            return Running::launch(command, Line::Tty, self.root, format!("{description}, under QEMU"));
        }
        let mut command = Command::new(programs::cloud_hypervisor());
        command.arg("--kernel").arg(kernel).arg("--initramfs").arg(initramfs);
        command.args(["--cmdline", &self.cmdline, "--cpus", &self.cpus, "--memory", &self.memory]);
        command.args(["--serial", &self.serial, "--console"]);
        command.arg(if self.line == Line::Pty { "pty" } else { "tty" }).args(&self.arguments);
        Running::launch(command, self.line, self.root, description)
    }
}

/// A number that no other file of this story has.
fn unique() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// A VMM at work; killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The guest's console.
    wire: Wire,
    /// The VMM's own terminal where that is another.
    terminal: Option<Wire>,
    socket: PathBuf,
    messages: PathBuf,
    root: bool,
    ended: Option<ExitStatus>,
    description: String,
    begun: Instant,
}

impl Running {
    /// Starts the VMM with an API socket and a terminal, and finds the guest's console.
    fn launch(mut command: Command, line: Line, root: bool, description: String) -> Running {
        let directory = place::scratch();
        let socket = directory.join(format!("{}.api", unique()));
        let messages = directory.join(format!("{}.messages", unique()));
        let (wire, theirs) = Wire::pty();
        if command.get_program() == programs::cloud_hypervisor() {
            command.arg("--api-socket").arg(&socket);
        }
        command.stdin(theirs.try_clone().expect("a descriptor can be duplicated"));
        command.stdout(theirs).stderr(File::create(&messages).expect("the scratch directory takes files"));
        programs::ends_with_us(&mut command, libc::SIGKILL);
        let begun = Instant::now();
        let child = command.spawn().expect("the VMM starts");
        drop(command); // with our copy of the terminal's other side
        let (terminal, ended) = (None, None);
        let mut running =
            Running { child, wire, terminal, socket, messages, root, ended, description, begun };
        if line == Line::Pty {
            let pty = running.console_path();
            running.terminal = Some(std::mem::replace(&mut running.wire, Wire::terminal(&pty)));
        }
        running
    }

    /// The pty that the VMM has made for the console.
    #[track_caller]
    pub fn console_path(&mut self) -> PathBuf {
        let path = self.info()["config"]["console"]["file"].as_str().map(PathBuf::from);
        path.unwrap_or_else(|| self.fail("vm.info tells no path of the console's pty"))
    }

    /// Waits for the shell, after the start and after each reboot.
    #[track_caller]
    pub fn meet(&mut self) {
        if self.root {
            self.expect(":~# ");
            self.wire.send(format!("{AGENT}\n").as_bytes());
        }
        self.expect("agent: ready\n");
        println!("{}: a shell after {:.1} s", self.description, self.begun.elapsed().as_secs_f32());
    }

    /// Runs a command and returns its output without the spaces and newlines at the ends.
    ///
    /// # Panics
    /// If its status is not 0.
    #[track_caller]
    pub fn sh(&mut self, command: &str) -> String {
        let (status, output) = self.try_sh(command);
        if status != 0 {
            self.fail(&format!("status {status} of: {command}\n{output}"));
        }
        output
    }

    /// Runs a command and returns its status and its output.
    #[track_caller]
    pub fn try_sh(&mut self, command: &str) -> (u32, String) {
        self.begin(command);
        self.end(command)
    }

    /// Waits until a condition of the shell's holds in the guest.
    #[track_caller]
    pub fn until(&mut self, what: &str) {
        // It is asked once only at the end: what holds now may not hold a moment later.
        self.sh(&format!(
            "i=0; until {what}; do i=$((i + 1)); [ $i -lt 600 ] || break; sleep 0.2; done; [ $i -lt 600 ]"
        ));
    }

    /// Starts a command; [`end`](Running::end) waits for it.
    pub fn begin(&mut self, command: &str) {
        self.wire.send(command.as_bytes());
        self.wire.send(&[4]);
    }

    /// Waits for the end of a command.
    #[track_caller]
    pub fn end(&mut self, command: &str) -> (u32, String) {
        let Some(output) = self.wait("\nagent: status ") else { self.fail(&format!("no end of: {command}")) };
        let status = self.wait(".\n").and_then(|text| text.parse().ok());
        let status = status.unwrap_or_else(|| self.fail("the agent's answer is broken"));
        (status, output.replace('\r', "").trim().to_string())
    }

    /// Waits for a text on the console, and returns what came before it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        self.wait(text).unwrap_or_else(|| self.fail(&format!("{text:?} does not come")))
    }

    fn wait(&mut self, text: &str) -> Option<String> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            // In slices, so as not to wait for a guest or a VMM that is dead.
            let found = self.wire.wait_for(text, Duration::from_secs(2));
            if found.is_some() {
                return found;
            }
            let panicked =
                !text.contains("panic") && self.wire.unseen().contains("Kernel panic - not syncing");
            if panicked || self.status().is_some() {
                break;
            }
        }
        self.wire.wait_for(text, Duration::ZERO)
    }

    /// The guest's console.
    pub fn console(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Asks the VMM with `ch-remote`.
    #[track_caller]
    pub fn ask(&mut self, command: &[&str]) -> String {
        match self.remote(command) {
            Ok(answer) => answer,
            Err(error) => self.fail(&format!("ch-remote {}: {error}", command.join(" "))),
        }
    }

    /// What `ch-remote` answers, or its error.
    pub fn remote(&self, command: &[&str]) -> Result<String, String> {
        remote::ask(&self.socket, command)
    }

    /// What `vm.info` tells.
    #[track_caller]
    pub fn info(&mut self) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The socket answers before the machine of the command line is there.
            match self.remote(&["info"]) {
                Ok(text) => match serde_json::from_str(&text) {
                    Ok(value) => return value,
                    Err(e) => self.fail(&format!("vm.info is no JSON: {e}: {text}")),
                },
                Err(error) if Instant::now() > deadline || self.status().is_some() => self.fail(&error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The API socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The VMM's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks the VMM to end, as `kill` does.
    pub fn terminate(&mut self) {
        if self.status().is_none() {
            // SAFETY: a signal to our own child, which has not been waited for.
            unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        }
    }

    /// Has the guest power itself off, and checks that the VMM ends well.
    #[track_caller]
    pub fn power_off(mut self) {
        // From the small initramfs leaving the loop is enough, but this does for both.
        self.begin("sync; poweroff -f");
        self.ends_well();
    }

    /// Waits for the VMM's end, however it comes about.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.status() {
                Some(status) => return status,
                None if Instant::now() > deadline => self.fail("the VMM does not end"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Waits for the VMM's end, and checks that it is a good one: status 0, no panic, no complaint.
    #[track_caller]
    pub fn ends_well(mut self) {
        let status = self.wait_for_end();
        let messages = self.messages();
        if !status.success() || messages.contains("panicked at") {
            self.fail(&format!("the VMM ended badly: {status}, signal {:?}", status.signal()));
        }
        println!("{}: ended after {:.1} s", self.description, self.begun.elapsed().as_secs_f32());
        if !messages.is_empty() {
            println!("--- messages\n{messages}");
        }
    }

    /// How the VMM has ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// What the VMM has written to its standard error.
    pub fn messages(&self) -> String {
        read(&self.messages)
    }

    /// Ends the story with all that is known.
    ///
    /// # Panics
    /// Always.
    #[track_caller]
    pub fn fail(&mut self, why: &str) -> ! {
        let status = self.status();
        panic!(
            "{why}\n--- {}, {}\n--- end of the console\n{}\n--- messages of the VMM\n{}",
            self.description,
            status.map_or("the VMM still runs".to_string(), |status| status.to_string()),
            self.wire.tail(),
            self.messages(),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // Both fail only if it has ended meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
