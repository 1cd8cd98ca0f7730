//! Hosts that lack something, made of namespaces: the real `/dev` and the real network are never touched.

use std::ffi::OsStr;
use std::process::Command;

use crate::bench::until;

/// `command`, run in a mount namespace of its own that the shell `script` has changed before.
pub(crate) fn with_mounts(script: &str, command: &Command) -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["-m", "--propagation", "private", "sh", "-ec"]);
    outer.arg(format!("{script}\nexec \"$@\"")).arg("sh");
    // Permissions count again, even for root.
    outer.args(["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]);
    outer.arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    outer
}

/// Runs `test` in a network namespace of its own, in which there is nothing but a loopback device. Programs that it
/// starts are in there too.
pub(crate) fn with_network<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: unshare is a plain system call; only this thread changes its namespace.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(done, 0, "unshare: {}", std::io::Error::last_os_error());
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The names of this thread's network interfaces.
pub(crate) fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is mounted");
    let names = table.lines().filter_map(|line| line.split_once(':').map(|(name, _)| name.trim().to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

/// Waits until these are this thread's interfaces. A tap lives as long as anybody has it open, and a program that another test starts has all
/// that is open here for a moment, between fork(2) and execve(2).
#[track_caller]
pub(crate) fn has_interfaces(wanted: &[String]) {
    until(&format!("the time when there is nothing but {wanted:?}"), || interfaces() == wanted);
}

/// Runs `ip` with these arguments, in this thread's network namespace.
pub(crate) fn ip<S: AsRef<OsStr>>(args: &[S]) {
    let status = Command::new("ip").args(args).status().expect("ip (iproute2) runs");
    assert!(status.success());
}
