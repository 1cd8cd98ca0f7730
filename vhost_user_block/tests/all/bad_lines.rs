//! Command lines that cannot be.

use vhost_user::testing::Scratch;

use crate::disk::PROGRAM;

fn refuses(line: &str, chain: &[&str]) {
    PROGRAM.refuses(line, chain);
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    PROGRAM.teaches(&["path", "socket", "num_queues", "queue_size", "readonly", "direct", "poll_queue"]);
}

#[test]
fn lines_that_say_nothing_sensible() {
    refuses("", &["Error parsing --block-backend: path missing"]);
    refuses("path=a", &["Error parsing --block-backend: socket missing"]);
    refuses("path=a,sock=b", &["Error parsing --block-backend", "Unknown option: sock"]);
    refuses("path=a,socket=b,num_queues=0", &["Number of queues (0) of a disk must be at least 1"]);
}

#[test]
fn images_and_sockets_that_cannot_be() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", 1 << 20), scratch.path("socket"));
    let (image, socket) = (image.to_str().unwrap(), socket.to_str().unwrap());
    let none = scratch.path("none");
    let none = none.to_str().unwrap();
    refuses(
        &format!("path={none},socket={socket}"),
        &[
            "cannot add disk \"disk0\"",
            &format!("cannot open disk image {none}"),
            "No such file or directory (os error 2)",
        ],
    );
    assert!(!scratch.path("socket").exists());
    refuses(
        &format!("path={image},socket={none}/socket"),
        &[
            "cannot serve disk \"disk0\"",
            &format!("cannot listen on {none}/socket"),
            "No such file or directory (os error 2)",
        ],
    );
    let long = format!("/tmp/{}", "x".repeat(200));
    refuses(
        &format!("path={image},socket={long}"),
        &[
            "cannot serve disk \"disk0\"",
            &format!("cannot listen on {long}"),
            "the path has 205 bytes; that of a socket has at most 107",
        ],
    );
    // The second of two: neither is served.
    let output = PROGRAM.run(&[
        "--block-backend",
        &format!("path={image},socket={socket}"),
        &format!("path={none},socket={none}"),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!scratch.path("socket").exists());
}
