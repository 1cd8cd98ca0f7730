//! Peers that send bytes, whatever they are: tests for any program.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use device::fake::random::Random;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::front::{Memory, PROTOCOL, Queue, VERSION_1, memfd};
use super::peer::{Subject, Victim, conversation, longs, message};

/// It survives hang-ups at every message and within.
pub fn hang_ups(subject: &Subject) {
    let victim = Victim::new(subject);
    let memory = Memory::new();
    let rings = [Queue::new(0, 16), Queue::new(1, 16)];
    let lines = conversation(subject, &memory, &rings);
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

/// It survives conversations with mistakes.
pub fn mistakes(subject: &Subject) {
    let victim = Victim::new(subject);
    let memory = Memory::new();
    let rings = [Queue::new(0, 16), Queue::new(1, 16)];
    let lines = conversation(subject, &memory, &rings);
    let mut dice = Random(1);
    let spare = memfd(4096);
    for round in 0..600 {
        let mut peer = victim.peer();
        let wrong = dice.below(lines.len() as u64) as usize;
        lines[..wrong].iter().for_each(|line| peer.say(line));
        let line = &lines[wrong];
        let mut body = line.body.clone();
        let mut descriptors: Vec<RawFd> = line.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let mut flags = 1 | if dice.below(2) == 0 { 8 } else { 0 };
        match dice.below(6) {
            0 if !body.is_empty() => {
                let at = dice.below(body.len() as u64) as usize;
                body[at] ^= 1 << dice.below(8);
            }
            1 => body.truncate(dice.below(body.len() as u64 + 1) as usize),
            2 => body.extend((0..dice.below(64)).map(|_| 0xff)),
            3 => drop(descriptors.pop()),
            4 => descriptors.push(spare.as_raw_fd()),
            _ => flags = dice.bits() as u32,
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

/// It survives messages that make no sense.
pub fn nonsense(subject: &Subject) {
    let victim = Victim::new(subject);
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
    let mut dice = Random(2);
    for round in 0..400 {
        let peer = victim.peer();
        // So that more is open to it.
        if round % 2 == 0 {
            peer.send(16, 1, &longs(&[subject.protocol]), &[]);
            peer.send(2, 1, &longs(&[VERSION_1 | PROTOCOL]), &[]);
        }
        for _ in 0..30 {
            let request = dice.below(46) as u32;
            let mut body = Vec::new();
            let (longs_in_it, words_in_it) = (dice.below(6), dice.below(3));
            for _ in 0..words_in_it {
                body.extend((dice.one_of(&edges) as u32).to_ne_bytes());
            }
            for _ in 0..longs_in_it {
                body.extend(dice.one_of(&edges).to_ne_bytes());
            }
            let count = dice.below(3);
            let some: Vec<RawFd> = (0..count).map(|_| dice.one_of(&fds)).collect();
            if !peer.send(request, 1 | 8, &body, &some) {
                break;
            }
        }
        if round % 100 == 99 {
            victim.is_well();
        }
    }
    for _ in 0..100 {
        let noise: Vec<u8> = {
            let length = dice.below(5000) as usize;
            dice.bytes(length)
        };
        victim.peer().bytes(&noise, &[]);
    }
    victim.is_well();
}
