//! The user's own terminal: raw while it is used, and as it was before whatever happens.
//!
//! The program under test is this one, started again with a pseudo-terminal as its standard streams.

// All of this file is a test, its helpers included.
#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use device::Workers;
use device::fake::FakeEvents;
use terminal::{ConsoleMode, Inbox, Mode, Terminal, restore_all};

const ROLE: &str = "VIRGA_TTY_ROLE";

/// The program under test; does nothing unless it was started for it.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let terminal = Terminal::open(&ConsoleMode::from(Mode::Tty)).unwrap().unwrap();
    let second = Terminal::open(&ConsoleMode::from(Mode::Tty)).unwrap().unwrap();
    let inbox = Arc::new(Inbox::new(16).unwrap());
    let workers = Workers::new(Arc::new(FakeEvents::default()));
    let session = terminal.serve(&workers, inbox.clone()).unwrap();
    drop(second);
    match terminal.size() {
        Some((columns, rows)) => terminal.write(format!("ready {columns}x{rows}\n").as_bytes()),
        None => terminal.write(b"ready\n"),
    }
    let mut byte = [0];
    while role != "output" && inbox.take(&mut byte) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    match role.as_str() {
        "return" => terminal.write(&[b'<', byte[0], b'>']),
        "panic" => {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore_all();
                hook(info);
            }));
            let panicked = std::thread::Builder::new().spawn(|| panic!("as the test wants")).unwrap().join();
            assert!(panicked.is_err());
            // No destructor runs.
            // SAFETY: ends the process.
            unsafe { libc::_exit(7) }
        }
        "signal" => {
            extern "C" fn end(_: libc::c_int) {
                restore_all();
                // SAFETY: ends the process.
                unsafe { libc::_exit(8) }
            }
            let end = end as extern "C" fn(libc::c_int) as libc::sighandler_t;
            // SAFETY: the handler only does what a handler may.
            unsafe {
                libc::signal(libc::SIGTERM, end);
                libc::raise(libc::SIGTERM);
            }
        }
        "output" => {
            for n in 0..20_000 {
                terminal.write(format!("line {n}\n").as_bytes());
            }
        }
        other => panic!("{other}"),
    }
    drop(session);
    drop(terminal);
    restore_all();
    restore_all();
}

struct Pty {
    main: File,
    user: File,
}

fn pty() -> Pty {
    let open = |path: &str| {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
    };
    let main = open("/dev/ptmx");
    let (unlock, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: each request takes a pointer to the value given.
    unsafe {
        assert_eq!(libc::ioctl(main.as_raw_fd(), libc::TIOCSPTLCK, &unlock), 0);
        assert_eq!(libc::ioctl(main.as_raw_fd(), libc::TIOCGPTN, &mut number), 0);
        assert_eq!(libc::ioctl(main.as_raw_fd(), libc::TIOCSWINSZ, &size), 0);
    }
    let user = open(&format!("/dev/pts/{number}"));
    Pty { main, user }
}

/// Input, output, control and local flags.
fn settings(terminal: &File) -> (u32, u32, u32, u32) {
    // SAFETY: all zeroes are valid settings, and the kernel fills them.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the settings are valid for the call.
    assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut settings) }, 0);
    (settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag)
}

fn start(role: &str, stdin: Stdio, stdout: Stdio) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--quiet"])
        .env(ROLE, role)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn read_until(from: &mut File, end: &[u8]) -> Vec<u8> {
    let mut heard = Vec::new();
    let limit = Instant::now() + Duration::from_secs(20);
    let mut looked_at = 0_usize;
    while !heard[looked_at.saturating_sub(end.len())..].windows(end.len()).any(|w| w == end) {
        looked_at = heard.len();
        let mut buffer = [0; 4096];
        let count = from.read(&mut buffer).unwrap();
        let tail = || String::from_utf8_lossy(&heard[looked_at.saturating_sub(200)..]).into_owned();
        assert!(count != 0, "ended after {looked_at} bytes: {}", tail());
        assert!(Instant::now() < limit, "still not there after {looked_at} bytes: {}", tail());
        heard.extend_from_slice(&buffer[..count]);
    }
    heard
}

fn run(role: &str) -> (Option<i32>, Vec<u8>) {
    let Pty { mut main, user } = pty();
    let before = settings(&user);
    let stream = || Stdio::from(OwnedFd::from(user.try_clone().unwrap()));
    let mut child = start(role, stream(), stream());
    read_until(&mut main, b"ready 80x24\n");
    let raw = settings(&user);
    assert_eq!(raw.3 & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
    assert_eq!(raw.1 & libc::OPOST, 0);
    main.write_all(b"k").unwrap();
    let heard = match role {
        "return" => read_until(&mut main, b"<k>"),
        _ => Vec::new(),
    };
    let status = child.wait().unwrap();
    assert_eq!(settings(&user), before);
    // The description is shared with whoever started us, and is left as it was.
    // SAFETY: asks for the flags of an open descriptor.
    assert_eq!(unsafe { libc::fcntl(user.as_raw_fd(), libc::F_GETFL) } & libc::O_NONBLOCK, 0);
    (status.code(), heard)
}

#[test]
fn a_terminal_is_restored_on_return_panic_and_signal() {
    assert_eq!(run("return").0, Some(0));
    assert_eq!(run("panic").0, Some(7));
    assert_eq!(run("signal").0, Some(8));
}

#[test]
fn a_pipe_takes_all_output_even_if_it_is_read_late() {
    let mut child = start("output", Stdio::null(), Stdio::piped());
    let mut out = File::from(OwnedFd::from(child.stdout.take().unwrap()));
    std::thread::sleep(Duration::from_millis(200));
    let heard = read_until(&mut out, b"line 19999\n");
    let text = String::from_utf8_lossy(&heard);
    assert!(text.contains("ready\n"));
    for n in [0, 1, 9_999, 19_998] {
        assert!(text.contains(&format!("\nline {n}\n")), "line {n}");
    }
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
