//! The device on the fake board, with real taps, each test in a network namespace of its own.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ::spec::Facts;
use device::fake::{Bench, Desc, FREE, flag};
use device::virtio::feature as ring;
use device::{Host, Kept};
use net_util::{LinkConfig, TapSet, VNET_HDR_LEN, netns_test};

use super::*;

const RX: usize = 0;
const TX: usize = 1;
const ALL: u64 = u64::MAX;
const HOST: &str = "192.168.249.1";
const GUEST: &str = "192.168.249.2";
const SHORT: Duration = Duration::from_millis(150);

fn spec(pairs: usize) -> NetSpec {
    NetSpec {
        ip: Some(HOST.parse().unwrap()),
        mask: Some("255.255.255.0".parse().unwrap()),
        mac: Some(Mac("2e:00:00:00:00:02".parse().unwrap())),
        num_queues: 2 * pairs,
        ..NetSpec::default()
    }
}

fn make(spec: &mut NetSpec, kept: &Kept) -> Net {
    spec.make(&Host { id: "_net0", facts: &Facts::default(), kept }).unwrap()
}

fn bench(pairs: usize, accept: u64) -> Bench<Net> {
    Bench::new(make(&mut spec(pairs), &Kept::default()), accept)
}

/// Stops everything, as the board does before the device goes.
fn stop(bench: &mut Bench<Net>) -> Vec<Option<QueueState>> {
    let states = (0..bench.queues.len()).map(|i| bench.device.stop_queue(i)).collect();
    bench.device.reset();
    states
}

fn count(bench: &Bench<Net>, name: &str) -> u64 {
    bench.device.counters().unwrap()[name]
}

/// Waits for a counter, which follows what the driver sees, to reach `value`; tells whether it did and stayed.
fn counts(bench: &Bench<Net>, name: &str, value: u64) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while count(bench, name) < value && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    count(bench, name) == value
}

/// An ARP request of the guest for the host's address, behind an empty header.
fn arp_request() -> Vec<u8> {
    let guest = [0x2e, 0, 0, 0, 0, 2];
    let mut frame = vec![0u8; VNET_HDR_LEN];
    frame.extend([0xff; 6]);
    frame.extend(guest);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(guest);
    frame.extend([192, 168, 249, 2]);
    frame.extend([0; 6]);
    frame.extend([192, 168, 249, 1]);
    frame
}

/// Sends the request, so that the host knows where the guest is.
fn greet(bench: &mut Bench<Net>) {
    let frame = arp_request();
    bench.put(FREE, &frame);
    bench.chain(TX, 0, &[(FREE, VNET_HDR_LEN as u32, false), (FREE + 12, frame.len() as u32 - 12, false)]);
    bench.kick(TX);
    assert_eq!(bench.used(TX), (0, 0));
}

const BUFFERS: u64 = FREE + 0x10_0000;

/// Where the buffer of a receive queue's head is; those of two queues do not overlap up to 64 KiB.
fn buffer(queue: usize, head: u16) -> u64 {
    BUFFERS + 0x2_0000 * u64::from(head) + 0x8000 * queue as u64
}

fn offer(bench: &mut Bench<Net>, queue: usize, heads: std::ops::Range<u16>, length: u32) {
    for head in heads {
        bench.chain(queue, head, &[(buffer(queue, head), length, true)]);
    }
    bench.kick(queue);
}

/// Waits for a UDP datagram to the guest on a receive queue; other frames are skipped and their buffers offered again.
fn datagram(bench: &mut Bench<Net>, queue: usize, port: u16, patience: Duration) -> Option<Vec<u8>> {
    datagram_in(bench, queue, port, patience, 0x1_8000)
}

/// The same, with buffers of this length.
fn datagram_in(
    bench: &mut Bench<Net>,
    queue: usize,
    port: u16,
    patience: Duration,
    room: u32,
) -> Option<Vec<u8>> {
    let end = Instant::now() + patience;
    while let Some((head, length)) = bench.try_used(queue, end.saturating_duration_since(Instant::now())) {
        let frame = bench.get(buffer(queue, head), length as usize);
        offer(bench, queue, head..head + 1, room);
        if length > 50 && frame[12 + 23] == 17 && frame[12 + 36..12 + 38] == port.to_be_bytes() {
            return Some(frame);
        }
    }
    None
}

fn send(port: u16, bytes: &[u8]) {
    UdpSocket::bind((HOST, 0)).unwrap().send_to(bytes, (GUEST, port)).unwrap();
}

/// Sends a control command and returns the answer.
fn command(bench: &mut Bench<Net>, queue: usize, bytes: &[u8]) -> u8 {
    bench.put(FREE, bytes);
    bench.put(FREE + 0x100, &[0x77]);
    let data = (FREE + 2, bytes.len() as u32 - 2, false);
    bench.chain(queue, 0, &[(FREE, 2, false), data, (FREE + 0x100, 1, true)]);
    bench.kick(queue);
    assert_eq!(bench.used(queue), (0, 1));
    bench.get(FREE + 0x100, 1)[0]
}

netns_test! {
    fn frames_go_both_ways_and_are_counted() {
        let mut b = bench(1, ALL);
        offer(&mut b, RX, 0..8, 1526);
        greet(&mut b);
        let reply = loop {
            let (head, length) = b.used(RX);
            let frame = b.get(buffer(RX, head), length as usize);
            if frame[12 + 12..12 + 14] == [8, 6] {
                break frame;
            }
        };
        assert_eq!(reply[10..12], [1, 0], "num_buffers");
        assert_eq!(reply[12..18], [0x2e, 0, 0, 0, 0, 2], "to the guest");
        assert_eq!(reply[12 + 20..12 + 22], [0, 2], "an ARP reply");
        assert!(b.link.used() > 0);
        stop(&mut b);
        assert_eq!((count(&b, "tx_frames"), count(&b, "tx_bytes")), (1, 42));
        assert!(count(&b, "rx_frames") >= 1 && count(&b, "rx_bytes") >= 42);
        assert_eq!((count(&b, "tx_dropped"), count(&b, "rx_dropped")), (0, 0));
    }

    fn what_the_driver_sees_is_as_specified() {
        let mut spec = NetSpec { mtu: Some(1400), ..spec(2) };
        let net = make(&mut spec, &Kept::default());
        assert_eq!(spec.tap.as_deref(), Some("vmtap0"), "written back");
        assert_eq!(net.kind(), VirtioKind::Net);
        assert_eq!(net.queue_sizes(), [256; 5]);
        let mut config = [0; 12];
        net.read_config(0, &mut config);
        assert_eq!(config, [0x2e, 0, 0, 0, 0, 2, 1, 0, 2, 0, 0x78, 5]);
        let mut tail = [9; 4];
        net.read_config(10, &mut tail);
        assert_eq!(tail, [0x78, 5, 0, 0]);
        let bits = [0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 21, 22, 28, 29, 32, 54, 55, 56];
        assert_eq!(net.features(), bits.iter().map(|b| 1u64 << b).sum::<u64>());

        let off = NetSpec { offload_csum: false, offload_tso: false, offload_ufo: false, ..super::tests::spec(1) };
        let bits = [5, 15, 16, 17, 21, 22, 28, 29, 32];
        assert_eq!(make(&mut off.clone(), &Kept::default()).features(), bits.iter().map(|b| 1u64 << b).sum::<u64>());
        let mut bare = NetSpec::default();
        make(&mut bare, &Kept::default());
        assert!(bare.mac.unwrap().0.is_unicast() && bare.mac.unwrap().0.is_local(), "a random address is written back");
    }

    fn frames_wait_while_there_are_no_buffers_and_no_thread_spins() {
        let mut b = bench(1, ALL);
        greet(&mut b);
        for port in 0..20 {
            send(3000 + port, b"waiting");
        }
        let before = cpu_time();
        std::thread::sleep(Duration::from_millis(300));
        assert!(cpu_time() - before < Duration::from_millis(150), "a thread spins");
        assert_eq!(count(&b, "rx_frames"), 0);
        offer(&mut b, RX, 0..16, 0x1_8000);
        for port in 0..20 {
            assert!(datagram(&mut b, RX, 3000 + port, Duration::from_secs(5)).is_some(), "{port}");
        }
        stop(&mut b);
    }

    fn a_burst_costs_few_interrupts() {
        let mut b = bench(1, ring::RING_EVENT_IDX);
        b.put(FREE, &arp_request());
        for head in 0..200 {
            b.chain(TX, head, &[(FREE, 54, false)]);
        }
        let before = b.link.used();
        b.kick(TX);
        for head in 0..200 {
            assert_eq!(b.used(TX), (head, 0));
        }
        // The driver asked for an interrupt at the first; each round of the budget may give one.
        assert!(b.link.used() - before <= 1 + 200 / TX_BUDGET as u32, "{}", b.link.used());
        stop(&mut b);
        assert_eq!(count(&b, "tx_frames"), 200);
    }

    fn frames_that_are_none_are_dropped_and_given_back() {
        let mut b = bench(1, ALL);
        b.put(FREE, &arp_request());
        let end = device::fake::END;
        let bad: &[&[(u64, u32, bool)]] = &[
            &[(FREE, 12, false)],                              // nothing but the header
            &[(FREE, 5, false)],                               // less than the header
            &[(FREE, 25, false)],                              // less than an Ethernet header
            &[(FREE, 0, false)],                               // nothing at all
            &[(FREE, 12, false), (end - 8, 100, false)],       // across the end of RAM
            &[(FREE, 12, false), (u64::MAX - 8, 100, false)],  // wraps
            &[(1 << 40, 100, false)],                          // nowhere near RAM
            &[(FREE, 100, true)],                              // for the other direction
            &[(FREE, 54, false), (FREE, 100, true)],
            &[(FREE, MAX_FRAME as u32 + 1, false)],            // larger than any frame
            &[(0, end as u32, false); 200],                    // gigabytes of the same memory
        ];
        for (i, chain) in bad.iter().enumerate() {
            b.chain(TX, 0, chain);
            b.kick(TX);
            assert_eq!(b.used(TX), (0, 0), "{i}");
            assert!(counts(&b, "tx_dropped", i as u64 + 1), "{i}");
        }
        // A chain that loops, one that leads out of the table, a table within a table, a table of odd length.
        b.describe(TX, 0, Desc { address: FREE, length: 1, flags: flag::NEXT, next: 0 });
        b.offer(TX, 0);
        b.describe(TX, 1, Desc { address: FREE, length: 100, flags: flag::NEXT, next: 999 });
        b.offer(TX, 1);
        b.describe_at(FREE + 0x1000, 0, Desc { address: FREE, length: 32, flags: flag::INDIRECT, next: 0 });
        b.describe(TX, 2, Desc { address: FREE + 0x1000, length: 32, flags: flag::INDIRECT, next: 0 });
        b.offer(TX, 2);
        b.describe(TX, 3, Desc { address: FREE + 0x1000, length: 33, flags: flag::INDIRECT, next: 0 });
        b.offer(TX, 3);
        b.offer(TX, 777);
        b.kick(TX);
        for head in 0..4 {
            assert_eq!(b.used(TX), (head, 0));
        }
        // A head beyond the table cannot even be given back.
        assert!(b.try_used(TX, SHORT).is_none());
        assert!(b.link.broken());
        assert_eq!(count(&b, "tx_frames"), 0);
        stop(&mut b);
    }

    fn a_hostile_header_is_refused_by_the_kernel_and_the_queue_goes_on() {
        let mut b = bench(1, ALL);
        // Checksum far outside of the frame; an unknown kind of segment; a segment size of zero.
        for header in [[1u8, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0], [1, 1, 0xff, 0xff, 0, 0, 0, 0, 0, 0]] {
            let mut frame = arp_request();
            frame[..10].copy_from_slice(&header);
            b.put(FREE, &frame);
            b.chain(TX, 0, &[(FREE, frame.len() as u32, false)]);
            b.kick(TX);
            assert_eq!(b.used(TX), (0, 0));
        }
        assert!(counts(&b, "tx_dropped", 3) && counts(&b, "tx_frames", 0));
        greet(&mut b);
        assert!(counts(&b, "tx_frames", 1));
        stop(&mut b);
    }

    fn indirect_tables_are_followed() {
        let mut b = bench(1, ALL);
        let frame = arp_request();
        b.put(FREE, &frame);
        b.describe_at(FREE + 0x1000, 0, Desc { address: FREE, length: 12, flags: flag::NEXT, next: 1 });
        b.describe_at(FREE + 0x1000, 1, Desc { address: FREE + 12, length: 42, flags: 0, next: 0 });
        b.describe(TX, 5, Desc { address: FREE + 0x1000, length: 32, flags: flag::INDIRECT, next: 0 });
        b.offer(TX, 5);
        b.kick(TX);
        assert_eq!(b.used(TX), (5, 0));
        stop(&mut b);
        assert_eq!((count(&b, "tx_frames"), count(&b, "tx_bytes")), (1, 42));
    }

    fn receive_buffers_that_are_none_are_given_back_empty() {
        let mut b = bench(1, ALL & !feature::MRG_RXBUF);
        let bad = [(BUFFERS, 25, true), (1 << 40, 2000, true), (device::fake::END - 5, 2000, true), (BUFFERS, 2000, false)];
        for (head, buffer) in bad.into_iter().enumerate() {
            b.chain(RX, head as u16, &[buffer]);
            b.kick(RX);
            assert_eq!(b.used(RX), (head as u16, 0));
        }
        assert!(counts(&b, "rx_dropped", 4));
        // A frame larger than the buffer is lost, the buffer serves the next.
        greet(&mut b);
        offer(&mut b, RX, 8..9, 200);
        send(4000, &[1; 1000]);
        send(4001, b"fits");
        assert!(datagram_in(&mut b, RX, 4001, Duration::from_secs(5), 200).is_some());
        stop(&mut b);
        assert!(count(&b, "rx_dropped") >= 5);
    }

    fn a_broken_ring_asks_for_a_reset_and_does_not_spin() {
        let mut b = bench(1, ALL);
        for (queue, base) in [(RX, 0x1_0000u64), (TX, 0x2_0000), (2, 0x3_0000)] {
            // Ten thousand chains available in a ring of 256.
            b.put(base + 16 * 256 + 2, &10_000u16.to_le_bytes());
            b.kick(queue);
        }
        std::thread::sleep(SHORT);
        assert!(b.link.broken());
        let before = cpu_time();
        std::thread::sleep(2 * SHORT);
        assert!(cpu_time() - before < SHORT, "a thread spins");
        stop(&mut b);
    }

    fn a_driver_that_polls_is_not_interrupted() {
        let mut b = bench(1, 0);
        let before = b.link.used();
        b.put(0x2_0000 + 16 * 256, &1u16.to_le_bytes());
        greet(&mut b);
        assert!(counts(&b, "tx_frames", 1));
        assert_eq!(b.link.used(), before);
        b.put(0x2_0000 + 16 * 256, &0u16.to_le_bytes());
        greet(&mut b);
        assert!(counts(&b, "tx_frames", 2));
        assert_eq!(b.link.used(), before + 1);
        stop(&mut b);
    }

    fn a_tap_that_goes_away_stops_nothing_else() {
        let mut b = bench(1, ALL);
        offer(&mut b, RX, 0..8, 0x1_8000);
        greet(&mut b);
        delete_link("vmtap0");
        std::thread::sleep(SHORT);
        let before = cpu_time();
        std::thread::sleep(2 * SHORT);
        assert!(cpu_time() - before < SHORT, "a thread spins");
        greet(&mut b);
        assert!(counts(&b, "tx_dropped", 1), "a frame into the void is given back");
        assert_eq!(command(&mut b, 2, &[3, 0, 0]), 0);
        stop(&mut b);
    }

    fn offloads_follow_what_the_driver_accepts_and_asks_for() {
        let mut b = bench(1, ALL);
        greet(&mut b);
        offer(&mut b, RX, 0..16, 0x1_8000);
        let header = |b: &mut Bench<Net>, port: u16| {
            send(port, &[7; 600]);
            datagram(b, RX, port, Duration::from_secs(5)).unwrap()[0]
        };
        assert_eq!(header(&mut b, 5000), 1, "checksum left to the driver");
        let set = |bits: u64| [&[5u8, 0][..], &bits.to_le_bytes()].concat();
        assert_eq!(command(&mut b, 2, &set(0)), 0);
        assert_eq!(header(&mut b, 5001), 0, "checksum filled in");
        assert_eq!(command(&mut b, 2, &set(feature::GUEST_CSUM | feature::GUEST_TSO4)), 0);
        assert_eq!(header(&mut b, 5002), 1);
        // Bits that are none, or belong to the other direction.
        for bits in [1 << 0, 1 << 11, 1 << 63, u64::MAX] {
            assert_eq!(command(&mut b, 2, &set(bits)), 1);
        }
        stop(&mut b);
        drop(b);

        let mut b = bench(1, ALL & !feature::GUEST_OFFLOADS);
        greet(&mut b);
        offer(&mut b, RX, 0..16, 0x1_8000);
        assert_eq!(header(&mut b, 5003), 0, "not accepted");
        assert_eq!(command(&mut b, 2, &set(feature::GUEST_CSUM)), 1, "not accepted");
        stop(&mut b);
    }

    fn commands_that_are_none_are_refused() {
        let mut b = bench(2, ALL);
        let ctrl = 4;
        for bad in [&[0u8, 0, 1][..], &[1, 1, 2, 0, 0, 0, 0, 1], &[4, 0, 0, 0], &[4, 0, 3, 0], &[4, 0, 1], &[4, 1, 1, 0], &[255, 255, 0]] {
            assert_eq!(command(&mut b, ctrl, bad), 1, "{bad:?}");
        }
        // Without room for an answer, with it outside of RAM, with the command there: given back, no more.
        b.put(FREE, &[4, 0, 1, 0]);
        for chain in [&[(FREE, 4, false)][..], &[(FREE, 4, false), (1 << 40, 1, true)], &[(FREE, 4, false), (FREE, 0, true)]] {
            b.chain(ctrl, 0, chain);
            b.kick(ctrl);
            assert_eq!(b.used(ctrl), (0, 0));
        }
        b.chain(ctrl, 0, &[(1 << 40, 4, false), (FREE, 1, true)]);
        b.kick(ctrl);
        // What comes after a buffer that cannot be read is not looked at.
        assert_eq!(b.used(ctrl), (0, 0));
        assert_eq!(command(&mut b, ctrl, &[4, 0, 2, 0]), 0, "and a good one is carried out");
        stop(&mut b);
    }

    fn pairs_come_into_use_and_go_out_of_it() {
        let mut b = bench(2, ALL);
        greet(&mut b);
        for queue in [0, 2] {
            offer(&mut b, queue, 0..100, 0x1_0000);
        }
        let spread = |b: &mut Bench<Net>, first: u16| {
            for port in first..first + 64 {
                send(port, b"x");
            }
            let (mut udp, end) = ([0; 2], Instant::now() + Duration::from_secs(5));
            while udp[0] + udp[1] < 64 && Instant::now() < end {
                for (n, udp) in udp.iter_mut().enumerate() {
                    while let Some((head, length)) = b.try_used(2 * n, Duration::from_millis(2)) {
                        let frame = b.get(buffer(2 * n, head), length as usize);
                        *udp += usize::from(frame[12 + 23] == 17);
                        offer(b, 2 * n, head..head + 1, 0x1_0000);
                    }
                }
            }
            udp
        };
        assert_eq!(spread(&mut b, 6000), [64, 0]);
        assert_eq!(command(&mut b, 4, &[4, 0, 2, 0]), 0);
        let [first, second] = spread(&mut b, 6100);
        assert!(first + second == 64 && second > 0, "{first} {second}");
        assert_eq!(command(&mut b, 4, &[4, 0, 1, 0]), 0);
        assert_eq!(spread(&mut b, 6200), [64, 0]);
        stop(&mut b);
    }

    fn limits_hold_for_each_direction_and_lose_nothing() {
        let limits = <NetSpec as ::spec::Spec>::parse("ops_size=10,ops_refill_time=100").unwrap().limits;
        let mut b = Bench::new(make(&mut NetSpec { limits, ..spec(1) }, &Kept::default()), ALL);
        greet(&mut b);
        let begin = Instant::now();
        for head in 1..41u16 {
            let length = arp_request().len() as u32 - 12;
            b.chain(TX, head * 2, &[(FREE, VNET_HDR_LEN as u32, false), (FREE + 12, length, false)]);
        }
        b.kick(TX);
        offer(&mut b, 0, 0..100, 0x8000);
        for port in 6000..6040 {
            send(port, b"x");
        }
        for _ in 1..41 {
            b.used(TX);
        }
        // A hundred a second, and a few at once.
        assert!(begin.elapsed() > Duration::from_millis(300), "sent within {:?}", begin.elapsed());
        while count(&b, "rx_frames") < 40 {
            assert!(begin.elapsed() < Duration::from_secs(20), "frames are missing");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(begin.elapsed() > Duration::from_millis(300), "received within {:?}", begin.elapsed());
        stop(&mut b);
    }

    fn without_mq_the_control_queue_is_the_third() {
        let mut b = bench(2, ALL & !feature::MQ);
        assert_eq!(command(&mut b, 2, &[3, 0, 0]), 0);
        assert_eq!(command(&mut b, 2, &[4, 0, 1, 0]), 1, "MQ was not accepted");
        assert_eq!(stop(&mut b).iter().flatten().count(), 5, "also the queues without a use give their state back");
    }

    fn an_announcement_is_asked_for_and_acknowledged() {
        let mut b = bench(1, ALL);
        let status = |b: &Bench<Net>| {
            let mut status = [0; 2];
            b.device.read_config(6, &mut status);
            u16::from_le_bytes(status)
        };
        b.device.announce();
        assert_eq!((status(&b), b.link.config()), (3, 1));
        assert_eq!(command(&mut b, 2, &[3, 0, 0]), 0);
        assert_eq!(status(&b), 1);
        stop(&mut b);
        b.device.announce();
        assert_eq!((status(&b), b.link.config()), (1, 1), "nobody to ask");
    }

    fn a_pause_under_load_loses_no_buffer() {
        let mut b = bench(1, ALL);
        greet(&mut b);
        offer(&mut b, RX, 0..100, 0x1_0000);
        b.put(FREE, &arp_request());
        let mut sent = 1u16;
        for round in 0..50u16 {
            for head in 0..20 {
                b.chain(TX, head, &[(FREE, 54, false)]);
            }
            b.kick(TX);
            send(7000 + round, b"load");
            let tx = b.device.stop_queue(TX).unwrap();
            let rx = b.device.stop_queue(RX).unwrap();
            assert!(b.device.stop_queue(RX).is_none(), "stopped already");
            let map = b.ram.map();
            let used: u16 = vm_memory::Bytes::read_obj(&*map, vm_memory::GuestAddress(0x1_8002)).unwrap();
            std::thread::sleep(Duration::from_millis(1));
            let later: u16 = vm_memory::Bytes::read_obj(&*map, vm_memory::GuestAddress(0x1_8002)).unwrap();
            assert_eq!(used, later, "memory was written after the stop");
            assert_eq!((rx.next_avail, tx.next_avail), (rx.next_used, tx.next_used), "nothing outstanding");
            b.start(RX, rx.next_avail);
            b.start(TX, tx.next_avail);
            for head in 0..20 {
                assert_eq!(b.used(TX), (head, 0));
            }
            sent += 20;
            assert!(datagram(&mut b, RX, 7000 + round, Duration::from_secs(5)).is_some());
        }
        assert_eq!(count(&b, "tx_frames"), u64::from(sent));
        stop(&mut b);
    }

    fn the_tap_stays_over_a_reboot_and_goes_with_the_machine() {
        let (kept, mut spec) = (Kept::default(), spec(1));
        for _ in 0..3 {
            let mut b = Bench::new(make(&mut spec, &kept), ALL);
            assert_eq!(command(&mut b, 2, &[4, 0, 1, 0]), 0);
            greet(&mut b);
            offer(&mut b, RX, 0..16, 0x1_8000);
            stop(&mut b);
            assert_eq!(spec.tap.as_deref(), Some("vmtap0"));
        }
        let again = TapSet::open(Some("vmtap0"), 1, &LinkConfig::default());
        assert!(matches!(again, Err(net_util::Error::InUse(_))), "it is still ours");
        kept.clear();
        assert_eq!(TapSet::open(None, 1, &LinkConfig::default()).unwrap().name(), "vmtap0", "the name is free again");
    }

    fn frames_of_before_are_not_shown_to_the_next_driver() {
        let (kept, mut spec) = (Kept::default(), spec(1));
        let mut b = Bench::new(make(&mut spec, &kept), ALL);
        greet(&mut b);
        send(8000, &[7; 600]);
        std::thread::sleep(SHORT);
        stop(&mut b);
        drop(b);
        let mut b = Bench::new(make(&mut spec, &kept), 0);
        offer(&mut b, RX, 0..16, 0x1_8000);
        assert!(datagram(&mut b, RX, 8000, SHORT).is_none());
        stop(&mut b);
    }

    fn taps_by_descriptor_stay_open_and_attached_for_the_next_boot() {
        let set = TapSet::open(Some("given"), 2, &LinkConfig::default()).unwrap();
        let fds: Vec<_> = set.taps().iter().map(|t| t.try_clone().unwrap()).collect();
        let numbers: Vec<String> = fds.iter().map(|t| t.as_raw_fd().to_string()).collect();
        let text = format!("fd=[{}],num_queues=4", numbers.join(","));
        let mut spec = <NetSpec as ::spec::Spec>::parse(&text).unwrap();
        for _ in 0..2 {
            let kept = Kept::default();
            let mut b = Bench::new(make(&mut spec, &kept), ALL);
            greet(&mut b);
            stop(&mut b);
            assert_eq!(count(&b, "tx_frames") + count(&b, "tx_dropped"), 1);
            assert_eq!(spec.tap, None);
        }
        let error = NetSpec { fds: <TapFds as ::spec::Value>::convert("[700,701]").unwrap(), ..spec }
            .make(&Host { id: "_net0", facts: &Facts::default(), kept: &Kept::default() })
            .err()
            .unwrap();
        assert_eq!(error.chain()[..2], ["cannot set up the tap of \"_net0\"", "fd 700 is not open"]);
    }

    fn a_tap_in_use_is_named() {
        let _held = TapSet::open(Some("held"), 1, &LinkConfig::default()).unwrap();
        let mut spec = NetSpec { tap: Some("held".into()), ..NetSpec::default() };
        let error = spec.make(&Host { id: "_net3", facts: &Facts::default(), kept: &Kept::default() }).err().unwrap();
        assert_eq!(error.kind(), ::spec::Kind::Host);
        assert!(error.chain()[1].starts_with("tap \"held\" is in use"), "{:?}", error.chain());
    }
}

/// Removes an interface, as an administrator would (RTM_DELLINK of rtnetlink).
fn delete_link(name: &str) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0);
    let mut message = [0u8; 32];
    message[..4].copy_from_slice(&32u32.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_DELLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    let mut answer = [0u8; 64];
    // SAFETY: the buffers are valid for their lengths, and the socket is this function's own.
    unsafe {
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        assert_eq!(libc::send(socket, message.as_ptr().cast(), message.len(), 0), 32);
        assert!(libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0) >= 20);
        libc::close(socket);
    }
    assert_eq!(answer[16..20], [0; 4], "the kernel's answer");
}

/// Processor time of this process so far.
fn cpu_time() -> Duration {
    // SAFETY: zero is a `timespec`, and the call writes one.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

mod large;
mod merged;
mod random;
mod service;
mod state;
