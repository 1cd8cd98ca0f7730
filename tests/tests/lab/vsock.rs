//! Sockets between a stock Debian and programs of the host's: both ways, many, half closed, paused, removed and added.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Instant;

use tests::linux::{Linux, PATIENCE, Pvh, Running};
use tests::{image, place};

/// The guest's port that sends everything back, and the host's.
const GUEST_PORT: u32 = 1234;
const HOST_PORT: u32 = 80;
/// Bytes of one conversation.
const SIZE: usize = 4 << 20;
/// Connections at once.
const MANY: usize = 200;
/// Pauses under load.
const PAUSES: u32 = 20;
/// Seconds that a guest may take to its part.
const WAIT: &str = "200";

fn thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::Builder::new().name("program".into()).spawn(work).expect("a thread")
}

/// A program that is connected to the guest's port.
fn connect(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).expect("the VMM listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit can be set");
    stream.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).expect("the VMM takes a line");
    let mut line = String::new();
    // No more than the line has come: the guest is spoken to first.
    BufReader::new(&stream).read_line(&mut line).expect("the guest answers");
    assert!(line.starts_with("OK "), "{line:?}");
    stream
}

/// Says so much to the guest, and that this was all; what comes back must be the same.
fn converse(mut stream: UnixStream, size: usize) {
    let data = image::pattern(3, 0, size as u64 / image::SECTOR);
    let mut back = Vec::new();
    let mut writer = stream.try_clone().expect("a socket can be duplicated");
    let sent = data.clone();
    let writer = thread(move || {
        writer.write_all(&sent).expect("the guest takes all of it");
        writer.shutdown(Shutdown::Write).expect("a socket can be half closed");
    });
    stream.read_to_end(&mut back).expect("the guest sends all of it back");
    writer.join().expect("all was written");
    assert!(back == data, "{} of {} bytes came back, or others", back.len(), data.len());
}

/// A service of the host's that sends back what comes, each connection on a thread of its own, until the story ends.
fn serve(socket: &Path) {
    let path = format!("{}_{HOST_PORT}", socket.display());
    let listener = UnixListener::bind(path).expect("the scratch directory takes sockets");
    thread(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread(move || {
                let mut reader = stream.try_clone().expect("a socket can be duplicated");
                // Either end may be gone with its machine.
                let _ =
                    std::io::copy(&mut reader, &mut stream).and_then(|_| stream.shutdown(Shutdown::Write));
            });
        }
    });
}

/// Both ways, one and many; nothing of it is left.
fn all_works(guest: &mut Running, socket: &Path) {
    let begun = Instant::now();
    converse(connect(socket), SIZE);
    let there = begun.elapsed();
    guest.sh(&format!("python3 /run/vsock.py talk {HOST_PORT} {SIZE}"));
    println!(
        "{SIZE} bytes to the guest and back in {there:.2?}, from it and back in {:.2?}",
        begun.elapsed() - there
    );
    let mut streams: Vec<_> = (0..MANY).map(|_| connect(socket)).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&number.to_le_bytes()).expect("the guest takes a number");
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; size_of::<usize>()];
        stream.read_exact(&mut back).expect("the guest sends a number back");
        assert_eq!(usize::from_le_bytes(back), number);
    }
    drop(streams);
    guest.sh(&format!("python3 /run/vsock.py many {HOST_PORT} {MANY}"));
    // Nobody listens there.
    let (status, said) = guest.try_sh("python3 /run/vsock.py talk 81 1");
    assert!(status != 0 && said.contains("reset"), "{status} {said}");
    wait_for_connections(guest, 0);
}

fn wait_for_connections(guest: &mut Running, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while !counters(guest).contains(&format!("\"connections\":{count},")) {
        assert!(Instant::now() < deadline, "not {count} connections: {}", counters(guest));
    }
}

fn counters(guest: &mut Running) -> String {
    guest.ask(&["counters"]).split_whitespace().collect()
}

fn pauses(guest: &mut Running, socket: &Path) {
    let streams: Vec<_> = (0..2).map(|_| connect(socket)).collect();
    let busy: Vec<_> = streams.into_iter().map(|stream| thread(move || converse(stream, SIZE))).collect();
    for _ in 0..PAUSES {
        guest.ask(&["pause"]);
        guest.ask(&["resume"]);
    }
    for program in busy {
        program.join().expect("a conversation outlives pauses");
    }
}

#[test]
fn debian_and_the_host_talk_over_sockets() {
    tests::elsewhere!();
    let path = |name: &str| -> PathBuf { place::scratch().join(name) };
    let socket = path("v");
    serve(&socket);
    let mut guest = Linux::new("6.12", Pvh)
        .debian()
        .console_pty()
        .cpus("boot=2")
        .with(&["--vsock", &format!("cid=77,socket={},id=talk", socket.display())])
        .boot();
    guest.sh(&format!("cat > /run/vsock.py << 'end of file'\n{}\nend of file", include_str!("vsock.py")));
    guest.sh("modprobe vmw_vsock_virtio_transport");
    guest.sh(&format!(
        "python3 /run/vsock.py serve {GUEST_PORT} > /run/serve 2>&1 & echo $! > /run/serve.pid"
    ));
    guest.sh("for i in $(seq 600); do [ -e /run/serving ] && break; sleep 0.2; done; [ -e /run/serving ]");
    let cid = "python3 -c 'import socket; s = socket.socket(40, 1); s.bind((2**32 - 1, 5)); \
        import fcntl, struct; print(*struct.unpack(\"I\", fcntl.ioctl(open(\"/dev/vsock\"), 0x7b9, bytes(4))))'";
    assert_eq!(guest.sh(cid), "77");
    all_works(&mut guest, &socket);
    pauses(&mut guest, &socket);

    come_and_go(&mut guest, &socket);
    guest.sh("kill -0 $(cat /run/serve.pid)");
    let complaints = guest.sh("dmesg | grep -iE 'BUG:|WARNING:|blocked for more' || true");
    assert_eq!(complaints, "");
    guest.power_off();
}

/// The device goes, and another one comes; the guest's listener is there for both.
fn come_and_go(guest: &mut Running, socket: &Path) {
    let another = guest.remote(&["add-vsock", "cid=78,socket=/nowhere/s"]);
    assert!(another.as_ref().is_err_and(|e| e.contains("Too many virtio-vsock devices")), "{another:?}");
    guest.ask(&["remove-device", "talk", "--wait", WAIT]);
    assert!(!socket.exists(), "the socket is left");
    let socket = place::scratch().join("hot");
    serve(&socket);
    guest.ask(&["add-vsock", &format!("cid=78,socket={}", socket.display()), "--wait", WAIT]);
    all_works(guest, &socket);
}
