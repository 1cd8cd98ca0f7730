//! The device under a driver that does what it is told, with programs of the host's at the other end.

mod bounds;
mod life;
mod random;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ::spec::{Facts, Spec};
use device::fake::{Bench, FREE};
use device::{Host, Kept};

use super::packet::{HOST_CID, Header, STREAM, op, shutdown};
use super::*;

const CID: u64 = 52;
const SHORT: Duration = Duration::from_millis(100);
const PATIENT: Duration = Duration::from_secs(20);
/// Size of a buffer for packets to the guest.
const BUFFER: u32 = 4096;
/// Buffers in turn.
const BUFFERS: u16 = 64;
/// Where the guest puts what it sends.
const OUT: u64 = FREE + 0x20_0000;

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("virga-vsock-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn make(path: &std::path::Path) -> Vsock {
    let spec = VsockSpec::parse(&format!("cid={CID},socket={}", path.display())).unwrap();
    spec.make(&Host { id: "_vsock0", facts: &Facts::default(), kept: &Kept::default() }).unwrap()
}

/// A guest with a driver.
struct Guest {
    b: Bench<Vsock>,
    path: PathBuf,
    /// Bytes that the guest got over each connection, by its port, and has room for.
    got: u32,
    next: u16,
    _dir: Scratch,
}

impl Guest {
    /// One that has given buffers.
    fn new(name: &str) -> Self {
        let mut guest = Guest::without_buffers(name);
        guest.give(0..BUFFERS);
        guest
    }

    fn without_buffers(name: &str) -> Self {
        let dir = Scratch::new(name);
        let path = dir.0.join("v");
        Guest { b: Bench::new(make(&path), u64::MAX), path, got: 0, next: 0, _dir: dir }
    }

    fn give(&mut self, heads: std::ops::Range<u16>) {
        for head in heads {
            self.b.chain(RX, head, &[(FREE + u64::from(head) * u64::from(BUFFER), BUFFER, true)]);
        }
        self.b.kick(RX);
    }

    /// The next packet to the guest, if one comes in time.
    fn try_take(&mut self, patience: Duration) -> Option<(Header, Vec<u8>)> {
        let (head, length) = self.b.try_used(RX, patience)?;
        let bytes = self.b.get(FREE + u64::from(head) * u64::from(BUFFER), length as usize);
        let (header, data) = bytes.split_first_chunk().expect("a header");
        let header = Header::parse(header);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        assert_eq!(header.len as usize, data.len());
        let data = data.to_vec();
        self.give(head..head + 1);
        Some((header, data))
    }

    #[track_caller]
    fn take(&mut self) -> (Header, Vec<u8>) {
        self.try_take(PATIENT).expect("a packet")
    }

    /// The next packet, which must be for this.
    #[track_caller]
    fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.take();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    #[track_caller]
    fn silence(&mut self) {
        assert_eq!(self.try_take(SHORT), None);
    }

    /// Sends a packet and waits until it was taken.
    #[track_caller]
    fn send(&mut self, header: &Header, data: &[u8]) {
        assert!(self.try_send(header, data, PATIENT), "a packet was not taken: {header:?}");
    }

    fn try_send(&mut self, header: &Header, data: &[u8], patience: Duration) -> bool {
        self.b.put(OUT, &header.bytes());
        self.b.put(OUT + HEADER as u64, data);
        let head = 2 * (self.next % 64);
        self.next += 1;
        let data = (OUT + HEADER as u64, data.len() as u32, false);
        self.b.chain(TX, head, &[(OUT, HEADER as u32, false), data]);
        self.b.kick(TX);
        self.b.try_used(TX, patience).map(|used| assert_eq!(used, (head, 0))).is_some()
    }

    /// A program of the host's that asks for a port of the guest; the guest accepts.
    #[track_caller]
    fn accept(&mut self, port: u32, room: u32) -> (UnixStream, Header) {
        let mut program = self.program();
        program.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let request = self.expect(op::REQUEST);
        assert_eq!((request.dst_port, request.kind), (port, STREAM));
        let to_host = Header { buf_alloc: room, ..back(&request) };
        self.send(&Header { op: op::RESPONSE, ..to_host }, &[]);
        let line = format!("OK {}\n", request.src_port);
        let mut said = vec![0; line.len()];
        program.read_exact(&mut said).unwrap();
        assert_eq!(said, line.as_bytes());
        (program, to_host)
    }

    fn program(&self) -> UnixStream {
        let program = UnixStream::connect(&self.path).unwrap();
        program.set_read_timeout(Some(PATIENT)).unwrap();
        program
    }

    /// A service of the host's.
    fn service(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    /// The guest connects to it.
    #[track_caller]
    fn connect(&mut self, service: &UnixListener, host: u32, guest: u32) -> (UnixStream, Header) {
        let header = request(host, guest);
        self.send(&header, &[]);
        let response = self.expect(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port), (host, guest));
        let (stream, _) = service.accept().unwrap();
        stream.set_read_timeout(Some(PATIENT)).unwrap();
        (stream, header)
    }

    fn stop(self) {
        assert!(!self.b.link.broken());
        self.b.stop();
        self.b.device.reset();
        assert!(self.b.events.requests().is_empty());
    }

    fn count(&self, what: &str) -> u64 {
        self.b.device.counters().unwrap()[what]
    }

    #[track_caller]
    fn wait_for_count(&self, what: &str, count: u64) {
        let begun = Instant::now();
        while self.count(what) != count {
            assert!(begun.elapsed() < PATIENT, "{what}: {} and not {count}", self.count(what));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A guest's packet that wants a connection.
fn request(host: u32, guest: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: STREAM,
        op: op::REQUEST,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

/// A packet in the other direction.
fn back(header: &Header) -> Header {
    Header {
        src_cid: header.dst_cid,
        dst_cid: header.src_cid,
        src_port: header.dst_port,
        dst_port: header.src_port,
        kind: STREAM,
        ..Header::default()
    }
}

fn data(header: &Header, length: usize) -> Header {
    Header { op: op::RW, len: length as u32, ..*header }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn a_program_and_the_guest_talk() {
    let mut guest = Guest::new("talk");
    let (mut program, mut header) = guest.accept(1234, 1 << 20);
    program.write_all(b"to the guest").unwrap();
    let (came, bytes) = guest.take();
    assert_eq!((came.op, bytes.as_slice()), (op::RW, &b"to the guest"[..]));
    header.fwd_cnt = came.len;
    guest.send(&data(&header, 11), b"to the host");
    let mut said = [0; 11];
    program.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"to the host");
    // What is said together with the line is data.
    let mut program = guest.program();
    program.write_all(b"connect 7\nhello").unwrap();
    let wanted = guest.expect(op::REQUEST);
    guest.silence();
    guest.send(&Header { op: op::RESPONSE, buf_alloc: 100, ..back(&wanted) }, &[]);
    assert_eq!(guest.take().1, b"hello");
    let mut config = [0; CONFIG_LENGTH];
    guest.b.device.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), CID);
    guest.stop();
}

#[test]
fn the_guest_connects_to_services_of_the_host() {
    let mut guest = Guest::new("serve");
    let service = guest.service(80);
    let (mut stream, header) = guest.connect(&service, 80, 5000);
    guest.send(&data(&header, 3), b"GET");
    let mut said = [0; 3];
    stream.read_exact(&mut said).unwrap();
    stream.write_all(b"200").unwrap();
    assert_eq!(guest.take().1, b"200");
    // The same port of the guest to another of the host's is another connection; nobody listens there.
    guest.send(&request(81, 5000), &[]);
    let refused = guest.expect(op::RST);
    assert_eq!((refused.src_port, refused.dst_port), (81, 5000));
    drop((stream, service));
    assert_eq!(guest.expect(op::SHUTDOWN).flags, shutdown::BOTH);
    guest.send(&Header { op: op::RST, ..header }, &[]);
    guest.wait_for_count("connections", 0);
    // A socket that nobody listens on any more.
    guest.send(&request(80, 5000), &[]);
    guest.expect(op::RST);
    guest.stop();
}

#[test]
fn a_guest_that_refuses_is_told_on() {
    let mut guest = Guest::new("refuse");
    let mut program = guest.program();
    program.write_all(b"CONNECT 9\n").unwrap();
    let wanted = guest.expect(op::REQUEST);
    guest.send(&Header { op: op::RST, ..back(&wanted) }, &[]);
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    // One that leaves before it was answered.
    let mut program = guest.program();
    program.write_all(b"CONNECT 9\n").unwrap();
    let wanted = guest.expect(op::REQUEST);
    drop(program);
    assert_eq!(guest.expect(op::RST).src_port, wanted.src_port);
    guest.wait_for_count("connections", 0);
    guest.stop();
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = Guest::new("half");
    let (mut program, header) = guest.accept(1, 1 << 20);
    // The host's.
    program.write_all(b"last").unwrap();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.take().1, b"last");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, shutdown::SEND);
    guest.send(&data(&header, 6), b"answer");
    // The guest's.
    guest.send(&Header { op: op::SHUTDOWN, flags: shutdown::SEND, ..header }, &[]);
    let mut answer = String::new();
    program.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    // Then nobody can say any more, and the guest is told that it was heard out.
    assert_eq!(guest.expect(op::SHUTDOWN).flags, shutdown::BOTH);
    guest.send(&Header { op: op::RST, ..header }, &[]);
    guest.wait_for_count("connections", 0);

    // A guest that listens no more: the host's program cannot write.
    let (mut program, header) = guest.accept(1, 1 << 20);
    guest.send(&Header { op: op::SHUTDOWN, flags: shutdown::RECEIVE, ..header }, &[]);
    assert_eq!(program.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    guest.send(&data(&header, 2), b"ok");
    program.read_exact(&mut [0; 2]).unwrap();
    // The flags are remembered: this is the other half.
    guest.send(&Header { op: op::SHUTDOWN, flags: shutdown::SEND, ..header }, &[]);
    guest.expect(op::RST);
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    guest.wait_for_count("connections", 0);

    // One that sends after it said that it would not.
    let (_program, header) = guest.accept(1, 1 << 20);
    guest.send(&Header { op: op::SHUTDOWN, flags: shutdown::SEND, ..header }, &[]);
    guest.send(&data(&header, 1), b"x");
    guest.expect(op::RST);
    guest.stop();
}

#[test]
fn what_a_guest_that_left_had_sent_is_not_lost() {
    let mut guest = Guest::new("drain");
    let (mut program, header) = guest.accept(1, 1 << 20);
    let sent = pattern(LARGE_ROOM as usize);
    let mut got = Vec::new();
    for piece in sent.chunks(60_000) {
        guest.send(&data(&header, piece.len()), piece);
    }
    guest.send(&Header { op: op::SHUTDOWN, flags: shutdown::BOTH, ..header }, &[]);
    // Perhaps news of room before.
    while guest.take().0.op != op::RST {}
    assert_eq!(guest.count("connections"), 1);
    // Its ports are free at once.
    guest.send(&data(&header, 1), b"x");
    guest.expect(op::RST);
    program.read_to_end(&mut got).unwrap();
    assert!(got == sent, "{} of {}", got.len(), sent.len());
    guest.wait_for_count("connections", 0);
    guest.stop();
}

#[test]
fn packets_that_belong_to_nothing_are_refused_or_dropped() {
    let mut guest = Guest::new("nonsense");
    let (mut program, header) = guest.accept(1, 1 << 20);
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, u16::MAX] {
        guest.send(&Header { op, ..request(3, 4) }, &[]);
        let refused = guest.expect(op::RST);
        assert_eq!((refused.src_port, refused.dst_port), (3, 4));
    }
    // Another kind of socket, also on a connection's ports; a refusal is not refused.
    guest.send(&Header { kind: 2, op: op::REQUEST, ..header }, &[]);
    assert_eq!(guest.expect(op::RST).kind, 2);
    guest.send(&Header { kind: 2, op: op::RST, ..header }, &[]);
    guest.send(&Header { op: op::RST, ..request(3, 4) }, &[]);
    // Somebody else's, or for somebody else.
    for (src_cid, dst_cid) in [(CID + 1, HOST_CID), (CID, 1), (CID, u64::MAX), (CID | 1 << 32, HOST_CID)] {
        guest.send(&Header { src_cid, dst_cid, op: op::RST, ..header }, &[]);
    }
    guest.silence();
    // Truncated.
    guest.b.put(OUT, &header.bytes());
    for (n, length) in [0, 1, 43].into_iter().enumerate() {
        guest.b.chain(TX, 200 + n as u16, &[(OUT, length, false)]);
        guest.b.kick(TX);
        assert_eq!(guest.b.used(TX), (200 + n as u16, 0));
    }
    guest.silence();
    // All that did the connection no harm.
    guest.send(&data(&header, 2), b"hi");
    program.read_exact(&mut [0; 2]).unwrap();
    // A packet that claims more than it has ends it.
    guest.send(&data(&header, 3), b"hi");
    guest.expect(op::RST);
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    // So does whatever a connection has no use for: its request, or answer, once more, or no operation.
    for op in [op::REQUEST, op::RESPONSE, 0, 8, u16::MAX] {
        let (mut program, header) = guest.accept(1, 1 << 20);
        guest.send(&Header { op, ..header }, &[]);
        guest.expect(op::RST);
        assert_eq!(program.read(&mut [0; 1]).unwrap(), 0);
    }
    guest.stop();
}
