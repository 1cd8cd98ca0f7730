//! The daemon is killed while requests are under way; another one goes on with them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_user::testing::front::{DATA, EVENT_IDX, Front, Memory, Queue, addresses};
use vhost_user::testing::{PATIENCE, Scratch};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::disk::{IN, OUT, Requests, SECTOR, pattern, start};

const PIECE: u32 = 32 << 10;
const SLOTS: u64 = 16;
const DISK: u64 = 64 << 20;

/// Chains that an area says are under way, of a queue with `size` descriptors: the layout of the protocol, read by its letter.
fn under_way(area: &[u8], queue: usize, size: u16) -> usize {
    let stride = (16 + 16 * usize::from(size)).next_multiple_of(64);
    let ring = &area[queue * stride + 16..][..16 * usize::from(size)];
    ring.chunks(16).filter(|chain| chain[0] == 1).count()
}

#[test]
fn killed_at_any_moment_it_loses_and_repeats_nothing() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let begin = || start(&scratch, &image, &socket, ",num_queues=2");
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 64), Queue::new(1, 64)];
    let mut daemon = begin();
    let mut front = Front::connect(&socket, EVENT_IDX);
    let area = front.inflight(&rings);
    front.start(&memory, &rings);
    // What each sector must hold: a request that was answered counts.
    let mut written: HashMap<u64, u64> = HashMap::new();
    let mut offered = [[0u32; 64]; 2];
    let mut deaths_with_work = 0;
    let place = |ring: usize, slot: u16| DATA + (ring as u64 * SLOTS + u64::from(slot)) * u64::from(PIECE);
    for round in 1..=25u64 {
        let mut sectors = [[None; SLOTS as usize]; 2];
        for (r, ring) in rings.iter_mut().enumerate() {
            for slot in 0..SLOTS as u16 {
                // Slots of a queue have parts of the disk of their own, so that the order in which they are served does not matter.
                let part = (r as u64 * SLOTS + u64::from(slot)) * (DISK / (2 * SLOTS));
                let sector = (part + round % 32 * u64::from(PIECE)) / SECTOR;
                memory.put(place(r, slot), &pattern(sector, round, PIECE as usize));
                ring.offer(&memory, slot, OUT, sector, (place(r, slot), PIECE));
                sectors[r][usize::from(slot)] = Some(sector);
                offered[r][usize::from(slot * 3)] += 1;
            }
            ring.kick();
        }
        // A little later each time.
        std::thread::sleep(Duration::from_micros(40 * (round - 1)));
        daemon.kill();
        let file = {
            use std::os::unix::fs::FileExt;
            let mut bytes = vec![0; area.0.mmap_size as usize];
            area.1.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        deaths_with_work += usize::from((0..2).any(|queue| under_way(&file, queue, 64) > 0));
        daemon = begin();
        front = Front::connect(&socket, EVENT_IDX);
        front.keep(&area);
        // As front ends do that know no better: from the used ring's index.
        front.socket.set_mem_table(&memory.regions()).unwrap();
        for (i, ring) in rings.iter().enumerate() {
            front.start_queue(&memory, i, ring, ring.seen);
            ring.wait_call();
        }
        for (r, ring) in rings.iter_mut().enumerate() {
            for _ in 0..SLOTS {
                let (slot, status) = ring.wait(&memory);
                assert_eq!(status, 0);
                let sector = sectors[r][usize::from(slot)].take().expect("not answered before");
                written.insert(sector, round);
            }
            std::thread::sleep(Duration::from_millis(1));
            assert!(ring.poll(&memory).is_none(), "answered twice");
            assert_eq!(ring.returned[..], offered[r][..], "every chain as often as it was offered");
        }
    }
    assert!(deaths_with_work > 0, "the daemon never died at work");
    for (sector, round) in written {
        assert_eq!(rings[0].ask(&memory, IN, sector, (DATA, PIECE)), 0);
        assert!(
            memory.get(DATA, PIECE as usize) == pattern(sector, round, PIECE as usize),
            "sector {sector}"
        );
    }
}

/// Requests were taken, and their places in the available ring have been written over since: only the area knows of them.
#[test]
fn what_the_ring_no_longer_tells_is_served_too() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let mut daemon = start(&scratch, &image, &socket, "");
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 64)];
    let mut front = Front::connect(&socket, EVENT_IDX);
    let area = front.inflight(&rings);
    front.start(&memory, &rings);
    for _ in 0..100 {
        assert_eq!(rings[0].ask(&memory, OUT, 0, (DATA, 512)), 0);
    }
    daemon.kill();
    // As if these had been taken, in this order, and others answered meanwhile, so that the ring has gone on.
    let slots = [9u16, 4, 13];
    for (n, slot) in slots.iter().enumerate() {
        memory.put(DATA + 512 * n as u64, &pattern(u64::from(*slot), 1, 512));
        rings[0].offer(&memory, *slot, OUT, u64::from(*slot), (DATA + 512 * n as u64, 512));
        use std::os::unix::fs::FileExt;
        let chain = 16 + 16 * u64::from(slot * 3);
        area.1.write_all_at(&[1], chain).unwrap();
        area.1.write_all_at(&(1000 + n as u64).to_ne_bytes(), chain + 8).unwrap();
        let entry = rings[0].base + 0x4000 + 4 + 2 * u64::from(rings[0].offered.wrapping_sub(1) % 64);
        memory.put(entry, &60u16.to_le_bytes());
    }
    let _daemon = start(&scratch, &image, &socket, "");
    front = Front::connect(&socket, EVENT_IDX);
    front.keep(&area);
    front.start(&memory, &rings);
    let mut back: Vec<u16> = slots.iter().map(|_| rings[0].wait(&memory).0).collect();
    back.sort_unstable();
    assert_eq!(back, [4, 9, 13]);
    let bytes = std::fs::read(&image).unwrap();
    for slot in slots {
        let at = usize::from(slot) * 512;
        assert!(bytes[at..at + 512] == pattern(u64::from(slot), 1, 512));
    }
    // And the ring goes on behind them.
    assert_eq!(rings[0].ask(&memory, IN, 9, (DATA, 512)), 0);
    assert_eq!(front.socket.get_vring_base(0).unwrap(), 104);
}

/// A front end that comes back to the same daemon.
#[test]
fn a_front_end_may_leave_and_come_back() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let daemon = start(&scratch, &image, &socket, "");
    let memory = Memory::new();
    let mut rings = [Queue::new(0, 64)];
    let mut area = None;
    for round in 0..20u64 {
        let mut front = Front::connect(&socket, EVENT_IDX);
        match &area {
            None => area = Some(front.inflight(&rings)),
            Some(area) => front.keep(area),
        }
        front.start(&memory, &rings);
        for slot in 0..16 {
            rings[0].offer(
                &memory,
                slot,
                OUT,
                u64::from(slot) * 64,
                (DATA + u64::from(slot) * 0x8000, PIECE),
            );
        }
        rings[0].kick();
        std::thread::sleep(Duration::from_micros(50 * round));
        drop(front);
        let mut front = Front::connect(&socket, EVENT_IDX);
        front.keep(area.as_ref().unwrap());
        front.start(&memory, &rings);
        for _ in 0..16 {
            assert_eq!(rings[0].wait(&memory).1, 0);
        }
        assert!(rings[0].returned.iter().step_by(3).take(16).all(|n| u64::from(*n) == round + 1));
    }
    assert!(!daemon.said().contains("panic"), "{}", daemon.said());
}

/// A chain that cannot be answered: the device gives up, says so, and is whole again when the ring was stopped and set up anew. A front end
/// that shows the chain to the next connection instead is not served, and does not hold up those that come after it.
#[test]
fn a_chain_that_cannot_be_served_is_not_replayed_for_ever() {
    let scratch = Scratch::new();
    let (image, socket) = (scratch.zeros("image", DISK), scratch.path("socket"));
    let daemon = start(&scratch, &image, &socket, "");
    let memory = Memory::new();
    let broken = |ring: &mut Queue| {
        ring.offer(&memory, 1, IN, 0, (DATA, 512));
        // No status: the first buffer is the last one.
        memory.put(ring.base + 16 * 3 + 12, &0u16.to_le_bytes());
        ring.kick();
    };
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(&socket, EVENT_IDX);
    let error = EventFd::new(EFD_NONBLOCK).unwrap();
    let area = front.inflight(&rings);
    front.socket.set_vring_err(0, &error).unwrap();
    front.start(&memory, &rings);
    assert_eq!(rings[0].ask(&memory, IN, 0, (DATA, 512)), 0);
    broken(&mut rings[0]);
    let begun = Instant::now();
    while error.read().is_err() {
        assert!(begun.elapsed() < PATIENCE, "nobody tells of the error");
        std::thread::sleep(Duration::from_micros(100));
    }
    // As a driver resets a device.
    front.socket.get_vring_base(0).unwrap();
    memory.put(0, &[0; 0x10000]);
    rings = [Queue::new(0, 16)];
    front.start(&memory, &rings);
    assert_eq!(rings[0].ask(&memory, IN, 0, (DATA, 512)), 0);

    broken(&mut rings[0]);
    while error.read().is_err() {
        std::thread::sleep(Duration::from_micros(100));
    }
    drop(front);
    let begun = Instant::now();
    let mut front = Front::connect(&socket, EVENT_IDX);
    front.keep(&area);
    front.socket.set_mem_table(&memory.regions()).unwrap();
    front.socket.set_vring_num(0, 16).unwrap();
    front.socket.set_vring_addr(0, &addresses(&memory, &rings[0])).unwrap();
    front.socket.set_vring_kick(0, &rings[0].kick).unwrap();
    front.socket.set_vring_enable(0, true).unwrap_err();
    assert!(begun.elapsed() < PATIENCE / 2);
    drop(front);

    memory.put(0, &[0; 0x10000]);
    let mut rings = [Queue::new(0, 16)];
    let mut front = Front::connect(&socket, EVENT_IDX);
    front.inflight(&rings);
    front.start(&memory, &rings);
    assert_eq!(rings[0].ask(&memory, IN, 0, (DATA, 512)), 0);
    assert!(!daemon.said().contains("panic"), "{}", daemon.said());
}
