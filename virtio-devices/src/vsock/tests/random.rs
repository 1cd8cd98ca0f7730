//! A guest that sends whatever comes to its mind, and programs that come and go.

use device::fake::random::Random;
use device::fake::{Desc, END, flag};

use super::*;

/// A header that is nearly right.
fn header(random: &mut Random) -> Header {
    let number = |random: &mut Random| {
        let any = random.bits() as u32;
        random.one_of(&[0, 1, 100, 4096, 65_536, 262_144, u32::MAX, any])
    };
    Header {
        src_cid: random.one_of(&[CID, CID, CID, CID, CID, CID, 0, u64::MAX]),
        dst_cid: random.one_of(&[HOST_CID, HOST_CID, HOST_CID, HOST_CID, HOST_CID, 1]),
        src_port: random.below(8) as u32,
        dst_port: random.one_of(&[80, 80, 80, 81, FIRST_PORT, FIRST_PORT + 1, FIRST_PORT + 2]),
        len: number(random),
        kind: random.one_of(&[STREAM, STREAM, STREAM, STREAM, STREAM, 0, 2]),
        op: random.below(9) as u16,
        flags: random.below(5) as u32,
        buf_alloc: number(random),
        fwd_cnt: number(random),
    }
}

/// Makes something available in a queue, true to the form or not.
fn offer(guest: &mut Guest, random: &mut Random, queue: usize) {
    let head = random.below(250) as u16;
    let address = random.one_of(&[OUT, OUT, OUT, OUT, END - 20, END, u64::MAX - 3]);
    let length = random.one_of(&[44, 44, 200, 4096, 100_000, 0, 43, u32::MAX]);
    let write = if queue == TX { random.below(10) == 0 } else { random.below(10) != 0 };
    match random.below(10) {
        // It leads to itself.
        0 => {
            let flags = flag::NEXT | if write { flag::WRITE } else { 0 };
            guest.b.describe(queue, head, Desc { address, length: 1, flags, next: head });
            guest.b.offer(queue, head);
        }
        1 => {
            guest.b.describe(queue, head, Desc { address, length, flags: flag::INDIRECT, next: 0 });
            guest.b.offer(queue, head);
        }
        2..5 => guest.b.chain(queue, head, &[(address, 44, write), (OUT + 44, length, write)]),
        _ => guest.b.chain(queue, head, &[(address, length, write)]),
    }
    guest.b.kick(queue);
}

#[test]
fn nothing_a_guest_sends_does_harm() {
    for seed in 1..=6u64 {
        let mut random = Random(seed);
        let mut guest = Guest::without_buffers(&format!("random{seed}"));
        let service = guest.service(80);
        service.set_nonblocking(true).unwrap();
        let mut programs: Vec<UnixStream> = Vec::new();
        for round in 0..1500 {
            guest.b.put(OUT, &header(&mut random).bytes());
            let queue = random.one_of(&[RX, TX, TX, EVENT]);
            offer(&mut guest, &mut random, queue);
            // Now and then the content changes while it is looked at.
            guest.b.put(OUT, &header(&mut random).bytes());
            match random.below(8) {
                0 => {
                    let mut program = guest.program();
                    program.set_nonblocking(true).unwrap();
                    program.write_all(format!("CONNECT {}\nhello", random.below(8)).as_bytes()).unwrap();
                    programs.push(program);
                }
                1 => programs.extend(service.accept().map(|(stream, _)| stream)),
                2 if !programs.is_empty() => {
                    let at = random.below(programs.len() as u64) as usize;
                    let mut program = programs.swap_remove(at);
                    if random.below(2) == 0 {
                        // Either may fail: the guest may have ended it.
                        let _ = program.write(b"data");
                        let _ = program.set_nonblocking(true).and_then(|()| program.read(&mut [0; 1000]));
                        programs.push(program);
                    }
                }
                3 if round % 50 == 0 => {
                    let states = guest.b.stop();
                    for (queue, state) in states.iter().enumerate() {
                        assert_eq!(state.next_avail, state.next_used, "queue {queue}");
                        guest.b.start(queue, state.next_avail);
                    }
                }
                _ => {}
            }
            programs.truncate(100);
            while guest.b.try_used(queue, Duration::ZERO).is_some() {}
        }
        assert!(guest.count("connections") <= MAX_CONNECTIONS as u64);
        assert!(guest.b.events.requests().is_empty(), "a thread ended");
        // A driver that behaves finds a device that does.
        let states = guest.b.stop();
        guest.b.device.reset();
        drop((programs, service, states));
        assert_eq!(guest.b.device.counters().unwrap()["connections"], 0);
    }
}
