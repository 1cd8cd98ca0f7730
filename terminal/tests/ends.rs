//! Real files, sockets and pseudo-terminals at the other end.

// All of this file is a test, its helpers included.
#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use device::Workers;
use device::fake::FakeEvents;
use terminal::ring::CAPACITY;
use terminal::{ConsoleMode, Inbox, Input, Mode, Session, Terminal, TerminalError};

/// An inbox that counts changes of size.
struct Desk {
    inbox: Inbox,
    sizes: AtomicU32,
}

impl Input for Desk {
    fn room(&self) -> usize {
        self.inbox.room()
    }

    fn put(&self, bytes: &[u8]) {
        self.inbox.put(bytes);
    }

    fn resized(&self) {
        self.sizes.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    terminal: Terminal,
    desk: Arc<Desk>,
    session: Option<Session>,
    workers: Workers,
}

fn bench(mode: &ConsoleMode) -> Bench {
    let terminal = Terminal::open(mode).unwrap().unwrap();
    let desk = Arc::new(Desk { inbox: Inbox::new(64).unwrap(), sizes: AtomicU32::new(0) });
    let workers = Workers::new(Arc::new(FakeEvents::default()));
    let session = Some(terminal.serve(&workers, desk.clone()).unwrap());
    Bench { terminal, desk, session, workers }
}

impl Bench {
    /// Takes input as a device does.
    fn hear(&self, count: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        until(|| {
            let mut buffer = [0; 16];
            let taken = self.desk.inbox.take(&mut buffer);
            heard.extend_from_slice(&buffer[..taken]);
            self.terminal.resume();
            heard.len() >= count
        });
        heard
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "not within ten seconds");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A path of this test's own, free of leftovers.
fn path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("virga-terminal-{name}-{}", std::process::id()));
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => panic!("{e}"),
        _ => path,
    }
}

fn socket(path: &Path) -> ConsoleMode {
    ConsoleMode { mode: Mode::Socket, file: None, socket: Some(path.to_owned()) }
}

fn user(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path)
        .unwrap()
}

/// Reads from a descriptor that does not block.
fn read_exact(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    until(|| {
        let mut buffer = vec![0; count - all.len()];
        match from.read(&mut buffer) {
            Ok(0) => panic!("ended after {} of {count} bytes", all.len()),
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => panic!("{e} after {} of {count} bytes", all.len()),
        }
        all.len() == count
    });
    all
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n % 251) as u8).collect()
}

#[test]
fn off_is_no_terminal_null_swallows_and_a_file_is_begun_anew() {
    assert!(Terminal::open(&Mode::Off.into()).unwrap().is_none());
    let null = bench(&Mode::Null.into());
    null.terminal.write(b"x");
    assert_eq!((null.terminal.size(), null.terminal.path()), (None, None));

    let path = path("file");
    std::fs::write(&path, "what was there before").unwrap();
    let mode = ConsoleMode { mode: Mode::File, file: Some(path.clone()), socket: None };
    let file = bench(&mode);
    file.terminal.write(b"one ");
    drop(file.session);
    file.terminal.write(b"two");
    assert_eq!(std::fs::read(&path).unwrap(), b"one two");
    std::fs::remove_file(&path).unwrap();

    let mode = ConsoleMode { mode: Mode::File, file: Some("/nowhere/x".into()), socket: None };
    let Err(e) = Terminal::open(&mode) else { panic!("opened") };
    assert_eq!(e.to_string(), "cannot create /nowhere/x");
    let Err(e) = Terminal::open(&Mode::File.into()) else { panic!("opened") };
    assert_eq!(e.to_string(), "Path missing when using file console mode");
}

#[test]
fn a_full_disk_drops_output_and_goes_on() {
    let mode = ConsoleMode { mode: Mode::File, file: Some("/dev/full".into()), socket: None };
    let terminal = Terminal::open(&mode).unwrap().unwrap();
    for _ in 0..1000 {
        terminal.write(b"no space left for this line\n");
    }
}

#[test]
fn a_socket_replays_and_a_new_client_replaces_the_old() {
    let path = path("replace");
    let bench = bench(&socket(&path));
    bench.terminal.write(b"before anybody came");
    let mut first = UnixStream::connect(&path).unwrap();
    assert_eq!(read_exact(&mut first, 19), b"before anybody came");
    first.write_all(b"hello").unwrap();
    assert_eq!(bench.hear(5), b"hello");

    let mut second = UnixStream::connect(&path).unwrap();
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0, "the first is hung up on");
    bench.terminal.write(b"second");
    assert_eq!(read_exact(&mut second, 6), b"second");
    drop(second);
    // Whatever is written once nobody is there is kept.
    until(|| {
        bench.terminal.write(b".");
        UnixStream::connect(&path).is_ok()
    });
    let mut third = UnixStream::connect(&path).unwrap();
    bench.terminal.write(b"third");
    let mut heard = Vec::new();
    until(|| {
        heard.extend(read_exact(&mut third, 1));
        heard.ends_with(b"third")
    });
}

#[test]
fn a_client_that_leaves_at_once_is_heard_to_its_last_byte() {
    let path = path("leave");
    let bench = bench(&socket(&path));
    let text = pattern(10_000);
    for _ in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(&text).unwrap();
        drop(client);
        assert_eq!(bench.hear(text.len()), text);
    }
    // One that only stops sending goes on reading.
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"bye").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.hear(3), b"bye");
    bench.terminal.write(b"and the answer");
    assert_eq!(read_exact(&mut client, 14), b"and the answer");
}

#[test]
fn a_client_that_does_not_read_never_blocks_and_gets_the_newest() {
    let path = path("slow");
    let bench = bench(&socket(&path));
    let mut client = UnixStream::connect(&path).unwrap();
    bench.terminal.write(b"!");
    assert_eq!(read_exact(&mut client, 1), b"!");
    let begun = Instant::now();
    let chunk = pattern(64 << 10);
    for _ in 0..64 {
        bench.terminal.write(&chunk);
    }
    bench.terminal.write(b"the end");
    assert!(begun.elapsed() < Duration::from_secs(30));
    client.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    until(|| {
        let mut buffer = vec![0; 1 << 16];
        match client.read(&mut buffer) {
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        all.ends_with(b"the end")
    });
    assert!(all.len() >= CAPACITY, "{}", all.len());
    assert!(all.len() < 4 << 20, "the oldest were dropped: {}", all.len());
    assert!(all[..1000].iter().zip(&chunk).all(|(a, b)| a == b));
}

#[test]
fn a_path_in_use_is_refused_a_stale_one_replaced_and_ours_removed() {
    let path = path("taken");
    let first = Terminal::open(&socket(&path)).unwrap().unwrap();
    let Err(e) = Terminal::open(&socket(&path)) else { panic!("opened twice") };
    assert!(matches!(e, TerminalError::SocketTaken(_)), "{e}");
    drop(first);
    assert!(!path.exists());
    // A socket whose owner died stays behind.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let second = Terminal::open(&socket(&path)).unwrap();
    UnixStream::connect(&path).unwrap();
    // Somebody else's socket at our path is not ours to remove.
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(second);
    assert!(path.exists());
    drop(other);
    std::fs::remove_file(&path).unwrap();
    // A file that is no socket is left alone.
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Terminal::open(&socket(&path)), Err(TerminalError::Listen { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_pty_is_raw_and_replays_each_time_it_is_opened() {
    let bench = bench(&Mode::Pty.into());
    let path = bench.terminal.path().unwrap().to_owned();
    bench.terminal.write(b"first\n");
    let mut user = user(&path);
    // Raw: no carriage return is added, nothing is echoed.
    assert_eq!(read_exact(&mut user, 6), b"first\n");
    user.write_all(b"\x03\x04\r\n").unwrap();
    assert_eq!(bench.hear(4), b"\x03\x04\r\n");
    bench.terminal.write(b"more");
    assert_eq!(read_exact(&mut user, 4), b"more");
    drop(user);
    // The hang-up is noticed at once, so that nothing goes into a terminal that nobody has open.
    std::thread::sleep(Duration::from_millis(100));
    bench.terminal.write(b"second");
    let mut user = self::user(&path);
    assert_eq!(read_exact(&mut user, 6), b"second");
}

#[test]
fn what_is_written_to_a_pty_in_passing_is_heard() {
    let bench = bench(&Mode::Pty.into());
    let path = bench.terminal.path().unwrap().to_owned();
    // More than the device has room for, by somebody who is gone at once.
    let text = pattern(1000);
    for _ in 0..2 {
        let mut user = user(&path);
        user.write_all(&text).unwrap();
        drop(user);
        assert_eq!(bench.hear(text.len()), text);
    }
}

#[test]
fn a_pty_that_nobody_reads_never_blocks() {
    let bench = bench(&Mode::Pty.into());
    let mut user = user(bench.terminal.path().unwrap());
    bench.terminal.write(b"!");
    assert_eq!(read_exact(&mut user, 1), b"!");
    let begun = Instant::now();
    for _ in 0..64 {
        bench.terminal.write(&pattern(64 << 10));
    }
    bench.terminal.write(b"the end");
    assert!(begun.elapsed() < Duration::from_secs(30));
    let mut all = Vec::new();
    until(|| {
        let mut buffer = vec![0; 1 << 16];
        match user.read(&mut buffer) {
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        all.ends_with(b"the end")
    });
    assert!(all.len() >= CAPACITY);
}

#[test]
fn the_size_of_a_pty_is_followed_when_somebody_types() {
    let bench = bench(&Mode::Pty.into());
    assert_eq!(bench.terminal.size(), None);
    let mut user = user(bench.terminal.path().unwrap());
    let resize = |user: &File, columns, rows| {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size is valid for the call.
        assert_eq!(unsafe { libc::ioctl(user.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    };
    resize(&user, 132, 43);
    user.write_all(b"a").unwrap();
    assert_eq!(bench.hear(1), b"a");
    assert_eq!((bench.terminal.size(), bench.desk.sizes.load(Ordering::SeqCst)), (Some((132, 43)), 1));
    user.write_all(b"b").unwrap();
    assert_eq!(bench.hear(1), b"b");
    assert_eq!(bench.desk.sizes.load(Ordering::SeqCst), 1);
}

#[test]
fn one_device_at_a_time_and_another_may_follow() {
    let path = path("follow");
    let mut bench = bench(&socket(&path));
    assert!(bench.terminal.serve(&bench.workers, bench.desk.clone()).is_err());
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"a").unwrap();
    assert_eq!(bench.hear(1), b"a");
    // The guest reboots: another device takes over, and the client stays.
    for _ in 0..50 {
        bench.session = None;
        client.write_all(b"b").unwrap();
        bench.terminal.write(b"c");
        bench.session = Some(bench.terminal.serve(&bench.workers, bench.desk.clone()).unwrap());
        assert_eq!(bench.hear(1), b"b");
        assert_eq!(read_exact(&mut client, 1), b"c");
    }
}

#[test]
fn an_idle_terminal_does_not_keep_its_thread_busy() {
    let path = path("idle");
    let bench = bench(&socket(&path));
    let mut client = UnixStream::connect(&path).unwrap();
    // Fill the device's room and hang up: nothing can be done until the device reads.
    client.write_all(&pattern(1000)).unwrap();
    drop(client);
    until(|| bench.desk.inbox.room() == 0);
    let busy = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel fills the value.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    // Other tests of this process use the processor too; alone, a thread that spins would take all of a second.
    let least = (0..20)
        .map(|_| {
            let before = busy();
            std::thread::sleep(Duration::from_millis(50));
            busy() - before
        })
        .min()
        .unwrap();
    assert!(least < Duration::from_millis(25), "{least:?} of 50 ms");
    assert_eq!(bench.hear(1000), pattern(1000));
}
