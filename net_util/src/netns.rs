//! For tests: a test body that runs in a process and a network namespace of its own.
//!
//! A namespace belongs to a thread and the test harness has many, so the test starts its own executable again with
//! only itself to run. Whatever the body makes disappears with the process. As root the namespace of users stays as it
//! is, because `/dev/net/tun` is often for root alone; else one is made in which the caller is root.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

const INSIDE: &str = "NET_UTIL_TEST_INSIDE";

/// Defines tests whose bodies run with [`isolated`].
#[macro_export]
macro_rules! netns_test {
    ($($(#[$meta:meta])* fn $name:ident() $body:block)*) => {$(
        #[test]
        $(#[$meta])*
        fn $name() {
            $crate::netns::isolated(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    )*};
}

/// Runs `body` in a fresh network namespace. `test` is the path of the calling test, with the crate in front.
///
/// # Panics
///
/// If `body` does, or if the namespace cannot be made.
pub fn isolated(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let (_, test) = test.split_once("::").expect("a path has a crate in front");
    // SAFETY: no pointers are passed to these.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let maps = [
        (c"/proc/self/setgroups", b"deny".to_vec()),
        (c"/proc/self/uid_map", format!("0 {uid} 1").into_bytes()),
        (c"/proc/self/gid_map", format!("0 {gid} 1").into_bytes()),
    ];
    let mut command = Command::new(std::env::current_exe().expect("a test knows its executable"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1", "--include-ignored"]).env(INSIDE, "1");
    let enter = move || {
        let users = if uid == 0 { 0 } else { libc::CLONE_NEWUSER };
        // SAFETY: no pointers; the child of a fork has one thread.
        if unsafe { libc::unshare(users | libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        for (path, text) in maps.iter().filter(|_| uid != 0) {
            // SAFETY: `path` is NUL-terminated; `text` is readable for its length; nothing here allocates.
            let written = unsafe {
                let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                libc::write(fd, text.as_ptr().cast(), text.len())
            };
            if written < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(enter) };
    let output = command.output().expect("cannot start a test in a network namespace");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let ran = out.contains("1 passed");
    assert!(output.status.success() && ran, "in its namespace, {test} failed:\n{out}\n{err}");
}
