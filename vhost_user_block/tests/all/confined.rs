//! No thread of the program runs without a filter of system calls.

use vhost_user::testing::Scratch;
use vhost_user::testing::front::{Front, Memory, Queue};

use crate::disk::PROGRAM;

#[test]
fn every_thread_is_confined_at_work_and_none_when_that_is_asked_for() {
    for (mode, keys, seccomp) in [
        ("true", "", "2"),
        ("true", ",_disable_io_uring=on", "2"),
        ("errno", ",_disable_io_uring=on,_disable_aio=on", "2"),
        ("false", "", "0"),
    ] {
        let scratch = Scratch::new();
        let (image, socket) = (scratch.zeros("image", 1 << 20), scratch.path("socket"));
        let disk = format!("path={},socket={}{keys}", image.display(), socket.display());
        let mut daemon = PROGRAM.spawn(&scratch, &["--seccomp", mode, "--block-backend", &disk]);
        assert!(daemon.listens(&socket), "{}", daemon.said());
        let (memory, rings) = (Memory::new(), [Queue::new(0, 64)]);
        let mut front = Front::connect(&socket, 0);
        front.start(&memory, &rings);
        let names = daemon.threads_filtered(seccomp);
        assert!(names.len() >= 3 && names.iter().any(|name| name.ends_with("_q0")), "{names:?}");
        drop(front);
        daemon.signal(libc::SIGTERM);
        assert!(daemon.end().success(), "{}", daemon.said());
        assert!(!socket.exists());
    }
}

#[test]
fn another_mode_is_refused() {
    let output = PROGRAM.run(&["--seccomp", "yes", "--block-backend", "path=a,socket=b"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("Error parsing --seccomp: expected true, false, log or errno, not \"yes\""),
        "{said}"
    );
}
