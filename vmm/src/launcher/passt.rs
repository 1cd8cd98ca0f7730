//! One passt: found, started, listened to, ended.

use std::ffi::OsString;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use sandbox::{Mode, Prepared};
use virtio_devices::net::user::Task;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::calls;
use super::policy::Policy;
use super::supervise::{self, Supervisor};

/// Where there is one that serves.
const WHICH: &str = "passt from version 2024_11 on serves such cards: it is in the package passt of Debian 13 (that of Debian 12 is too old)";

/// Bytes that are kept of the beginning and of the end of what it says.
const KEPT: usize = 1024;

/// How long it may take from its last word to its end.
const LAST_STEPS: Duration = Duration::from_millis(100);

/// Where programs are looked for by scripts that stand in passt's place.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file of the program that `--passt` names, or of the one on the `PATH`.
///
/// # Errors
/// There is none, in words for a user.
pub(super) fn find(named: Option<&str>) -> Result<PathBuf, String> {
    let name = named.unwrap_or("passt");
    let runs = |path: &PathBuf| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        let path = std::path::absolute(name).map_err(|e| format!("--passt {name}: {e}"))?;
        return Some(path)
            .filter(runs)
            .ok_or_else(|| format!("--passt {name}: there is no such program; {WHICH}"));
    }
    let places = std::env::var_os("PATH").unwrap_or_else(|| OsString::from(PATH));
    std::env::split_paths(&places)
        .map(|place| place.join(name))
        .find(runs)
        .ok_or_else(|| format!("there is no program {name} on the PATH; {WHICH}"))
}

/// The host's name servers.
fn resolvers() -> Vec<IpAddr> {
    // Without the file there are none, as for the host itself.
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver").and_then(|_| words.next()?.parse().ok())
    };
    text.lines().filter_map(server).collect()
}

/// passt at work; killed on drop.
pub(super) struct Passt {
    child: Child,
    messages: ChildStderr,
    first: Vec<u8>,
    last: Vec<u8>,
    supervisor: Option<Supervisor>,
}

impl Passt {
    /// Starts it; one end of its connection.
    pub(super) fn start(program: &Path, task: &Task, filter: Mode) -> io::Result<(Passt, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let (hears, tells) = UnixStream::pair()?;
        let (resolvers, fd) = (resolvers(), theirs.as_raw_fd());
        let mut command = Command::new(program);
        command.args(task.arguments(fd, &resolvers)).env_clear().env("PATH", PATH).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let supervised = task.card.is_supervised();
        let prepared = match (filter, supervised) {
            (Mode::Off, false) => None,
            (Mode::Off, true) => Some(Prepared::new(calls::SUPERVISED, Mode::Off)),
            (mode, false) => Some(Prepared::new(calls::PASST, mode)),
            (mode, true) => Some(Prepared::new(calls::PASST_SUPERVISED, mode)),
        };
        // SAFETY: this process has one thread, so its child may do all that it does itself.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                if supervised {
                    supervise::own_user_namespace()?;
                    let listener = prepared.as_ref().map(Prepared::enter_supervised).transpose()?;
                    let listener = listener.as_ref().map(AsRawFd::as_raw_fd);
                    tells.send_with_fds(&[&[1u8][..]], listener.as_slice())?;
                    return Ok(());
                }
                prepared.as_ref().map_or(Ok(()), Prepared::enter)
            });
        }
        let mut child = command.spawn()?;
        let messages = child.stderr.take().ok_or_else(|| io::Error::other("it has no standard error"))?;
        let mut passt = Passt { child, messages, first: Vec::new(), last: Vec::new(), supervisor: None };
        set_nonblocking(passt.messages())?;
        if supervised {
            passt.supervisor = Some(Supervisor::new(received(&hears)?, Policy::of(&task.card, resolvers))?);
        }
        Ok((passt, ours))
    }

    /// Readable when it says something or has ended.
    pub(super) fn messages(&self) -> RawFd {
        self.messages.as_raw_fd()
    }

    /// Readable when it is to be looked at whom it connects to.
    pub(super) fn questions(&self) -> Option<RawFd> {
        self.supervisor.as_ref().map(Supervisor::fd)
    }

    /// Takes care of a connection that it wants to make.
    pub(super) fn answer(&mut self) {
        if self.supervisor.as_ref().is_some_and(|supervisor| !supervisor.answer()) {
            self.supervisor = None;
        }
    }

    /// Takes what it says; `false` if that was the last.
    pub(super) fn listen(&mut self) -> bool {
        let mut bytes = [0; KEPT];
        match self.messages.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                let (first, last) = bytes[..length].split_at(length.min(KEPT - self.first.len()));
                self.first.extend_from_slice(first);
                self.last.extend_from_slice(last);
                let surplus = self.last.len().saturating_sub(KEPT);
                self.last.drain(..surplus);
                true
            }
            Err(e) => matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    /// Whether it ends within a time.
    pub(super) fn settles(&mut self, within: Duration) -> bool {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // What cannot be waited for has said its last.
            match device::ready(self.messages(), libc::POLLIN, left) {
                Ok(0) => {}
                Ok(_) if self.listen() => {}
                _ => return true,
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    /// How it ended, and with what words.
    pub(super) fn end(mut self) -> String {
        // Who closed its standard error without ending has no business to go on.
        let until = Instant::now() + LAST_STEPS;
        let mut status = self.child.try_wait();
        while matches!(status, Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            status = self.child.try_wait();
        }
        let status = match status {
            Ok(None) => self.child.kill().and_then(|()| self.child.wait()),
            Ok(Some(status)) => Ok(status),
            Err(e) => Err(e),
        };
        let how = match status {
            Err(e) => format!("passt ended ({e})"),
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("passt ended with status {code}"),
                (None, signal) => format!("passt was ended by signal {}", signal.unwrap_or_default()),
            },
        };
        let text = words(&self.first, &self.last);
        let old = text.contains("unrecognized option");
        let hint = if old { format!("; {WHICH}") } else { String::new() };
        if text.is_empty() { how } else { format!("{how}: {text}{hint}") }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first lines and the last ones, of what may be a page of help.
fn words(first: &[u8], last: &[u8]) -> String {
    let all = [first, last].concat();
    let text = String::from_utf8_lossy(&all);
    let clean = |line: &str| line.trim().chars().filter(|c| !c.is_control()).take(300).collect::<String>();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0..=4 => lines.join("; "),
        count => format!("{}; {}; …; {}", lines[0], lines[1], lines[count - 1]),
    }
}

fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: both calls take numbers only.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The descriptor that the new process sent before it became passt.
fn received(from: &UnixStream) -> io::Result<OwnedFd> {
    let (_, file) = from.recv_with_fd(&mut [0])?;
    file.map(OwnedFd::from).ok_or_else(|| io::Error::other("its filter has no listener"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_in_the_middle() {
        assert_eq!(words(b"", b""), "");
        assert_eq!(words(b"one\n\ntwo\x1b[1m\n", b""), "one; two[1m");
        assert_eq!(words(b"a\nb\nc\nd", b"\ne\nf"), "a; b; …; f");
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        let missing = find(Some("/nowhere/passt")).unwrap_err();
        assert!(missing.contains("/nowhere/passt") && missing.contains("Debian 13"), "{missing}");
        let missing = find(Some("no-such-program")).unwrap_err();
        assert!(missing.contains("no-such-program"), "{missing}");
        assert!(find(Some("/etc/passwd")).is_err());
        assert!(find(Some("sh")).unwrap().ends_with("sh"));
        assert!(find(Some("/bin/sh")).is_ok());
    }
}
