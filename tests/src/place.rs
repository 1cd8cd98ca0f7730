//! Where stories with stock kernels run: on the host if its KVM can run them, else in the lab's outer machine.
//!
//! A story begins with [`elsewhere!`](crate::elsewhere). In the test's own process that runs the same test once more, in a process of
//! its own in the right place, as root of a network and a scratch directory that are gone when the process is; it
//! returns when that has ended. So a story itself can make taps and leave files, here as there.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::programs;
use crate::scratch::Scratch;
use crate::stock::Stock;

/// Set in the process that does run the story: the scratch directory.
const PLACE: &str = "VIRGA_STORY_PLACE";
/// Set in that process for a story that asked for it: the copy of a file.
const COPY: &str = "VIRGA_STORY_COPY";
/// Seconds that a story may take, unless `VIRGA_STORY_SECONDS` says otherwise.
const LIMIT: &str = "900";
/// The exit status of `scripts/lab run` when the outer machine, an emulated kernel, crashed under the command.
const LAB_CRASHED: i32 = 125;
/// Crashes in a row that are no accident any more.
const LAB_CRASHES: u32 = 3;
/// Stories at once in the lab, whose outer machine has two CPUs.
const LAB_SLOTS: usize = 2;

/// Returns from the test if its story has been run in a process elsewhere. To be the first line of the test.
///
/// With the path of a file in the brackets, there is a copy of it to be written to at [`copy`]. The lab's machine is far too slow to
/// make one itself.
#[macro_export]
macro_rules! elsewhere {
    () => {
        $crate::elsewhere!(@ None)
    };
    (@ $file:expr) => {
        fn here() {}
        if $crate::place::ran_elsewhere(std::any::type_name_of_val(&here), $file) {
            return;
        }
    };
    ($file:expr) => {
        $crate::elsewhere!(@ Some($file))
    };
}

/// Whether this process was to have the story run by another, which has been done; see [`elsewhere!`](crate::elsewhere). `here` is the path of
/// a function within the test, `file` one to be copied.
///
/// # Panics
/// If the story failed there, with all it said.
pub fn ran_elsewhere(here: &str, file: Option<PathBuf>) -> bool {
    if std::env::var_os(PLACE).is_some() {
        return false;
    }
    let (_, test) = here.split_once("::").expect("a path begins with its crate");
    let test = test.strip_suffix("::here").expect("the macro's function is called so");
    let lab = needs_lab();
    let slot = Slot::take(lab);
    for _ in 0..LAB_CRASHES {
        if tell(test, lab.then_some(slot.number), file.as_deref()) {
            return true;
        }
        eprintln!("{test}: the outer machine crashed; once more in a new one");
    }
    panic!("{test}: the outer machine crashed {LAB_CRASHES} times");
}

/// Runs the story once; `false` if the lab's outer machine crashed under it, which says nothing of the story.
fn tell(test: &str, machine: Option<usize>, file: Option<&Path>) -> bool {
    let lab = machine.is_some();
    let scratch = Scratch::new();
    let shared = file.map(Copy::of);
    let mut command = machine.map_or_else(|| Command::new("env"), in_lab);
    // In a user namespace only where that is what it takes to have a network of our own.
    // SAFETY: geteuid has no preconditions.
    let root = lab || unsafe { libc::geteuid() } == 0;
    command.args(["unshare", if root { "-mn" } else { "-rmn" }, "sh", "-c"]);
    command.arg(
        "mkdir -p \"$1\" && mount -t tmpfs -o mode=700 scratch \"$1\" && ip link set lo up && \
         export TMPDIR=\"$1\" && shift && exec \"$@\"",
    );
    command.arg("sh").arg(scratch.path());
    command.arg("env").arg(format!("{PLACE}={}", scratch.path().display())).args(Stock::get().variables());
    command.args(shared.iter().map(|copy| format!("{COPY}={}", copy.path.display())));
    command.arg(std::env::current_exe().expect("a test knows its own path"));
    command.args(["--exact", test, "--nocapture", "--include-ignored", "--test-threads=1"]);
    if !lab {
        command.env("PATH", path_with_sbin());
    }
    // If we are killed it is to end too, and then the lab ends what runs in it.
    programs::ends_with_us(&mut command, libc::SIGTERM);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    if lab && output.status.code() == Some(LAB_CRASHED) {
        return false;
    }
    // Also if it ran nothing, a wrong name for instance.
    let ran = String::from_utf8_lossy(&output.stdout).contains("running 1 test");
    assert!(output.status.success() && ran, "{test} failed in {}", if lab { "the lab" } else { "its place" });
    true
}

/// The scratch directory of the story that runs in this process.
pub fn scratch() -> PathBuf {
    PathBuf::from(std::env::var_os(PLACE).expect("a story begins with elsewhere!()"))
}

/// The copy that the story in this process asked for.
pub fn copy() -> PathBuf {
    PathBuf::from(std::env::var_os(COPY).expect("a story names the file in elsewhere!(...)"))
}

/// A copy of a file in a directory of its own beside this program, where the lab can write to it.
struct Copy {
    path: PathBuf,
    _directory: Scratch,
}

impl Copy {
    fn of(file: &Path) -> Copy {
        let directory = Scratch::within(&beside_us());
        let path = directory.file("copy");
        let mut command = Command::new("cp");
        command.args(["--reflink=auto", "--sparse=always", "--"]).arg(file).arg(&path);
        assert!(command.status().expect("cp runs").success(), "cannot copy {}", file.display());
        Copy { path, _directory: directory }
    }
}

/// Where this program is: a directory of this checkout's, as the lab's machine is.
fn beside_us() -> PathBuf {
    let program = std::env::current_exe().expect("a test knows its own path");
    program.parent().expect("a program is in a directory").to_path_buf()
}

/// Each place has a machine of its own, with one processor: emulated processors that run at once are less to be trusted.
fn in_lab(machine: usize) -> Command {
    let mut command = Command::new(programs::checkout().join("scripts/lab"));
    command.env("VIRGA_LAB_MACHINE", machine.to_string());
    let limit = std::env::var("VIRGA_STORY_SECONDS").unwrap_or_else(|_| LIMIT.to_string());
    command.args(["run", "--timeout", &limit, "--"]);
    command
}

fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_string()))
}

/// Whether this host's KVM cannot run stock kernels, as the VMM says itself.
fn needs_lab() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let output =
            Command::new(programs::cloud_hypervisor()).arg("--check-host").stdin(Stdio::null()).output();
        !output.expect("the VMM starts").status.success()
    })
}

/// One of the few places at which a story may run at a time, held also against other processes.
struct Slot {
    number: usize,
    #[expect(dead_code, reason = "holds the lock")]
    lock: File,
}

impl Slot {
    fn take(lab: bool) -> Slot {
        let count =
            if lab { LAB_SLOTS } else { std::thread::available_parallelism().map_or(1, |n| n.get() / 2) };
        let directory = beside_us();
        loop {
            for number in 0..count.max(1) {
                let path = directory.join(format!("slot-{number}.lock"));
                let file = lock_file(&path);
                // SAFETY: flock takes an open descriptor.
                if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                    return Slot { number, lock: file };
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

fn lock_file(path: &Path) -> File {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    file.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}
