//! Threads that serve the API and were there before the process was kept to paths: they do nothing more without being kept to them too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may as well end there")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use api::server::Server;
use api::{Action, Inbox, Reply};
use sandbox::paths::{Domain, Trail};
use sandbox::{HostPath, Use};

/// What the thread that was interrupted found: an error number, 0 if there was none, -1 so far.
static FOUND: AtomicI32 = AtomicI32::new(-1);

/// Opens the root directory, on whichever thread it is called.
extern "C" fn look(_: libc::c_int) {
    // SAFETY: calls that may be made in a signal handler, and this thread's own error number, which is put back.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let fd = libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        FOUND.store(if fd < 0 { *errno } else { libc::close(fd) }, Ordering::SeqCst);
        *errno = before;
    }
}

/// Threads of this name.
fn threads(name: &str) -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of_name = tasks.filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|text| text.trim() == name)
    });
    of_name.map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// Whether a thread can open what the process is not to open, whatever it is doing.
fn can_look(thread: i32) -> bool {
    FOUND.store(-1, Ordering::SeqCst);
    // SAFETY: no pointers; the handler is there.
    let told = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
    assert_eq!(told, 0, "there is no thread {thread}");
    let begun = Instant::now();
    while FOUND.load(Ordering::SeqCst) == -1 {
        assert!(begun.elapsed() < Duration::from_secs(60), "thread {thread} does not look");
        std::thread::sleep(Duration::from_millis(1));
    }
    let found = FOUND.load(Ordering::SeqCst);
    assert!(found == 0 || found == libc::EACCES, "error {found}");
    found == 0
}

/// Answers; a machine that is deleted has the answering thread keep the process to paths.
fn answer_all(inbox: &Inbox, trail: &Trail) {
    loop {
        let mut fd = libc::pollfd { fd: inbox.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        unsafe { libc::poll(&raw mut fd, 1, -1) };
        for call in inbox.drain() {
            if matches!(call.action, Action::VmDelete) {
                Domain::enter(&[HostPath::new("/proc/self", Use::Read)], trail).unwrap();
            }
            call.answer.send(Ok(Reply::Done)).unwrap();
        }
    }
}

/// Asks, and waits for the answer, which has no body.
fn ask(stream: &mut UnixStream, name: &str) {
    write!(stream, "PUT /api/v1/{name} HTTP/1.1\r\nHost: vm\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 204 "), "{}", String::from_utf8_lossy(&answer));
}

/// The socket's directory, which goes with the test.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn every_thread_of_the_api_is_kept_to_the_paths_before_it_does_anything_more() {
    // SAFETY: a zeroed action is one without flags and mask; the handler only does what handlers may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = look as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let directory =
        Directory(std::env::temp_dir().join(format!("virga-api-confined-{}", std::process::id())));
    std::fs::create_dir(&directory.0).unwrap();
    let path = directory.0.join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (caller, inbox) = api::calls::queue().unwrap();
    let trail = Trail::default();
    let follower = trail.follower();
    std::thread::Builder::new().name("answers".into()).spawn(move || answer_all(&inbox, &trail)).unwrap();
    let _server = Server::start(listener, caller, follower).unwrap();

    let connect = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        ask(&mut stream, "vm.boot");
        stream
    };
    let mut first = connect();
    let first_threads = threads("http-connection");
    let mut second = connect();
    let both = threads("http-connection");
    let [of_first] = first_threads[..] else { panic!("{first_threads:?}") };
    let of_second = *both.iter().find(|thread| **thread != of_first).unwrap();
    let [server] = threads("http-server")[..] else { panic!("one thread accepts") };
    for thread in [server, of_first, of_second] {
        assert!(can_look(thread));
    }
    // The connection that asks for it is kept to the paths when it has the answer, the other before its next request is answered.
    ask(&mut first, "vm.delete");
    assert!(!can_look(of_first));
    assert!(can_look(of_second), "it has done nothing since");
    ask(&mut second, "vm.boot");
    assert!(!can_look(of_second));
    let _third = connect();
    assert!(!can_look(server));
    let of_third =
        threads("http-connection").into_iter().find(|thread| ![of_first, of_second].contains(thread));
    assert!(!can_look(of_third.unwrap()));
    // Again and again: nobody enters a second time what it has entered, of which the kernel has sixteen at most.
    for _ in 0..30 {
        ask(&mut first, "vm.boot");
    }
    for _ in 0..4 {
        drop(connect());
    }
}
