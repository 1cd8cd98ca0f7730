//! Frames in several buffers.

use net_util::wire::{EXPERIMENTAL, HEADER, Large, Wire};

use super::*;

/// A frame of `length` bytes that says its number.
fn frame(number: u16, length: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(EXPERIMENTAL);
    frame.extend(number.to_le_bytes());
    frame.extend(device::fake::random::Random(u64::from(number)).bytes(length - 16));
    frame
}

fn send_on(wire: &Wire, frame: &[u8]) {
    wire.send(&[&[0; HEADER][..], frame].concat()).unwrap();
}

/// The next frame that comes, and the heads of its buffers; `room` is what a buffer holds. The host's own chatter too.
fn next(b: &mut Bench<Net>, room: u32) -> Option<(Vec<u8>, Vec<u16>)> {
    let (head, length) = b.try_used(RX, Duration::from_secs(5))?;
    let mut bytes = b.get(buffer(RX, head), length as usize);
    let count = u16::from_le_bytes([bytes[10], bytes[11]]);
    assert!(count >= 1);
    let mut heads = vec![head];
    for n in 1..count {
        assert_eq!(bytes.len(), room as usize * usize::from(n), "all but the last are full");
        let (head, length) = b.try_used(RX, Duration::ZERO).expect("all buffers of a frame come at once");
        bytes.extend(b.get(buffer(RX, head), length as usize));
        heads.push(head);
    }
    Some((bytes, heads))
}

/// The next one of ours; the buffers are offered again.
fn ours(b: &mut Bench<Net>, room: u32) -> (Vec<u8>, u16) {
    loop {
        let (bytes, heads) = next(b, room).expect("a frame");
        for head in &heads {
            offer(b, RX, *head..*head + 1, room);
        }
        if bytes[VNET_HDR_LEN + 12..][..2] == EXPERIMENTAL {
            return (bytes, heads.len() as u16);
        }
    }
}

/// Keeps the host from saying anything by itself on taps that are made from now on.
fn quiet() {
    match std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
        // It does not know IPv6.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        written => written.unwrap(),
    }
}

netns_test! {
    fn a_frame_takes_as_many_buffers_as_it_needs() {
        for room in [100u32, 526, 1526] {
            let mut b = bench(1, ALL);
            let wire = Wire::new("vmtap0").unwrap();
            offer(&mut b, RX, 0..100, room);
            for number in 0..200 {
                let length = 60 + usize::from(number * 37 % 1450);
                send_on(&wire, &frame(number, length));
                let (bytes, count) = ours(&mut b, room);
                assert!(bytes[VNET_HDR_LEN..] == frame(number, length)[..], "frame {number} of {length} bytes");
                assert_eq!(usize::from(count), (VNET_HDR_LEN + length).div_ceil(room as usize));
            }
            let states = b.stop();
            assert_eq!(states[RX].next_avail, states[RX].next_used, "buffers without a frame are the ring's");
            assert_eq!(count(&b, "rx_dropped"), 0);
        }
    }

    fn a_frame_that_finds_too_few_buffers_waits_for_more_and_keeps_its_place() {
        let mut b = bench(1, ALL);
        let wire = Wire::new("vmtap0").unwrap();
        // What the host says by itself when a link comes up goes first.
        std::thread::sleep(SHORT);
        let large = Large::Tcp.frame(&device::fake::random::Random(1).bytes(40_000), 1400);
        wire.send(&large).unwrap();
        send_on(&wire, &frame(7, 1000));
        let mut heads = 0..100u16;
        let mut got = Vec::new();
        let end = Instant::now() + Duration::from_secs(20);
        // A few buffers at a time, with a pause in between, until all has come.
        while got.len() < 2 {
            assert!(Instant::now() < end);
            for head in heads.by_ref().take(7) {
                b.chain(RX, head, &[(buffer(RX, head), 1526, true)]);
            }
            b.kick(RX);
            std::thread::sleep(Duration::from_millis(5));
            let states = b.stop();
            assert_eq!(states[RX].next_avail, states[RX].next_used);
            for (queue, state) in states.iter().enumerate() {
                b.start(queue, state.next_avail);
            }
            while let Some((head, length)) = b.try_used(RX, Duration::from_millis(5)) {
                let mut bytes = b.get(buffer(RX, head), length as usize);
                for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
                    let (head, length) = b.used(RX);
                    bytes.extend(b.get(buffer(RX, head), length as usize));
                }
                let frame = &bytes[VNET_HDR_LEN..];
                if frame[12..14] == EXPERIMENTAL || Large::Tcp.is(frame) {
                    got.push(bytes);
                }
            }
        }
        assert_eq!(got[0][..2], large[..2]);
        assert!(got[0][VNET_HDR_LEN..] == large[HEADER..], "it came as something else");
        assert!(got[1][VNET_HDR_LEN..] == frame(7, 1000)[..]);
        assert_eq!(count(&b, "rx_dropped"), 0);
        stop(&mut b);
    }

    fn a_large_frame_among_small_ones_comes_whole_wherever_a_round_ends() {
        quiet();
        let mut b = bench(1, ALL);
        let wire = Wire::new("vmtap0").unwrap();
        offer(&mut b, RX, 0..100, 1526);
        let large = Large::Tcp.frame(&device::fake::random::Random(1).bytes(20_000), 1400);
        for before in (0..3).chain(RX_BUDGET as u16 - 6..RX_BUDGET as u16 + 2) {
            let states = b.stop();
            (0..before).for_each(|number| send_on(&wire, &frame(number, 60 + usize::from(number))));
            wire.send(&large).unwrap();
            for (queue, state) in states.iter().enumerate() {
                b.start(queue, state.next_avail);
            }
            let mut small = 0;
            loop {
                // Nothing comes after the large one that would have it looked for, nor does a kick.
                let Some((bytes, heads)) = next(&mut b, 1526) else { panic!("it does not come after {before} others") };
                heads.iter().for_each(|head| b.chain(RX, *head, &[(buffer(RX, *head), 1526, true)]));
                let got = &bytes[VNET_HDR_LEN..];
                if Large::Tcp.is(got) {
                    assert!(got == &large[HEADER..], "after {before} it came as something else");
                    assert_eq!((small, heads.len()), (before, bytes.len().div_ceil(1526)));
                    break;
                }
                assert!(got == &frame(small, 60 + usize::from(small))[..], "{small} of {before}");
                assert_eq!(heads.len(), 1);
                small += 1;
            }
        }
        let states = b.stop();
        assert_eq!(states[RX].next_avail, states[RX].next_used, "buffers without a frame are the ring's");
        assert_eq!(count(&b, "rx_dropped"), 0);
    }

    fn small_frames_that_waited_cost_an_interrupt_a_round() {
        quiet();
        // Without EVENT_IDX the driver is told of everything that it can be told of.
        let mut b = bench(1, ALL & !ring::RING_EVENT_IDX);
        let wire = Wire::new("vmtap0").unwrap();
        offer(&mut b, RX, 0..100, 1526);
        let states = b.stop();
        for number in 0..90 {
            send_on(&wire, &frame(number, 60));
        }
        let before = b.link.used();
        for (queue, state) in states.iter().enumerate() {
            b.start(queue, state.next_avail);
        }
        for number in 0..90 {
            let (bytes, _) = next(&mut b, 1526).expect("a frame");
            assert!(bytes[VNET_HDR_LEN..] == frame(number, 60)[..], "{number}");
        }
        let told = b.link.used() - before;
        assert!(told <= 90u32.div_ceil(RX_BUDGET as u32), "{told} interrupts for 90 frames");
        stop(&mut b);
    }

    fn a_frame_that_no_ring_of_such_buffers_holds_is_lost_alone() {
        let mut b = bench(1, ALL);
        let wire = Wire::new("vmtap0").unwrap();
        let give = |b: &mut Bench<Net>, head: u16| b.chain(RX, head, &[(BUFFERS + 0x200 * u64::from(head), 100, true)]);
        (0..256).for_each(|head| give(&mut b, head));
        b.kick(RX);
        wire.send(&Large::Tcp.frame(&[7; 50_000], 1400)).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while count(&b, "rx_dropped") == 0 {
            assert!(Instant::now() < end, "it waits for room that there cannot be");
            // What the host says by itself takes buffers too.
            while let Some((head, _)) = b.try_used(RX, Duration::from_millis(1)) {
                give(&mut b, head);
                b.kick(RX);
            }
        }
        send_on(&wire, &frame(9, 80));
        loop {
            let (head, length) = b.used(RX);
            let bytes = b.get(BUFFERS + 0x200 * u64::from(head), length as usize);
            give(&mut b, head);
            b.kick(RX);
            if bytes.get(VNET_HDR_LEN + 12..VNET_HDR_LEN + 14) == Some(&EXPERIMENTAL[..]) {
                assert!(bytes[VNET_HDR_LEN..] == frame(9, 80)[..]);
                break;
            }
        }
        stop(&mut b);
    }

    fn buffers_of_no_use_are_given_back_empty_wherever_they_are() {
        let mut b = bench(1, ALL);
        let wire = Wire::new("vmtap0").unwrap();
        std::thread::sleep(SHORT);
        // Good ones with bad ones among them: too short, outside of RAM, for the other direction, in more pieces than the kernel takes.
        let table = FREE + 0x1000;
        for n in 0..1024u16 {
            let flags = flag::WRITE | if n < 1023 { flag::NEXT } else { 0 };
            b.describe_at(table, n, Desc { address: BUFFERS, length: 1, flags, next: n + 1 });
        }
        let bad = [(BUFFERS, 11, true), (1 << 40, 2000, true), (BUFFERS, 2000, false)];
        for round in 0..4u16 {
            let head = round * 8;
            b.chain(RX, head, &[(buffer(RX, head), 526, true)]);
            b.chain(RX, head + 1, &[(buffer(RX, head + 1), 526, true)]);
            match bad.get(usize::from(round)) {
                Some(bad) => b.chain(RX, head + 2, &[*bad]),
                None => {
                    b.describe(RX, head + 2, Desc { address: table, length: 16 * 1024, flags: flag::INDIRECT, next: 0 });
                    b.offer(RX, head + 2);
                }
            }
        }
        b.kick(RX);
        let (mut empty, mut good) = (Vec::new(), 0);
        for number in 0..8 {
            send_on(&wire, &frame(number, 400));
        }
        while empty.len() < 4 || good < 8 {
            let (head, length) = b.used(RX);
            if length == 0 { empty.push(head) } else { good += 1 }
        }
        assert_eq!(empty, [2, 10, 18, 26]);
        assert!(counts(&b, "rx_dropped", 4));
        assert!(!b.link.broken());
        stop(&mut b);
    }
}
