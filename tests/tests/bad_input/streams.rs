//! Standard streams that are closed, full or no terminal.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::bench::{Bench, told};

/// Starts the program with these descriptors closed.
fn without<'a>(command: &'a mut Command, descriptors: &'static [i32]) -> &'a mut Command {
    // SAFETY: close is a plain system call, safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for fd in descriptors {
                libc::close(*fd);
            }
            Ok(())
        })
    }
}

fn full() -> File {
    File::options().write(true).open("/dev/full").expect("/dev/full is there")
}

#[test]
fn a_guest_runs_without_standard_streams() {
    let bench = Bench::new();
    for console in ["--console", "--serial"] {
        let mut command = bench.machine(&[console, "tty"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let outcome = bench.run(without(&mut command, &[0, 1]));
        assert_eq!((outcome.status.code(), outcome.messages.as_str()), (Some(0), ""), "{console}");
    }
    let mut command = bench.machine(&[]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let outcome = bench.run(without(&mut command, &[0, 1, 2]));
    assert_eq!(outcome.status.code(), Some(0));
}

#[test]
fn a_tty_console_without_a_terminal_writes_to_standard_output() {
    let bench = Bench::new();
    let file = File::create(bench.path("out")).unwrap();
    let mut command = bench.machine(&["--serial", "tty"]);
    let outcome = bench.run(command.stdin(Stdio::null()).stdout(file));
    assert!(outcome.status.success(), "{}", outcome.messages);
    let shown = crate::bench::read(&bench.path("out"));
    assert!(shown.contains("DONE pass=1 fail=0"), "{shown}");
}

#[test]
fn a_guest_runs_on_when_its_output_is_not_taken() {
    let bench = Bench::new();
    let mut command = bench.machine(&["--serial", "tty"]);
    let outcome = bench.run(command.stdin(Stdio::null()).stdout(full()));
    assert!(outcome.status.success(), "{}", outcome.messages);
    assert!(outcome.log.contains("is dropped: No space left on device"), "{}", outcome.log);
    // A pipe that nobody reads from any more.
    let mut child = bench.machine(&["--serial", "tty"]);
    let mut child = child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(crate::bench::wait(&mut child).and_then(|status| status.code()), Some(0));
}

#[test]
fn an_error_that_cannot_be_told_is_still_an_exit_status() {
    let bench = Bench::new();
    let mut command = bench.machine(&["--kernel", "none"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full()).spawn().unwrap();
    assert_eq!(crate::bench::wait(&mut child).and_then(|status| status.code()), Some(1));
}

#[test]
fn a_text_that_cannot_be_printed_is_a_failure() {
    let bench = Bench::new();
    let chain = ["Cannot write to standard output", "No space left on device (os error 28)"];
    for flag in ["--version", "--help", "--check-host"] {
        let outcome = bench.run(bench.command(&[flag]).stdin(Stdio::null()).stdout(full()));
        assert_eq!(outcome.status.code(), Some(1), "{flag}");
        assert_eq!(outcome.messages, told(&chain), "{flag}");
    }
}
