//! A peer that sends bytes, whatever they are, and what can be checked of the daemon afterwards.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::daemon::{Daemon, PATIENCE, Scratch};
use crate::front::{EVENT_IDX, FLUSH, Front, Memory, PROTOCOL, Queue, VERSION_1, addresses, memfd};

/// A daemon with peers that mean it no good.
pub(crate) struct Victim {
    pub(crate) scratch: Scratch,
    pub(crate) socket: PathBuf,
    pub(crate) daemon: Daemon,
    holdings: [usize; 2],
}

impl Victim {
    pub(crate) fn new() -> Victim {
        let scratch = Scratch::new();
        let (image, socket) = (scratch.image("image", 1 << 20), scratch.path("socket"));
        let daemon = Daemon::start(&scratch, &image, &socket, ",num_queues=2");
        serve(&socket);
        let mut victim = Victim { scratch, socket, daemon, holdings: [0; 2] };
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
    pub(crate) fn is_well(&self) {
        serve(&self.socket);
        assert_eq!(self.settled(), self.holdings, "descriptors and threads");
        assert!(!self.daemon.said().contains("panicked"), "{}", self.daemon.said());
    }

    pub(crate) fn peer(&self) -> Peer {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer(stream)
    }
}

/// A front end that behaves is served.
#[track_caller]
fn serve(socket: &Path) {
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 16), Queue::new(1, 16)];
    let mut front = Front::connect(socket, EVENT_IDX);
    front.start(&memory, &rings);
    for ring in &mut rings {
        assert_eq!(ring.ask(&memory, FLUSH, 0, (0, 0)), 0);
    }
}

/// See the module.
pub(crate) struct Peer(pub(crate) UnixStream);

impl Peer {
    /// Sends bytes; the daemon may have hung up.
    pub(crate) fn bytes(&self, bytes: &[u8], descriptors: &[RawFd]) -> bool {
        self.0.send_with_fds(&[bytes], descriptors).is_ok()
    }

    pub(crate) fn send(&self, request: u32, flags: u32, body: &[u8], descriptors: &[RawFd]) -> bool {
        self.bytes(&message(request, flags, body), descriptors)
    }

    /// Request, flags and body of the next answer; `None` if the daemon hung up.
    pub(crate) fn answer(&mut self) -> Option<(u32, u32, Vec<u8>)> {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).ok()?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(8) as usize];
        self.0.read_exact(&mut body).ok()?;
        Some((word(0), word(4), body))
    }

    /// Waits until the daemon hangs up.
    #[track_caller]
    pub(crate) fn expect_hang_up(mut self) {
        while self.answer().is_some() {}
        let left = self.0.read(&mut [0; 1]);
        assert!(matches!(&left, Ok(0)) || left.is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock));
    }
}

pub(crate) fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let words = [request, flags, body.len() as u32];
    words.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect()
}

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(crate) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// One message of a conversation.
pub(crate) struct Line {
    pub(crate) request: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) answered: bool,
}

fn line(request: u32, body: Vec<u8>, answered: bool) -> Line {
    Line { request, body, descriptors: Vec::new(), answered }
}

/// A conversation as a front end that behaves has it, from the first message to the last.
pub(crate) fn conversation(memory: &Memory, rings: &[Queue]) -> Vec<Line> {
    let features = VERSION_1 | PROTOCOL | EVENT_IDX;
    // SAFETY: as `try_clone` would do, for descriptors of types that have no such method.
    let copy = |fd: RawFd| unsafe { OwnedFd::from_raw_fd(libc::dup(fd)) };
    let mut lines = vec![
        line(3, vec![], false),
        line(1, vec![], true),
        line(15, vec![], true),
        line(16, longs(&[0xb229]), false),
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
    let inflight = [longs(&[0, 0]), vec![2, 0, 16, 0, 0, 0, 0, 0]].concat();
    lines.push(line(31, inflight.clone(), true));
    let mut kept = inflight;
    kept[..8].copy_from_slice(&2048u64.to_ne_bytes());
    lines.push(Line { request: 32, body: kept, descriptors: vec![memfd(2048).into()], answered: false });
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
    lines.push(line(25, [words(&[32, 1, 0]), vec![1]].concat(), false));
    lines.push(line(11, words(&[0, 0]), true));
    lines.push(line(34, vec![], false));
    lines
}

impl Peer {
    /// Says a line as it should be said, and hears the answer.
    #[track_caller]
    pub(crate) fn say(&mut self, line: &Line) {
        let descriptors: Vec<RawFd> = line.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        assert!(self.send(line.request, 1, &line.body, &descriptors));
        if line.answered {
            let (request, flags, _) = self.answer().expect("an answer");
            assert_eq!((request, flags), (line.request, 5));
        }
    }
}

/// A generator of numbers that looks random and is the same each time.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }
}

#[test]
fn it_survives_hang_ups_at_every_message_and_within() {
    let victim = Victim::new();
    let memory = Memory::new();
    let rings = [Queue::new(0, 16), Queue::new(1, 16)];
    let lines = conversation(&memory, &rings);
    let mut said = victim.peer();
    lines.iter().for_each(|line| said.say(line));
    drop(said);
    for end in 0..lines.len() {
        let mut peer = victim.peer();
        lines[..end].iter().for_each(|line| peer.say(line));
        // With an answer that is not read.
        if end % 2 == 0 {
            peer.send(1, 1, &[], &[]);
        }
        let whole = message(lines[end].request, 1, &lines[end].body);
        let descriptors: Vec<RawFd> = lines[end].descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        peer.bytes(&whole[..(1 + end * 5) % whole.len()], &descriptors);
    }
    victim.is_well();
    // A message in pieces is a message all the same.
    let mut peer = victim.peer();
    for byte in message(1, 1, &[]) {
        peer.bytes(&[byte], &[]);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(peer.answer().unwrap().0, 1);
}

#[test]
fn it_survives_conversations_with_mistakes() {
    let victim = Victim::new();
    let memory = Memory::new();
    let rings = [Queue::new(0, 16), Queue::new(1, 16)];
    let lines = conversation(&memory, &rings);
    let mut dice = Dice::new(1);
    let spare = memfd(4096);
    for round in 0..600 {
        let mut peer = victim.peer();
        let wrong = dice.below(lines.len());
        lines[..wrong].iter().for_each(|line| peer.say(line));
        let line = &lines[wrong];
        let mut body = line.body.clone();
        let mut descriptors: Vec<RawFd> = line.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let mut flags = 1 | if dice.below(2) == 0 { 8 } else { 0 };
        match dice.below(6) {
            0 if !body.is_empty() => {
                let at = dice.below(body.len());
                body[at] ^= 1 << dice.below(8);
            }
            1 => body.truncate(dice.below(body.len() + 1)),
            2 => body.extend((0..dice.below(64)).map(|_| 0xff)),
            3 => drop(descriptors.pop()),
            4 => descriptors.push(spare.as_raw_fd()),
            _ => flags = dice.next() as u32,
        }
        let request = if dice.below(4) == 0 { dice.below(48) as u32 } else { line.request };
        peer.send(request, flags, &body, &descriptors);
        // Go on as if nothing had happened.
        for line in &lines[wrong + 1..] {
            let descriptors: Vec<RawFd> = line.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            if !peer.send(line.request, 1, &line.body, &descriptors) {
                break;
            }
        }
        drop(peer);
        if round % 100 == 99 {
            victim.is_well();
        }
    }
}

#[test]
fn it_survives_messages_that_make_no_sense() {
    let victim = Victim::new();
    let memory = Memory::new();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let (pipe, _other) = std::io::pipe().unwrap();
    let (null, directory) = (File::open("/dev/null").unwrap(), File::open("/tmp").unwrap());
    let fds = [
        memory.file.as_raw_fd(),
        event.as_raw_fd(),
        pipe.as_raw_fd(),
        null.as_raw_fd(),
        directory.as_raw_fd(),
    ];
    let edges = [
        0,
        1,
        2,
        3,
        16,
        0xff,
        0x100,
        0x1000,
        0xffff,
        0x1_0000,
        u64::from(u32::MAX),
        u64::MAX - 4095,
        u64::MAX,
    ];
    let mut dice = Dice::new(2);
    for round in 0..400 {
        let peer = victim.peer();
        // So that more is open to it.
        if round % 2 == 0 {
            peer.send(16, 1, &longs(&[0xb229]), &[]);
            peer.send(2, 1, &longs(&[VERSION_1 | PROTOCOL]), &[]);
        }
        for _ in 0..30 {
            let request = dice.below(46) as u32;
            let mut body = Vec::new();
            let (longs_in_it, words_in_it) = (dice.below(6), dice.below(3));
            for _ in 0..words_in_it {
                body.extend((edges[dice.below(edges.len())] as u32).to_ne_bytes());
            }
            for _ in 0..longs_in_it {
                body.extend(edges[dice.below(edges.len())].to_ne_bytes());
            }
            let count = dice.below(3);
            let some: Vec<RawFd> = (0..count).map(|_| fds[dice.below(fds.len())]).collect();
            if !peer.send(request, 1 | 8, &body, &some) {
                break;
            }
        }
        if round % 100 == 99 {
            victim.is_well();
        }
    }
    for _ in 0..100 {
        let noise: Vec<u8> = (0..dice.below(5000)).map(|_| dice.next() as u8).collect();
        victim.peer().bytes(&noise, &[]);
    }
    victim.is_well();
}
