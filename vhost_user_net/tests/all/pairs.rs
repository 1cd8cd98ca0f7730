//! Several pairs of queues: those that the front end enables are used, and no others.

use std::time::{Duration, Instant};

use net_util::wire::{HEADER, Wire};
use net_util::{VNET_HDR_LEN, netns_test};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_user::testing::Scratch;
use vhost_user::testing::front::Front;

use crate::card::{ALL, Guest, TAP, start};

/// A UDP datagram to `port`, which the kernel's tap takes for a connection of its own.
fn datagram(port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let mut ip = vec![0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0, 10, 9, 8, 7, 10, 9, 8, 6];
    let sum = !net_util::wire::checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend([0x12, 0x34]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    frame
}

/// How many of 64 datagrams come by each of two pairs.
fn spread(guest: &mut Guest, wire: &Wire, first: u16) -> [u32; 2] {
    let (mut came, begun) = ([0; 2], Instant::now());
    for port in first..first + 64 {
        wire.send(&[&[0; HEADER][..], &datagram(port)].concat()).unwrap();
        while came[0] + came[1] < u32::from(port - first) + 1 {
            for (pair, came) in came.iter_mut().enumerate() {
                while let Some(frame) = guest.receive(pair) {
                    *came += u32::from(frame[VNET_HDR_LEN..].get(23) == Some(&17));
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "datagrams are lost: {came:?}");
        }
    }
    came
}

netns_test! {
    fn frames_are_spread_over_the_pairs_that_are_enabled() {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let _daemon = start(&scratch, &socket, ",num_queues=4");
        let wire = Wire::new(TAP).unwrap();
        let mut guest = Guest::new(2);
        let mut front = Front::connect(&socket, ALL);
        assert_eq!(front.socket.get_queue_num().unwrap(), 4, "the control queue is the front end's");
        front.socket.set_vring_num(4, 16).unwrap_err();
        guest.plug(front);
        for round in 0..3u16 {
            let [first, second] = spread(&mut guest, &wire, 1000 * round + 1000);
            assert!(first > 0 && second > 0, "{first} {second}");
            for ring in [2, 3] {
                guest.front().socket.set_vring_enable(ring, false).unwrap();
            }
            assert_eq!(spread(&mut guest, &wire, 1000 * round + 1100), [64, 0]);
            for ring in [2, 3] {
                guest.front().socket.set_vring_enable(ring, true).unwrap();
            }
            // Stopped for a moment it is still in use.
            let regions = guest.memory.regions();
            guest.front().socket.set_mem_table(&regions).unwrap();
        }
        for pair in [0, 1, 0, 1] {
            guest.send_all(&wire, pair, 30);
        }
    }

    fn pairs_are_there_again_after_a_death() {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let mut guest = Guest::new(2);
        for round in 0..20 {
            let mut daemon = start(&scratch, &socket, ",num_queues=4");
            let wire = Wire::new(TAP).unwrap();
            guest.plug_with(Front::connect(&socket, ALL), Front::start_by_pairs);
            // A bell that was exchanged is rung: what the one before was rung for may have been lost.
            for (ring, queue) in guest.rings.iter().enumerate() {
                queue.wait_call();
                let front = guest.front.as_mut().unwrap();
                while queue.call.read().is_ok() {}
                front.socket.set_vring_call(ring, &queue.call).unwrap();
                queue.wait_call();
            }
            for pair in [0, 1, 1, 0] {
                guest.send_all(&wire, pair, 20);
            }
            let [first, second] = spread(&mut guest, &wire, 100 * round + 1000);
            assert!(first > 0 && second > 0, "{first} {second}");
            // A pair that is stopped for good gets nothing.
            for ring in [2, 3] {
                guest.front().socket.get_vring_base(ring).unwrap();
            }
            assert_eq!(spread(&mut guest, &wire, 100 * round + 5000), [64, 0]);
            daemon.kill();
        }
    }

    fn a_driver_without_mq_has_the_first_pair_only() {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let _daemon = start(&scratch, &socket, ",num_queues=4");
        let wire = Wire::new(TAP).unwrap();
        let mut guest = Guest::new(2);
        guest.plug(Front::connect(&socket, ALL & !(1 << 22)));
        assert_eq!(spread(&mut guest, &wire, 1000), [64, 0]);
        guest.exchange(&wire, 0, 20);
    }
}
