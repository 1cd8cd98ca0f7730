//! What becomes of a program whose thread goes beyond its filter, in each mode, by the program `violate`.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};

fn violate(arguments: &[&str]) -> Output {
    let test = std::env::current_exe().expect("a test knows its own path");
    let program: PathBuf = test.ancestors().nth(2).expect("it lies in deps").join("examples/violate");
    assert!(program.exists(), "{} is built with the tests", program.display());
    Command::new(program).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const LINE: &str = "Probable seccomp violation: si_syscall=41 si_arch=0xc000003e thread=victim call=socket(0x2, 0x1, 0x0, ...) \
                    filter=\"device _disk0\"\n";

#[test]
fn the_program_says_who_did_what_and_dies() {
    let log = std::env::temp_dir().join(format!("virga-violate-{}", std::process::id()));
    let output = violate(&["true", log.to_str().expect("a plain path")]);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS));
    assert_eq!(text(&output.stderr), LINE);
    // What was set for the end was done, and nothing else.
    assert_eq!(text(&output.stdout), "restored\n");
    assert_eq!(std::fs::read_to_string(&log).expect("the log is there"), LINE);
    std::fs::remove_file(&log).expect("the log can be removed");
}

#[test]
fn the_call_is_refused() {
    let output = violate(&["errno"]);
    assert!(output.status.success(), "{:?}", output.status);
    assert_eq!(text(&output.stdout), format!("refused: Some({})\n", libc::EPERM));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_call_is_made() {
    for mode in ["log", "false"] {
        let output = violate(&[mode]);
        assert!(output.status.success(), "{mode}: {:?}", output.status);
        assert_eq!(text(&output.stdout), "made\n", "{mode}");
    }
}
