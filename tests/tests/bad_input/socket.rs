//! API sockets that cannot be listened on.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;

use crate::bench::{Bench, heeding_permissions, root};

#[track_caller]
fn refuses(bench: &Bench, value: &str, chain: &[&str]) {
    // With a machine and without one.
    bench.refuses(&["--api-socket", value], chain);
    bench.refused(&mut bench.command(&["--api-socket", value]), chain);
}

#[test]
fn texts_that_name_no_socket() {
    let bench = Bench::new();
    for text in ["", "fd=x", "fd=", "path=", "path=a,fd=7", "path=a,mode=b"] {
        let message =
            format!("Error parsing --api-socket: expected <path>, path=<path> or fd=<number>, not {text:?}");
        refuses(&bench, text, &[&message]);
    }
}

#[test]
fn paths_that_no_socket_can_have() {
    let bench = Bench::new();
    bench.file("file", "precious");
    fs::create_dir(bench.path("dir")).unwrap();
    let taken = "the path exists and is no socket";
    refuses(&bench, "file", &["Cannot listen on API socket file", taken]);
    refuses(&bench, "path=dir", &["Cannot listen on API socket dir", taken]);
    let none = "No such file or directory (os error 2)";
    refuses(&bench, "none/s", &["Cannot create lock file none/s.lock", none]);
    refuses(&bench, "file/s", &["Cannot listen on API socket file/s", "Not a directory (os error 20)"]);
    let long = "s".repeat(108);
    let chain = [
        format!("Cannot listen on API socket {long}"),
        "the path has 108 bytes; that of a socket has 1 to 107".into(),
    ];
    refuses(&bench, &long, &[&chain[0], &chain[1]]);
}

#[test]
fn a_directory_that_takes_no_files() {
    if !root("a read-only directory") {
        return;
    }
    let bench = Bench::new();
    fs::create_dir(bench.path("dir")).unwrap();
    fs::set_permissions(bench.path("dir"), Permissions::from_mode(0o555)).unwrap();
    let mut command = bench.machine(&["--api-socket", "dir/s"]);
    let chain = ["Cannot create lock file dir/s.lock", "Permission denied (os error 13)"];
    bench.refused(heeding_permissions(&mut command), &chain);
}

#[test]
fn a_lock_that_another_process_holds() {
    let bench = Bench::new();
    bench.file("s.lock", "");
    let lock = File::open(bench.path("s.lock")).unwrap();
    // SAFETY: flock takes an open descriptor and an integer.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    refuses(&bench, "s", &["API socket s is already in use by another running instance"]);
    drop(UnixListener::bind(bench.path("s")).unwrap());
    refuses(&bench, "s", &["API socket s is already in use by another running instance"]);
}

#[test]
fn a_socket_goes_when_the_machine_fails() {
    let bench = Bench::new();
    let chain = [
        "Error booting VM",
        "Cannot load the kernel",
        "cannot open kernel none",
        "No such file or directory (os error 2)",
    ];
    bench.refuses(&["--api-socket", "s", "--kernel", "none"], &chain);
    // A lock file that was there stays.
    bench.file("s.lock", "");
    bench.refuses(&["--api-socket", "s", "--kernel", "none"], &chain);
}

#[test]
fn descriptors_that_are_no_listening_socket() {
    let bench = Bench::new();
    let closed = ["--api-socket: descriptor 77 cannot be used", "Bad file descriptor (os error 9)"];
    refuses(&bench, "fd=77", &closed);
    let standard = ["--api-socket: descriptor 1 cannot be used", "it is a standard stream or no descriptor"];
    refuses(&bench, "fd=1", &standard);
    let file = File::open("/dev/null").unwrap();
    let datagram = UnixDatagram::unbound().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for from in [file.as_raw_fd(), datagram.as_raw_fd(), tcp.as_raw_fd()] {
        let mut command = bench.machine(&["--api-socket", "fd=77"]);
        // SAFETY: dup2 is a plain system call, safe between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::dup2(from, 77) {
                77 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        bench.refused(&mut command, &["--api-socket: descriptor 77 is not a listening UNIX stream socket"]);
    }
}
