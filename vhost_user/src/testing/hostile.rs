//! Front ends that know the protocol and lie: tests for any program.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::front::{EVENT_IDX, Front, HALF, MEMORY, Memory, PROTOCOL, Queue, VERSION_1, addresses, memfd};
use super::peer::{Peer, Subject, Victim, conversation, longs, words};

/// A peer that has said what comes before memory.
fn greeted(victim: &Victim) -> Peer {
    let peer = victim.peer();
    assert!(peer.send(16, 1, &longs(&[victim.subject.protocol]), &[]));
    assert!(peer.send(2, 1, &longs(&[VERSION_1 | PROTOCOL]), &[]));
    peer
}

/// The message is refused when an answer is wanted, and ends the connection when none is.
#[track_caller]
fn refused(victim: &Victim, request: u32, body: &[u8], descriptors: &[RawFd]) {
    let mut peer = greeted(victim);
    assert!(peer.send(request, 1 | 8, body, descriptors));
    assert_eq!(peer.answer(), Some((request, 5, longs(&[1]))), "request {request}, {body:x?}");
    // It goes on.
    assert!(peer.send(1, 1, &[], &[]));
    assert_eq!(peer.answer().unwrap().0, 1);
    drop(peer);
    left(victim, request, body, descriptors);
}

#[track_caller]
fn left(victim: &Victim, request: u32, body: &[u8], descriptors: &[RawFd]) {
    let peer = greeted(victim);
    assert!(peer.send(request, 1, body, descriptors));
    peer.expect_hang_up();
}

/// Memory that cannot be.
pub fn memory_that_is_not_there(subject: &Subject) {
    let victim = Victim::new(subject);
    let file = memfd(0x10000);
    let (pipe, _end) = std::io::pipe().unwrap();
    let (null, directory) = (File::open("/dev/null").unwrap(), File::open("/tmp").unwrap());
    let closed_for_writing = File::open(victim.scratch.zeros("zeros", 0x1000)).unwrap();
    let max = u64::MAX;
    for region in [
        [0, 0, 0, 0],
        [0, 0x10001, 0, 0],
        [0, 0x1000, 0, 0x10000],
        [0, 0x1000, 0, max],
        [0, max, 0, 0],
        [0, max, 0, max],
        [0, 0x1000, 0, 1],
        [max, 0x1000, 0, 0],
        [max - 0xfff, 0x2000, 0, 0],
        [0, 0x1000, max, 0],
    ] {
        refused(&victim, 37, &[longs(&[0]), longs(&region)].concat(), &[file.as_raw_fd()]);
        refused(&victim, 5, &[words(&[1, 0]), longs(&region)].concat(), &[file.as_raw_fd()]);
    }
    let good = longs(&[0, 0x1000, 0, 0]);
    for fd in [pipe.as_raw_fd(), null.as_raw_fd(), directory.as_raw_fd(), closed_for_writing.as_raw_fd()] {
        refused(&victim, 37, &[longs(&[0]), good.clone()].concat(), &[fd]);
    }
    let fd = file.as_raw_fd();
    let table = |count: u32, regions: usize| [words(&[count, 0]), good.repeat(regions)].concat();
    for (count, regions, descriptors) in
        [(0, 0, 0), (1, 1, 0), (1, 1, 2), (2, 1, 2), (1, 2, 1), (2, 2, 2), (u32::MAX, 1, 1), (33, 33, 32)]
    {
        refused(&victim, 5, &table(count, regions), &vec![fd; descriptors]);
    }
    left(&victim, 5, &table(40, 40), &[fd; 40]);
    refused(&victim, 38, &[longs(&[0]), good.clone()].concat(), &[]);
    refused(&victim, 37, &[longs(&[0]), good].concat(), &[]);
    victim.is_well();
}

/// More memory than there may be.
pub fn too_much_memory(subject: &Subject) {
    let victim = Victim::new(subject);
    let file = memfd(0x1000);
    let mut peer = greeted(&victim);
    for n in 0..300u64 {
        let region = longs(&[0, n << 12, 0x1000, n << 12, 0]);
        assert!(peer.send(37, 1 | 8, &region, &[file.as_raw_fd()]));
        assert_eq!(peer.answer().unwrap().2, longs(&[u64::from(n >= 256)]), "region {n}");
    }
    drop(peer);
    victim.is_well();
}

/// Rings that cannot be.
pub fn rings_that_cannot_be(subject: &Subject) {
    let victim = Victim::new(subject);
    let memory = Memory::new();
    for (request, body) in [
        (8, words(&[0, 0])),
        (8, words(&[0, 3])),
        (8, words(&[0, 2048])),
        (8, words(&[0, 0x10010])),
        (8, words(&[2, 16])),
        (8, words(&[u32::MAX, 16])),
        (10, words(&[0, 0x10000])),
        (10, words(&[2, 0])),
        (9, [words(&[2, 0]), longs(&[0; 4])].concat()),
        (18, words(&[2, 1])),
        (12, longs(&[0x100])),
        (12, longs(&[2])),
        (12, longs(&[0])),
        (13, longs(&[0])),
        (2, longs(&[1 << 63])),
        (16, longs(&[1 << 63])),
        (25, [words(&[60, 4, 0]), vec![0; 4]].concat()),
        (25, [words(&[u32::MAX, 4, 0]), vec![0; 4]].concat()),
        (25, words(&[0, 4, 0])),
    ] {
        refused(&victim, request, &body, &[]);
    }
    left(&victim, 11, &words(&[2, 0]), &[]);
    left(&victim, 24, &words(&[0, u32::MAX, 0]), &[]);
    left(&victim, 31, &[longs(&[0, 0]), vec![0, 0, 16, 0]].concat(), &[]);
    left(&victim, 31, &[longs(&[0, 0]), vec![255, 255, 255, 255]].concat(), &[]);
    // Rings whose parts lie where there is no memory, and such as begin within and end outside.
    let queue = Queue::new(0, 16);
    let good = addresses(&memory, &queue);
    for n in 0..3 {
        for bad in [
            0,
            u64::MAX,
            u64::MAX - 15,
            memory.user(MEMORY),
            memory.user(MEMORY) - 16,
            memory.user(HALF) - 16,
        ] {
            let mut front = Front::connect(&victim.socket, EVENT_IDX);
            front.socket.set_mem_table(&memory.regions()).unwrap();
            front.socket.set_vring_num(0, 16).unwrap();
            let mut places = good;
            *[&mut places.desc_table_addr, &mut places.used_ring_addr, &mut places.avail_ring_addr][n] =
                bad & !15;
            front.socket.set_vring_addr(0, &places).unwrap();
            front.socket.set_vring_kick(0, &queue.kick).unwrap();
            front.socket.set_vring_enable(0, true).unwrap_err();
        }
    }
    // Memory goes from under a ring, and a ring starts without having been described.
    let mut front = Front::connect(&victim.socket, EVENT_IDX);
    front.start(&memory, &[Queue::new(0, 16)]);
    front.socket.remove_mem_region(&memory.regions()[0]).unwrap_err();
    drop(front);
    let mut front = Front::connect(&victim.socket, EVENT_IDX);
    front.socket.set_vring_kick(1, &queue.kick).unwrap();
    front.socket.set_vring_enable(1, true).unwrap_err();
    drop(front);
    victim.is_well();
}

/// Descriptors that are something else.
pub fn strange_descriptors(subject: &Subject) {
    let victim = Victim::new(subject);
    let memory = Memory::new();
    let file = memfd(100);
    let (pipe, _end) = std::io::pipe().unwrap();
    for (request, fd) in [(12, file.as_raw_fd()), (13, file.as_raw_fd()), (13, pipe.as_raw_fd())] {
        let rings = [Queue::new(0, 16)];
        let lines = conversation(subject, &memory, &rings);
        let mut peer = victim.peer();
        for line in &lines[..lines.len() - 2] {
            if line.request == request {
                assert!(peer.send(request, 1, &line.body, &[fd]));
            } else if line.answered {
                peer.send(line.request, 1, &line.body, &[]);
                if peer.answer().is_none() {
                    break;
                }
            } else {
                let descriptors: Vec<RawFd> = line.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
                peer.send(line.request, 1, &line.body, &descriptors);
            }
        }
    }
    // A channel that is none, and one at whose other end nobody reads.
    for fd in [file.as_raw_fd(), pipe.as_raw_fd()] {
        let peer = greeted(&victim);
        assert!(peer.send(21, 1, &[], &[fd]));
        victim.daemon.signal(libc::SIGHUP);
    }
    victim.is_well();
}

/// Half a message is not waited for without end.
pub fn half_a_message(subject: &Subject) {
    let victim = Victim::new(subject);
    let mut peer = victim.peer();
    let begun = Instant::now();
    assert!(peer.bytes(&[1, 0, 0, 0, 1], &[]));
    assert_eq!(peer.0.read_to_end(&mut Vec::new()).unwrap(), 0);
    let took = begun.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(30)).contains(&took), "{took:?}");
    victim.is_well();
}

/// A peer that asks and asks and does not read is dropped when there is no more room for answers.
pub fn unread_answers(subject: &Subject) {
    let victim = Victim::new(subject);
    let peer = victim.peer();
    peer.0.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let asked = (0..1_000_000).take_while(|_| peer.send(1, 1, &[], &[])).count();
    assert!(asked < 1_000_000);
    drop(peer);
    victim.is_well();
}
