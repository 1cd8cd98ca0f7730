//! A thread of the API that cannot be kept to the paths of the process: it asks for nothing, and says why.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may as well end there")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use api::server::Server;
use sandbox::paths::{Domain, Trail};

/// One more than the kernel puts on any thread (`Documentation/userspace-api/landlock.rst`, "Ruleset layers").
const TOO_MANY: usize = 17;

/// Asks, and waits for the answer, after which the server hangs up.
fn ask(path: &std::path::Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"PUT /api/v1/vm.boot HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_thread_that_cannot_be_kept_to_the_paths_refuses_what_it_is_asked() {
    let directory = std::env::temp_dir().join(format!("virga-api-unconfined-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("s");
    let listener = UnixListener::bind(&path);
    let (caller, inbox) = api::calls::queue().unwrap();
    let trail = Trail::default();
    let server = Server::start(listener.unwrap(), caller, trail.follower());
    for _ in 0..TOO_MANY {
        let trail = trail.clone();
        let enter = move || Domain::enter(&[], &trail).map(drop);
        std::thread::Builder::new().spawn(enter).unwrap().join().unwrap().unwrap();
    }
    let answers = [ask(&path), ask(&path)];
    std::fs::remove_dir_all(&directory).unwrap();
    server.unwrap();
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains("Cannot confine a thread of the API by Landlock"), "{answer}");
    }
    assert_eq!(inbox.drain().count(), 0, "nobody was asked");
}
