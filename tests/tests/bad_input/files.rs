//! Logs and event records that have no place to go.

use std::fs;

use crate::bench::Bench;

#[test]
fn log_files_that_cannot_be_written() {
    let bench = Bench::new();
    fs::create_dir(bench.path("dir")).unwrap();
    bench.fifo("fifo");
    for (path, reason) in [
        ("none/log", "No such file or directory (os error 2)"),
        ("dir", "Is a directory (os error 21)"),
        ("fifo", "nobody reads from this FIFO"),
    ] {
        let message = format!("Error creating log file {path}");
        bench.refuses(&["--log-file", path], &["Error setting up logging", &message, reason]);
    }
}

#[test]
fn templates_that_do_not_parse_leave_an_old_log_as_it_was() {
    let bench = Bench::new();
    bench.file("log", "of last night");
    for (template, message) in [
        ("{msg} {nope}", "Unknown format token '{nope}'"),
        ("{msg", "Unterminated '{' in format string"),
        ("msg}", "Unmatched '}' in format string"),
    ] {
        let args = ["--log-file", "log", "--log-format", template];
        bench.refuses(&args, &["Error setting up logging", message]);
    }
}

#[test]
fn a_log_on_a_full_file_system_is_missed_once() {
    let bench = Bench::new();
    let outcome = bench.run_unchanged(&mut bench.machine(&["--log-file", "/dev/full", "-vv"]));
    assert!(outcome.status.success(), "{}", outcome.messages);
    let warning = "Warning: cannot write to log file /dev/full, records are lost: \
                   No space left on device (os error 28)\n";
    assert_eq!(outcome.messages, warning);
}

#[test]
fn event_monitors_that_cannot_be_written() {
    let bench = Bench::new();
    fs::create_dir(bench.path("dir")).unwrap();
    for text in ["events", "fd=x", "path=", ""] {
        let message =
            format!("Error parsing --event-monitor: expected path=<path> or fd=<number>, not {text:?}");
        bench.refuses(&["--event-monitor", text], &[&message]);
    }
    for (text, outer, reason) in [
        ("path=none/e", "Error creating event monitor file none/e", "No such file or directory (os error 2)"),
        ("path=dir", "Error creating event monitor file dir", "Is a directory (os error 21)"),
        ("fd=77", "--event-monitor: descriptor 77 cannot be used", "Bad file descriptor (os error 9)"),
        ("fd=2", "--event-monitor: descriptor 2 cannot be used", "it is a standard stream or no descriptor"),
    ] {
        bench.refuses(&["--event-monitor", text], &[outer, reason]);
    }
}

#[test]
fn events_that_nobody_takes_do_not_stop_the_guest() {
    let bench = Bench::new();
    bench.fifo("fifo");
    for (path, warnings) in [("/dev/full", 1), ("fifo", 0)] {
        let outcome = bench.run_unchanged(&mut bench.machine(&["--event-monitor", &format!("path={path}")]));
        assert!(outcome.status.success(), "{}", outcome.messages);
        let warning = "event monitor: records are lost: No space left on device (os error 28)\r\n";
        assert_eq!(outcome.log.matches(warning).count(), warnings, "{}", outcome.log);
    }
}
