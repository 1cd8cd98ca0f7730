//! A program that goes beyond what its filter allows, to show what becomes of it: `violate true|false|log|errno [LOG]`.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use sandbox::{Mode, Role, common};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mode: Mode = arguments.next().expect("a mode").parse().expect("a mode");
    let log = arguments.next().map(|path| File::create(path).expect("the log can be made"));
    if let Some(log) = &log {
        sandbox::also_tell(log.as_raw_fd());
    }
    sandbox::begin(mode, || {
        // SAFETY: as in any signal handler: a plain system call on bytes of the program.
        unsafe { libc::write(libc::STDOUT_FILENO, b"restored\n".as_ptr().cast(), 9) };
    })
    .expect("a handler can be set up");
    (Role { asked_by: "the program", sets: &[common::EVERYWHERE, common::STARTS_THREADS] })
        .enter()
        .expect("the kernel has filters");
    let thread = std::thread::Builder::new().name("victim".into()).spawn(|| {
        (Role { asked_by: "device _disk0", sets: &[common::EVERYWHERE] }).enter().expect("as before");
        // A thread that such a one starts would be no freer; it cannot start one.
        // SAFETY: plain numbers.
        let made = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        let why = std::io::Error::last_os_error().raw_os_error();
        let said = if made >= 0 { "made".to_owned() } else { format!("refused: {why:?}") };
        writeln!(std::io::stdout(), "{said}").expect("standard output takes a line");
    });
    thread.expect("a thread can be started").join().expect("it did not panic");
}
