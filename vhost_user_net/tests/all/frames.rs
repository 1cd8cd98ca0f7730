//! Frames come through as they are, and large ones whole or in pieces as was agreed.

use net_util::wire::{HEADER, Large, Wire};
use net_util::{VNET_HDR_LEN, netns_test};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user::testing::front::{EVENT_IDX, Front};
use vhost_user::testing::{Daemon, Scratch};

use crate::card::{ALL, Guest, OFFLOADS, TAP, frame, number, ours, start};

const MSS: u16 = 1448;

fn payload(length: usize) -> Vec<u8> {
    device::fake::random::Random(length as u64).bytes(length)
}

/// A daemon with a card, the host's end of its tap, and a guest whose driver accepts these features.
fn plugged(accept: u64) -> ((Daemon, Scratch), Wire, Guest) {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let daemon = start(&scratch, &socket, "");
    let wire = Wire::new(TAP).unwrap();
    let mut guest = Guest::new(1);
    guest.plug(Front::connect(&socket, accept));
    ((daemon, scratch), wire, guest)
}

fn put_together(accept: u64) {
    let (_serving, wire, mut guest) = plugged(accept);
    guest.exchange(&wire, 0, 300);
}

netns_test! {
    fn frames_go_both_ways_unchanged() {
        put_together(ALL);
    }

    fn without_offloads_and_event_idx_too() {
        put_together(0);
    }

    fn a_large_segment_goes_both_ways_whole_where_that_was_agreed() {
        let (_serving, wire, mut guest) = plugged(ALL);
        for length in [2000, 20_000, 64_000] {
            let segment = Large::Tcp.frame(&payload(length), MSS);
            let (header, bytes) = segment.split_at(HEADER);
            guest.send(0, &[header, &[0, 0], bytes].concat());
            let got = wire.expect(|frame| Large::Tcp.is(frame));
            assert_eq!((got[0], got[1]), (1, 1), "an undone checksum, a segment of TCP over IPv4");
            assert!(got[HEADER..] == *bytes, "{length} bytes went out as something else");
            wire.send(&segment).unwrap();
            let got = guest.expect(0, |frame| Large::Tcp.is(frame));
            assert_eq!((got[0], got[1]), (1, 1));
            assert_eq!(got[4..6], MSS.to_le_bytes());
            assert_eq!(got[10..12], [1, 0], "num_buffers");
            assert!(got[VNET_HDR_LEN..] == *bytes, "{length} bytes came in as something else");
        }
    }

    fn a_guest_that_takes_no_large_segments_gets_pieces_with_their_checksums() {
        let (_serving, wire, mut guest) = plugged(ALL & !OFFLOADS);
        for length in [2000, 20_000] {
            let sent = payload(length);
            wire.send(&Large::Tcp.frame(&sent, MSS)).unwrap();
            let mut got = Vec::new();
            while got.len() < length {
                let piece = guest.expect(0, |frame| Large::Tcp.is(frame));
                assert_eq!(piece[..10], [0; 10], "nothing is left undone");
                let bytes = Large::Tcp.payload(&piece[VNET_HDR_LEN..]);
                assert!(bytes.len() <= usize::from(MSS));
                got.extend_from_slice(bytes);
            }
            assert!(got == sent, "{length} bytes in pieces are something else");
        }
    }

    fn the_guest_is_told_what_was_asked_for() {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let keys = ",mac=2e:00:00:00:00:02,mtu=1400,num_queues=4,host_mac=2e:00:00:00:00:01";
        let daemon = start(&scratch, &socket, keys);
        let mut front = Front::connect(&socket, ALL);
        assert_eq!(front.features & 1 << 5, 1 << 5, "VIRTIO_NET_F_MAC");
        assert_eq!(front.features & 1 << 3, 1 << 3, "VIRTIO_NET_F_MTU");
        assert_eq!(front.features & 1 << 2, 0, "of commands we do not hear");
        assert_eq!(front.config(0, 12), [0x2e, 0, 0, 0, 0, 2, 1, 0, 2, 0, 0x78, 5]);
        assert_eq!(std::fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap().count(), 2, "no more threads than that");
        drop((front, daemon));

        let _daemon = start(&scratch, &socket, ",offload_tso=off,offload_ufo=off,offload_csum=off");
        let mut front = Front::connect(&socket, ALL);
        let protocol = front.socket.get_protocol_features().unwrap();
        assert!(!protocol.contains(VhostUserProtocolFeatures::CONFIG), "there is nothing to tell");
        assert_eq!(front.features & (OFFLOADS | 1 << 3 | 1 << 5), 0, "neither offloads nor MTU nor MAC");
    }

    fn a_ring_that_was_stopped_goes_on_where_it_was_over_three_hundred_rounds() {
        let (_serving, wire, mut guest) = plugged(ALL);
        let (mut out, mut came_out, mut inward, mut came_in) = (0u64, 0, 0u64, 0);
        let look = |guest: &mut Guest, came_out: &mut u64, came_in: &mut u64| {
            while let Some(frame) = wire.next() {
                if ours(&frame[HEADER..]) {
                    assert_eq!(number(&frame[HEADER..]), *came_out, "each once, in their order");
                    *came_out += 1;
                }
            }
            while let Some(frame) = guest.receive(0) {
                if ours(&frame[VNET_HDR_LEN..]) {
                    assert_eq!(number(&frame[VNET_HDR_LEN..]), *came_in, "each once, in their order");
                    *came_in += 1;
                }
            }
            guest.reclaim(0);
        };
        for round in 0..300u64 {
            for n in 0..round % 16 + 1 {
                guest.offer(0, &[&[0; VNET_HDR_LEN][..], &frame(out, 60 + n as usize)].concat());
                out += 1;
                wire.send(&[&[0; HEADER][..], &frame(inward, 60 + n as usize)].concat()).unwrap();
                inward += 1;
            }
            guest.rings[1].kick();
            if round % 4 == 1 {
                std::thread::sleep(std::time::Duration::from_micros(round % 5 * 60));
            }
            let front = guest.front.as_mut().unwrap();
            let bases = [0, 1].map(|ring| front.socket.get_vring_base(ring).unwrap());
            if round % 3 == 0 {
                look(&mut guest, &mut came_out, &mut came_in);
            }
            let front = guest.front.as_mut().unwrap();
            for (ring, base) in bases.into_iter().enumerate() {
                front.start_queue(&guest.memory, ring, &guest.rings[ring], base as u16);
            }
            look(&mut guest, &mut came_out, &mut came_in);
        }
        let begun = std::time::Instant::now();
        while (came_out, came_in) != (out, inward) {
            look(&mut guest, &mut came_out, &mut came_in);
            assert!(begun.elapsed() < vhost_user::testing::PATIENCE, "{came_out} of {out}, {came_in} of {inward}");
        }
    }

    fn frames_that_are_none_do_no_harm() {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let daemon = start(&scratch, &socket, "");
        let wire = Wire::new(TAP).unwrap();
        let mut guest = Guest::new(1);
        guest.plug(Front::connect(&socket, ALL));
        // Nothing but a header, less than an address, an undone checksum that is nowhere, more than any frame.
        for (header, length) in [([0; 12], 0), ([0; 12], 5), ([0xff; 12], 100), ([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], 60)] {
            for _ in 0..100 {
                guest.send(0, &[&header[..], &vec![0; length]].concat());
            }
        }
        let at = vhost_user::testing::front::HALF + 0x20_0000;
        guest.rings[1].chain(&guest.memory, 60, &[(at, 12, false), (at, 1 << 20, false)]);
        guest.rings[1].chain(&guest.memory, 62, &[(at, 12, false), (u64::MAX >> 8, 100, false)]);
        guest.rings[1].kick();
        let mut back = Vec::new();
        while !back.contains(&62) {
            let (head, written) = guest.rings[1].wait_used(&guest.memory);
            assert_eq!(written, 0);
            back.push(head);
        }
        // A flood that nobody takes, and one in both directions at once, and all is as before.
        for n in 0..20_000 {
            let _ = wire.send(&[&[0; HEADER][..], &frame(n, 1500)].concat());
        }
        while guest.receive(0).is_some() {}
        assert!(daemon.said().lines().count() < 60, "what a guest says wrong is not logged without end");
        drop(guest);
        let mut guest = Guest::new(1);
        guest.plug(Front::connect(&socket, EVENT_IDX));
        guest.exchange(&wire, 0, 50);
    }
}
