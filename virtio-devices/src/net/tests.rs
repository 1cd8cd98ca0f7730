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
}

/// Processor time of this process so far.
fn cpu_time() -> Duration {
    // SAFETY: zero is a `timespec`, and the call writes one.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

mod control;
mod hostile;
mod large;
mod merged;
mod random;
mod service;
mod state;
mod taps;
