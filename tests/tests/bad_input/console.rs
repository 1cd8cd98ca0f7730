//! Consoles, and a source of random numbers, that cannot be opened.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::bench::Bench;

/// The flag, the name of its device, and how an error about it begins.
const CONSOLES: [(&str, &str, &str); 3] = [
    ("--console", "__console", "cannot set up the console"),
    ("--serial", "__serial", "cannot open the console of the serial port"),
    ("--debug-console", "__debug_console", "cannot open the console of the debug console"),
];

#[track_caller]
fn refuses(bench: &Bench, (flag, id, text): (&str, &str, &str), value: &str, inner: &[&str]) {
    let device = format!("Cannot create device {id:?} ({flag})");
    bench.refuses(&[flag, value], &[&["Error booting VM", &device, text], inner].concat());
}

#[test]
fn files_that_cannot_be_written() {
    let bench = Bench::new();
    fs::create_dir(bench.path("dir")).unwrap();
    bench.fifo("fifo");
    for console in CONSOLES {
        let none = ["cannot create none/log", "No such file or directory (os error 2)"];
        refuses(&bench, console, "file=none/log", &none);
        refuses(&bench, console, "file=dir", &["cannot create dir", "Is a directory (os error 21)"]);
        // Waiting for a reader would make a program that no signal ends.
        refuses(&bench, console, "file=fifo", &["nobody reads from the FIFO fifo: start its reader first"]);
    }
}

#[test]
fn sockets_that_cannot_be_listened_on() {
    let bench = Bench::new();
    bench.file("file", "precious");
    let _busy = UnixListener::bind(bench.path("busy")).unwrap();
    let long = "s".repeat(108);
    for console in &CONSOLES[..2] {
        let none = ["cannot listen on none/s", "No such file or directory (os error 2)"];
        refuses(&bench, *console, "socket=none/s", &none);
        refuses(
            &bench,
            *console,
            "socket=file",
            &["cannot listen on file", "the path exists and is no socket"],
        );
        refuses(&bench, *console, "socket=busy", &["socket path busy is in use"]);
        let inner = [
            format!("cannot listen on {long}"),
            "the path has 108 bytes; that of a socket has at most 107".into(),
        ];
        refuses(&bench, *console, &format!("socket={long}"), &[&inner[0], &inner[1]]);
    }
}

#[test]
fn a_console_socket_goes_when_something_else_fails() {
    let bench = Bench::new();
    let chain = [
        "Error booting VM",
        "Cannot create device \"__rng\" (--rng)",
        "cannot open none for random numbers",
        "No such file or directory (os error 2)",
    ];
    bench.refuses(&["--console", "socket=s", "--rng", "src=none"], &chain);
    // A terminal is put back, too.
    bench.refuses(&["--console", "tty", "--rng", "src=none"], &chain);
}

#[test]
fn sources_of_random_numbers_that_are_none() {
    let bench = Bench::new();
    fs::create_dir(bench.path("dir")).unwrap();
    for (source, reason) in
        [("none", "No such file or directory (os error 2)"), ("dir", "Is a directory (os error 21)")]
    {
        let chain = [
            "Error booting VM".to_owned(),
            "Cannot create device \"__rng\" (--rng)".to_owned(),
            format!("cannot open {source} for random numbers"),
            reason.to_owned(),
        ];
        let chain: Vec<_> = chain.iter().map(String::as_str).collect();
        bench.refuses(&["--rng", &format!("src={source}")], &chain);
    }
}

#[test]
fn a_full_file_system_does_not_stop_the_guest() {
    let bench = Bench::new();
    let outcome = bench.run_unchanged(&mut bench.machine(&["--serial", "file=/dev/full"]));
    assert!(outcome.status.success(), "{}", outcome.messages);
    let warning = "console output to /dev/full is dropped: No space left on device (os error 28)\r\n";
    let warned = outcome.log.matches(warning).count();
    assert!((1..=20).contains(&warned), "warned {warned} times: {}", outcome.log);
}
