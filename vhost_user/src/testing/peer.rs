//! A peer that sends bytes, whatever they are, and what can be checked of the daemon afterwards.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::front::{EVENT_IDX, Memory, PROTOCOL, Queue, VERSION_1, addresses, memfd};
use super::{Daemon, PATIENCE, Scratch};

/// A program under test, for tests that suit any.
#[derive(Clone, Copy)]
pub struct Subject {
    /// Serves a device with at least two queues, of which none has more than 1024 descriptors.
    pub start: fn(&Scratch, &Path) -> Daemon,
    /// Is a front end that behaves, and checks that it is served.
    pub serve: fn(&Path),
    /// A byte of the configuration space that may be set to 1.
    pub writable: u32,
    /// The protocol features that it offers.
    pub protocol: u64,
}

/// VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD.
const INFLIGHT: u64 = 1 << 12;

/// A daemon with peers that mean it no good.
pub struct Victim {
    /// Where its files are.
    pub scratch: Scratch,
    /// Where it listens.
    pub socket: PathBuf,
    /// Itself.
    pub daemon: Daemon,
    /// What it is.
    pub subject: Subject,
    holdings: [usize; 2],
}

impl Victim {
    /// Starts it and lets it serve once.
    pub fn new(subject: &Subject) -> Victim {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let daemon = (subject.start)(&scratch, &socket);
        (subject.serve)(&socket);
        let mut victim = Victim { scratch, socket, daemon, subject: *subject, holdings: [0; 2] };
        victim.holdings = victim.settled();
        victim
    }

    /// Descriptors and threads, when nothing is under way.
    fn settled(&self) -> [usize; 2] {
        let count = |what: &str| {
            let entries = std::fs::read_dir(format!("/proc/{}/{what}", self.daemon.id())).unwrap();
            let own = |path: &Path| {
                !std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("iou-"))
            };
            entries.flatten().filter(|entry| own(&entry.path())).count()
        };
        let mut least = [usize::MAX; 2];
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            let now = [count("fd"), count("task")];
            least = [0, 1].map(|i| least[i].min(now[i]));
        }
        least
    }

    /// It serves as if nothing had been, and holds no more than before.
    #[track_caller]
    pub fn is_well(&self) {
        (self.subject.serve)(&self.socket);
        assert_eq!(self.settled(), self.holdings, "descriptors and threads");
        assert!(!self.daemon.said().contains("panicked"), "{}", self.daemon.said());
    }

    /// Another connection.
    pub fn peer(&self) -> Peer {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer(stream)
    }
}

/// See the module.
pub struct Peer(pub UnixStream);

impl Peer {
    /// Sends bytes; the daemon may have hung up.
    pub fn bytes(&self, bytes: &[u8], descriptors: &[RawFd]) -> bool {
        self.0.send_with_fds(&[bytes], descriptors).is_ok()
    }

    /// Sends a message.
    pub fn send(&self, request: u32, flags: u32, body: &[u8], descriptors: &[RawFd]) -> bool {
        self.bytes(&message(request, flags, body), descriptors)
    }

    /// Request, flags and body of the next answer; `None` if the daemon hung up.
    pub fn answer(&mut self) -> Option<(u32, u32, Vec<u8>)> {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).ok()?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(8) as usize];
        self.0.read_exact(&mut body).ok()?;
        Some((word(0), word(4), body))
    }

    /// Waits until the daemon hangs up.
    #[track_caller]
    pub fn expect_hang_up(mut self) {
        while self.answer().is_some() {}
        let left = self.0.read(&mut [0; 1]);
        assert!(matches!(&left, Ok(0)) || left.is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock));
    }
}

/// The bytes of a message.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let words = [request, flags, body.len() as u32];
    words.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect()
}

/// The bytes of fields of 32 bits.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The bytes of fields of 64 bits.
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// One message of a conversation.
pub struct Line {
    /// Its number.
    pub request: u32,
    /// What follows the header.
    pub body: Vec<u8>,
    /// What goes with it.
    pub descriptors: Vec<OwnedFd>,
    /// Whether there is an answer.
    pub answered: bool,
}

fn line(request: u32, body: Vec<u8>, answered: bool) -> Line {
    Line { request, body, descriptors: Vec::new(), answered }
}

/// A conversation as a front end that behaves has it, from the first message to the last.
pub fn conversation(subject: &Subject, memory: &Memory, rings: &[Queue]) -> Vec<Line> {
    let features = VERSION_1 | PROTOCOL | EVENT_IDX;
    // SAFETY: as `try_clone` would do, for descriptors of types that have no such method.
    let copy = |fd: RawFd| unsafe { OwnedFd::from_raw_fd(libc::dup(fd)) };
    let mut lines = vec![
        line(3, vec![], false),
        line(1, vec![], true),
        line(15, vec![], true),
        line(16, longs(&[subject.protocol]), false),
        line(17, vec![], true),
        line(36, vec![], true),
        line(2, longs(&[features]), false),
        line(24, [words(&[0, 60, 1]), vec![0; 60]].concat(), true),
    ];
    let mut table = words(&[2, 0]);
    let mut files = Vec::new();
    for region in memory.regions() {
        let body = [region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset];
        table.extend(longs(&body));
        files.push(copy(memory.file.as_raw_fd()));
    }
    lines.push(Line { request: 5, body: table, descriptors: files, answered: false });
    let (ours, _theirs) = UnixStream::pair().unwrap();
    lines.push(Line { request: 21, body: vec![], descriptors: vec![ours.into()], answered: false });
    if subject.protocol & INFLIGHT != 0 {
        let inflight = [longs(&[0, 0]), vec![2, 0, 16, 0, 0, 0, 0, 0]].concat();
        lines.push(line(31, inflight.clone(), true));
        let mut kept = inflight;
        kept[..8].copy_from_slice(&2048u64.to_ne_bytes());
        lines.push(Line { request: 32, body: kept, descriptors: vec![memfd(2048).into()], answered: false });
    }
    for (i, ring) in rings.iter().enumerate() {
        let index = i as u32;
        let at = addresses(memory, ring);
        lines.push(line(8, words(&[index, u32::from(ring.size)]), false));
        lines.push(line(10, words(&[index, u32::from(ring.seen)]), false));
        let places = [at.desc_table_addr, at.used_ring_addr, at.avail_ring_addr, 0];
        lines.push(line(9, [words(&[index, 0]), longs(&places)].concat(), false));
        for (request, event) in [(14, &ring.call), (13, &ring.call), (12, &ring.kick)] {
            let descriptors = vec![copy(event.as_raw_fd())];
            lines.push(Line { request, body: longs(&[i as u64]), descriptors, answered: false });
        }
        lines.push(line(18, words(&[index, 1]), false));
    }
    lines.push(line(25, [words(&[subject.writable, 1, 0]), vec![1]].concat(), false));
    lines.push(line(11, words(&[0, 0]), true));
    lines.push(line(34, vec![], false));
    lines
}

impl Peer {
    /// Says a line as it should be said, and hears the answer.
    #[track_caller]
    pub fn say(&mut self, line: &Line) {
        let descriptors: Vec<RawFd> = line.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        assert!(self.send(line.request, 1, &line.body, &descriptors));
        if line.answered {
            let (request, flags, _) = self.answer().expect("an answer");
            assert_eq!((request, flags), (line.request, 5));
        }
    }
}
