//! Ends that nobody planned: a signal in the middle of the start, a kill, and the next start in the same place.

use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Duration;

use tests::image;
use tests::terminal::Terminal;

use crate::bench::{Bench, quiet, until, wait};

fn signal(child: &Child, signal: i32) {
    // SAFETY: to our own child, which has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

fn served(bench: &Bench, name: &str) -> bool {
    UnixStream::connect(bench.path(name)).is_ok()
}

#[test]
fn a_signal_during_the_start_leaves_nothing() {
    let bench = Bench::new();
    image::make(&bench.path("disk"), 7, 64);
    let before = std::fs::read(bench.path("disk")).unwrap();
    for delay in (0..24).map(|step| Duration::from_micros(1500 * step)) {
        let terminal = Terminal::new();
        let settings = terminal.settings();
        let args = ["--api-socket", "s", "--console", "tty", "--serial", "socket=serial"];
        let disk = ["--disk", "path=disk,image_type=raw", "--cmdline", "probe.run=hang"];
        let mut command = bench.machine(&[&args[..], &disk].concat());
        quiet(&mut command).stdin(terminal.program_end()).stdout(terminal.program_end());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(delay);
        signal(&child, libc::SIGTERM);
        let status = wait(&mut child).expect("SIGTERM ends it");
        // Before it could say what is to become of signals, it dies of them: it has made nothing yet.
        assert!(status.success() || status.signal() == Some(libc::SIGTERM), "{delay:?}: {status}");
        assert_eq!(terminal.settings(), settings, "{delay:?}");
        let left: Vec<_> = ["s", "serial"].into_iter().filter(|name| bench.path(name).exists()).collect();
        assert!(left.is_empty(), "{delay:?}: {left:?} left");
        bench.nobody_is_here();
    }
    assert!(std::fs::read(bench.path("disk")).unwrap() == before, "the disk changed");
}

#[test]
fn after_a_kill_the_same_machine_starts_in_the_same_place() {
    let bench = Bench::new();
    image::make(&bench.path("disk"), 7, 64);
    let before = std::fs::read(bench.path("disk")).unwrap();
    let args = ["--api-socket", "s", "--serial", "socket=serial", "--disk", "path=disk,image_type=raw"];
    let hang = [&args[..], &["--cmdline", "probe.run=hang"]].concat();
    let mut child = quiet(&mut bench.machine(&hang)).spawn().unwrap();
    until("the API socket", || served(&bench, "s") && served(&bench, "serial"));
    // While it lives, its places are taken.
    let taken = "API socket s is already in use by another running instance";
    let mut second = bench.machine(&args);
    let outcome_of_second = second.stdin(std::process::Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&outcome_of_second.stderr).contains(taken));
    assert_eq!(outcome_of_second.status.code(), Some(1));
    signal(&child, libc::SIGKILL);
    assert_eq!(wait(&mut child).and_then(|status| status.signal()), Some(libc::SIGKILL));
    // What a kill leaves: sockets that nobody serves.
    assert!(bench.path("s").exists() && bench.path("serial").exists());
    assert!(!served(&bench, "s"));

    let mut child = quiet(&mut bench.machine(&hang)).spawn().unwrap();
    until("the API socket of the next one", || served(&bench, "s") && served(&bench, "serial"));
    signal(&child, libc::SIGTERM);
    assert_eq!(wait(&mut child).and_then(|status| status.code()), Some(0));
    assert!(!bench.path("s").exists() && !bench.path("serial").exists(), "sockets left");
    bench.nobody_is_here();
    assert!(std::fs::read(bench.path("disk")).unwrap() == before, "the disk changed");
}

#[test]
fn an_interrupted_program_that_only_waits_ends_well() {
    for number in [libc::SIGTERM, libc::SIGINT] {
        let bench = Bench::new();
        let mut child = quiet(&mut bench.command(&["--api-socket", "s"])).spawn().unwrap();
        until("the API socket", || served(&bench, "s"));
        signal(&child, number);
        assert_eq!(wait(&mut child).and_then(|status| status.code()), Some(0));
        assert!(!bench.path("s").exists(), "the socket is left");
    }
}
