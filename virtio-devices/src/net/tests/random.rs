//! Random frames into random buffers, against what was sent; and random nonsense, against nothing but survival.

use device::fake::END;
use device::fake::random::Random;
use net_util::wire::{EXPERIMENTAL, HEADER, Large, Wire};

use super::*;

/// Where the buffers of a head are.
fn area(head: u16) -> u64 {
    BUFFERS + 0x4000 * u64::from(head)
}

/// Offers a receive buffer of random size, cut anywhere, through an indirect table now and then.
fn give(b: &mut Bench<Net>, random: &mut Random, head: u16) {
    // Some are always large, so that there is room for any frame.
    let length =
        if head.is_multiple_of(16) { 0x4000 } else { random.one_of(&[12, 13, 60, 200, 1526, 1526, 4096]) };
    let mut cuts: Vec<u32> =
        (0..random.below(3)).map(|_| random.below(u64::from(length) + 1) as u32).collect();
    cuts.extend([0, length]);
    cuts.sort_unstable();
    let parts: Vec<(u64, u32, bool)> =
        cuts.windows(2).map(|pair| (area(head) + u64::from(pair[0]), pair[1] - pair[0], true)).collect();
    if random.below(2) == 0 {
        // Heads are four apart.
        return b.chain(RX, head, &parts);
    }
    let table = FREE + 0x8000 + 0x40 * u64::from(head);
    for (n, (address, length, _)) in parts.iter().enumerate() {
        let flags = flag::WRITE | if n + 1 < parts.len() { flag::NEXT } else { 0 };
        b.describe_at(
            table,
            n as u16,
            Desc { address: *address, length: *length, flags, next: n as u16 + 1 },
        );
    }
    let length = 16 * parts.len() as u32;
    b.describe(RX, head, Desc { address: table, length, flags: flag::INDIRECT, next: 0 });
    b.offer(RX, head);
}

/// A frame of ours, with its header: small, or large where the driver takes that.
fn frame(random: &mut Random) -> Vec<u8> {
    if random.below(6) == 0 {
        let length = 2000 + random.below(50_000) as usize;
        return Large::Tcp.frame(&random.bytes(length), 1400);
    }
    let mut frame = vec![0; HEADER];
    frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame.extend(EXPERIMENTAL);
    let length = random.below(1490) as usize;
    frame.extend(random.bytes(length));
    frame
}

netns_test! {
    fn random_frames_come_whole_and_in_order_into_random_buffers() {
        for seed in 1..=4 {
            let mut random = Random(seed);
            let mut b = bench(1, ALL);
            let wire = Wire::new("vmtap0").unwrap();
            (0..48).for_each(|n| give(&mut b, &mut random, 4 * n));
            b.kick(RX);
            let (mut sent, mut came) = (std::collections::VecDeque::new(), 0);
            let end = Instant::now() + Duration::from_secs(60);
            while came < 400 {
                assert!(Instant::now() < end, "{} are out: {:?}", sent.len(), b.device.counters());
                while sent.len() < 8 {
                    let frame = frame(&mut random);
                    wire.send(&frame).unwrap();
                    sent.push_back(frame);
                }
                if random.below(16) == 0 {
                    let states = b.stop();
                    assert_eq!(states[RX].next_avail, states[RX].next_used);
                    for (queue, state) in states.iter().enumerate() {
                        b.start(queue, state.next_avail);
                    }
                }
                let Some((head, length)) = b.try_used(RX, Duration::from_millis(1)) else { continue };
                let mut got = b.get(area(head), length as usize);
                let mut heads = vec![head];
                for _ in 1..u16::from_le_bytes([got[10], got[11]]) {
                    let (head, length) = b.used(RX);
                    got.extend(b.get(area(head), length as usize));
                    heads.push(head);
                }
                for head in heads {
                    give(&mut b, &mut random, head);
                }
                b.kick(RX);
                let bytes = &got[VNET_HDR_LEN..];
                if bytes[12..14] == EXPERIMENTAL || Large::Tcp.is(bytes) {
                    let wanted = sent.pop_front().unwrap();
                    assert_eq!(got[..2], wanted[..2]);
                    // The kernel fills up short ones.
                    assert!(bytes.starts_with(&wanted[HEADER..]), "frame {came} of seed {seed} is something else");
                    came += 1;
                }
            }
            assert_eq!(count(&b, "rx_dropped"), 0);
            stop(&mut b);
        }
    }

    fn nothing_a_guest_offers_does_harm() {
        for seed in 1..=6u64 {
            let mut random = Random(seed);
            let accept = if seed % 2 == 0 { ALL } else { ALL & !feature::MRG_RXBUF };
            let mut b = bench(1, accept);
            let wire = Wire::new("vmtap0").unwrap();
            for _ in 0..1500 {
                let bytes = random.bytes(64);
                b.put(FREE, &bytes);
                let queue = random.one_of(&[RX, RX, TX, TX, 2]);
                let head = random.below(250) as u16;
                let address = random.one_of(&[FREE, FREE, BUFFERS, BUFFERS, END - 20, END, u64::MAX - 3]);
                let length = random.one_of(&[12, 26, 54, 1526, 4096, 0x1_0100, 0x2_0000, 0, 11, u32::MAX]);
                let write = if queue == RX { random.below(10) != 0 } else { random.below(10) == 0 };
                match random.below(10) {
                    // It leads to itself.
                    0 => {
                        let flags = flag::NEXT | if write { flag::WRITE } else { 0 };
                        b.describe(queue, head, Desc { address, length: 1, flags, next: head });
                        b.offer(queue, head);
                    }
                    1 => {
                        b.describe(queue, head, Desc { address, length, flags: flag::INDIRECT, next: 0 });
                        b.offer(queue, head);
                    }
                    2..5 => b.chain(queue, head, &[(address, 12, write), (BUFFERS + 0x100, length, write)]),
                    _ => b.chain(queue, head, &[(address, length, write)]),
                }
                b.kick(queue);
                let bytes = frame(&mut random);
                // The tap's queue may be full.
                let _ = wire.send(&bytes);
                while b.try_used(queue, Duration::ZERO).is_some() {}
            }
            assert!(b.events.requests().is_empty(), "a thread ended");
            stop(&mut b);
        }
    }
}
