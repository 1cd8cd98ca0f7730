//! How it begins, waits and ends.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use vhost_user::testing::Scratch;
use vhost_user::testing::front::{Front, Memory, Queue};

use crate::disk::{FLUSH, PROGRAM, Requests, capacity, serve, start};

#[test]
fn one_front_end_after_the_other_is_served_until_sigterm() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let scratch = Scratch::new();
        let (image, socket) = (scratch.zeros("image", 1 << 20), scratch.path("socket"));
        let mut daemon = start(&scratch, &image, &socket, "");
        for _ in 0..5 {
            serve(&socket);
        }
        // One is connected, and the next one waits.
        let memory = Memory::new();
        let mut rings = [Queue::new(0, 16)];
        let mut first = Front::connect(&socket, 0);
        first.start(&memory, &rings);
        let there = socket.clone();
        let second = std::thread::Builder::new().name("second".into()).spawn(move || serve(&there)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(!second.is_finished());
        assert_eq!(rings[0].ask(&memory, FLUSH, 0, (0, 0)), 0);
        drop(first);
        second.join().unwrap();
        let _connected = Front::connect(&socket, 0);
        daemon.signal(signal);
        assert!(daemon.end().success(), "{}", daemon.said());
        assert!(!socket.exists());
        assert_eq!(daemon.said(), "");
    }
}

#[test]
fn several_disks_in_one_process() {
    let scratch = Scratch::new();
    let mut args = Vec::new();
    let mut sockets = Vec::new();
    for i in 0..3 {
        let image = scratch.zeros(&format!("image{i}"), (i + 1) << 20);
        let socket = scratch.path(&format!("socket{i}"));
        args.push(format!("path={},socket={}", image.display(), socket.display()));
        sockets.push(socket);
    }
    let words = ["--block-backend", &args[0], &args[1], "--block-backend", &args[2]];
    let mut daemon = PROGRAM.spawn(&scratch, &words);
    let mut fronts: Vec<Front> = sockets
        .iter()
        .map(|socket| {
            assert!(daemon.listens(socket), "{}", daemon.said());
            Front::connect(socket, 0)
        })
        .collect();
    for (i, front) in fronts.iter_mut().enumerate() {
        assert_eq!(capacity(front), (i as u64 + 1) << 20);
    }
    daemon.signal(libc::SIGTERM);
    assert!(daemon.end().success());
    assert!(sockets.iter().all(|socket| !socket.exists()));
}

#[test]
fn a_stale_socket_is_replaced_and_a_taken_one_is_not() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", 1 << 20), scratch.path("socket"));
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.metadata().unwrap().file_type().is_socket());
    let daemon = start(&scratch, &image, &socket, "");
    serve(&socket);
    let other = scratch.zeros("other", 1 << 20);
    let line = format!("path={},socket={}", other.display(), socket.display());
    let output = PROGRAM.run(&["--block-backend", &line]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!("socket path {} is in use", socket.display())), "{text}");
    serve(&socket);
    // The image is taken as well.
    let line = format!("path={},socket={}", image.display(), scratch.path("s2").display());
    let output = PROGRAM.run(&["--block-backend", &line]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("lock") && text.contains("image"), "{text}");
    assert!(!scratch.path("s2").exists());
    drop(daemon);
    // A file that is not a socket stays as it is.
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "precious").unwrap();
    let line = format!("path={},socket={}", other.display(), socket.display());
    assert_eq!(PROGRAM.run(&["--block-backend", &line]).status.code(), Some(1));
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
}

#[test]
fn a_socket_that_somebody_else_put_there_stays() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", 1 << 20), scratch.path("socket"));
    let mut daemon = start(&scratch, &image, &socket, "");
    std::fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    daemon.signal(libc::SIGTERM);
    assert!(daemon.end().success());
    assert!(UnixStream::connect(&socket).is_ok());
}
