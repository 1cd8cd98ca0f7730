//! The program as a user meets it: output, errors, exit codes. The server is the real one; a thread answers for the machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may as well end there")]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use api::server::Server;
use api::{Action, Inbox, Reply};
use spec::{Kind, Refusal};

/// A directory with a served socket `s`, removed in the end.
struct Fixture(PathBuf);

impl Drop for Fixture {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn directory() -> Fixture {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("virga-remote-{}-{number}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    Fixture(path)
}

fn serve() -> Fixture {
    let fixture = directory();
    let listener = UnixListener::bind(fixture.0.join("s")).unwrap();
    let (caller, inbox) = api::calls::queue().unwrap();
    std::thread::Builder::new().name("answers".into()).spawn(move || answer_all(inbox)).unwrap();
    Server::start(listener, caller, Default::default()).unwrap();
    fixture
}

fn answer_all(inbox: Inbox) {
    loop {
        for call in inbox.drain() {
            let answer = match call.action {
                Action::VmInfo => Ok(Reply::Json("{\"state\":\"Created\"}".into())),
                // Says what it understood.
                Action::VmCreate(spec) if spec.cpus.boot_vcpus == 7 => Ok(Reply::Done),
                Action::VmBoot => Err(Refusal::new(Kind::Conflict, "Identifier d0 is not unique")
                    .within("Failed to validate config")
                    .within("The VM could not boot")
                    .within("Error from API")),
                Action::VmPause => Err(Refusal::new(Kind::State, "VM is not running")),
                Action::VmmShutdown => Ok(Reply::Empty),
                other => Err(Refusal::invalid(format!("{other:?}"))),
            };
            let _ = call.answer.send(answer);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

impl Fixture {
    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ch-remote"))
            .args(["--api-socket", "s"])
            .args(arguments)
            .current_dir(&self.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that takes no body does not read it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Exit code, standard output, standard error.
    fn told(&self, arguments: &[&str], input: &str) -> (i32, String, String) {
        let output = self.run(arguments, input);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

const CHAIN: &str = "Error: ch-remote exited with the following chain of errors:\n";

#[test]
fn an_answer_is_printed_and_its_absence_is_silent() {
    let s = serve();
    assert_eq!(s.told(&["info"], ""), (0, "{\"state\":\"Created\"}\n".into(), String::new()));
    assert_eq!(s.told(&["shutdown-vmm"], ""), (0, String::new(), String::new()));
}

#[test]
fn a_machine_is_described_by_a_file_or_by_standard_input() {
    let s = serve();
    let body = "{\"cpus\":{\"boot_vcpus\":7,\"max_vcpus\":7}}";
    assert_eq!(s.told(&["create"], body), (0, String::new(), String::new()));
    assert_eq!(s.told(&["create", "-"], body), (0, String::new(), String::new()));
    std::fs::write(s.0.join("vm.json"), body).unwrap();
    assert_eq!(s.told(&["create", "vm.json"], ""), (0, String::new(), String::new()));
    let (code, _, e) = s.told(&["create", "none.json"], "");
    assert_eq!(
        (code, e.as_str()),
        (
            1,
            format!("{CHAIN}  0: Cannot read none.json\n  1: No such file or directory (os error 2)\n")
                .as_str()
        )
    );
    let (code, _, e) = s.told(&["create"], "{");
    assert_eq!(code, 1);
    assert!(e.starts_with(&format!("{CHAIN}  0: http client error\n  1: Server responded with BadRequest\n  2: Failed to deserialize JSON\n  3: EOF")), "{e}");
    let (code, _, e) = s.told(&["create"], "");
    assert_eq!(code, 1);
    assert!(e.contains("  2: Bad Request\n  3: This request needs a body\n"), "{e}");
}

#[test]
fn a_refusal_is_told_as_a_numbered_chain() {
    let s = serve();
    assert_eq!(
        s.told(&["boot"], ""),
        (
            1,
            String::new(),
            format!(
                "{CHAIN}  0: http client error\n  1: Server responded with Conflict\n  2: Error from API\n  3: The VM could not boot\n  4: Failed to validate config\n  5: Identifier d0 is not unique\n"
            )
        )
    );
    let (_, _, e) = s.told(&["pause"], "");
    assert_eq!(
        e,
        format!(
            "{CHAIN}  0: http client error\n  1: Server responded with MethodNotAllowed\n  2: VM is not running\n"
        )
    );
}

#[test]
fn a_server_that_is_gone_or_never_was_is_told() {
    let s = directory();
    let connect = format!("{CHAIN}  0: http client error\n  1: Cannot connect to API socket s\n  2: ");
    assert_eq!(s.told(&["ping"], "").2, format!("{connect}No such file or directory (os error 2)\n"));
    let listener = UnixListener::bind(s.0.join("s")).unwrap();
    let hang_up = std::thread::Builder::new()
        .name("hang-up".into())
        .spawn(move || drop(listener.accept().unwrap()))
        .unwrap();
    let (code, out, e) = s.told(&["ping"], "");
    hang_up.join().unwrap();
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(e.starts_with(&format!("{CHAIN}  0: http client error\n  1: Cannot ")), "{e}");
    assert_eq!(s.told(&["ping"], "").2, format!("{connect}Connection refused (os error 111)\n"));
}

#[test]
fn what_nobody_takes_is_an_error() {
    let s = serve();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ch-remote"));
        command.args(["--api-socket", "s"]).args(arguments).current_dir(&s.0).stdout(full());
        command
    };
    let output = run(&["info"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = "  0: Cannot write to standard output\n  1: No space left on device (os error 28)\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("{CHAIN}{told}"));
    assert_eq!(run(&["--help"]).status().unwrap().code(), Some(1));
    assert_eq!(run(&["info"]).stderr(full()).status().unwrap().code(), Some(1));
}

#[test]
fn what_a_server_says_does_not_reach_the_terminal() {
    let s = directory();
    let listener = UnixListener::bind(s.0.join("s")).unwrap();
    let speak = move || {
        for (status, body) in
            [("200", "{\"a\":\"\u{1b}[2J\"}\n"), ("400", r#"["\u001b[2J one\u0007","\ntwo"]"#)]
        {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 512]).unwrap(), 0);
            let length = body.len();
            write!(stream, "HTTP/1.1 {status} \r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        }
    };
    let server = std::thread::Builder::new().name("speaker".into()).spawn(speak).unwrap();
    assert_eq!(s.told(&["info"], "").1, "{\"a\":\"\\u001b[2J\"}\n\n");
    let told = s.told(&["info"], "").2;
    assert!(told.ends_with("  2: \\u001b[2J one\\u0007\n  3: \ntwo\n"), "{told}");
    server.join().unwrap();
}

#[test]
fn wrong_usage_is_told_before_anything_is_asked() {
    let run =
        |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_ch-remote")).args(arguments).output().unwrap();
    let output = run(&["info"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--api-socket <path>"));
    for wrong in [&[][..], &["--api-socket", "s"], &["--api-socket", "s", "dance"]] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{wrong:?}");
    }
    for right in ["--help", "--version"] {
        let output = run(&[right]);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}
