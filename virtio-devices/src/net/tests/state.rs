//! Network devices that are saved and go on elsewhere, and pauses under load.

use device::StateError;
use device::fake::state::{golden, tamper};

use super::*;

fn offloads(bits: u64) -> Vec<u8> {
    [&[5u8, 0][..], &bits.to_le_bytes()].concat()
}

/// The datagram to this port, and the pair of two that it came on.
fn datagram_on_either(b: &mut Bench<Net>, port: u16) -> (usize, Vec<u8>) {
    let end = Instant::now() + Duration::from_secs(10);
    let mut pairs = [0, 1].into_iter().cycle();
    loop {
        let pair = pairs.next().unwrap();
        if let Some(frame) = datagram(b, 2 * pair, port, Duration::from_millis(2)) {
            return (pair, frame);
        }
        assert!(Instant::now() < end, "no datagram within ten seconds");
    }
}

netns_test! {
    fn a_driver_finds_its_pairs_and_offloads_again() {
        let mut b = bench(2, ALL);
        greet(&mut b);
        assert_eq!(command(&mut b, 4, &[4, 0, 2, 0]), 0);
        assert_eq!(command(&mut b, 4, &offloads(0)), 0);
        b.device.announce();
        let mut b = b.move_to(|| make(&mut spec(2), &Kept::default())).unwrap();
        assert_eq!(b.device.shared.pairs.in_use(), 2);
        let status = |b: &Bench<Net>| {
            let mut status = [0; 2];
            b.device.read_config(6, &mut status);
            status[0]
        };
        assert_eq!(status(&b), 3, "it has not announced itself yet");
        assert_eq!(command(&mut b, 4, &[3, 0, 0]), 0);
        assert_eq!(status(&b), 1);
        greet(&mut b);
        for queue in [0, 2] {
            offer(&mut b, queue, 0..40, 0x1_0000);
        }
        // Frames are spread over both, and their checksums are filled in.
        let mut seen = [0; 2];
        for port in 6000..6064 {
            send(port, &[7; 600]);
            let (pair, frame) = datagram_on_either(&mut b, port);
            seen[pair] += 1;
            assert_eq!(frame[0], 0, "offloads are as the driver asked");
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
        assert_eq!(command(&mut b, 4, &offloads(feature::GUEST_CSUM)), 0);
        send(7000, &[7; 600]);
        assert_eq!(datagram_on_either(&mut b, 7000).1[0], 1);
        // The next driver begins anew.
        stop(&mut b);
        assert_eq!(b.device.shared.pairs.in_use(), 1);
    }

    fn a_device_without_a_driver_has_nothing_to_remember() {
        let node = make(&mut spec(2), &Kept::default()).save().unwrap();
        let device = make(&mut spec(2), &Kept::default());
        device.load(node).unwrap();
        let mut b = Bench::new(device, ALL);
        greet(&mut b);
        offer(&mut b, RX, 0..16, 0x1_8000);
        send(5000, &[7; 600]);
        let frame = datagram(&mut b, RX, 5000, Duration::from_secs(5)).unwrap();
        assert_eq!(frame[0], 1, "the first driver's offloads are those it accepted");
        stop(&mut b);
    }

    fn another_mac_is_taken_and_another_mtu_or_fewer_pairs_are_not() {
        let mac = || NetSpec { mac: Some(Mac("2e:00:00:00:00:77".parse().unwrap())), ..spec(1) };
        let b = bench(1, ALL).move_to(|| make(&mut mac(), &Kept::default())).unwrap();
        let mut address = [0; 6];
        b.device.read_config(0, &mut address);
        assert_eq!(address[5], 0x77);
        drop(b);
        let refused = |mut spec: NetSpec| {
            let mut b = bench(2, ALL);
            assert_eq!(command(&mut b, 4, &[4, 0, 2, 0]), 0);
            match b.move_to(|| make(&mut spec, &Kept::default())) {
                Err(StateError::Value { what, .. }) => what,
                other => panic!("{:?}", other.err()),
            }
        };
        let what = refused(NetSpec { mtu: Some(1400), ..spec(2) });
        assert_eq!(what, "mtu of \"_net0\" is None, and the specification's is Some(1400)");
        assert_eq!(refused(spec(1)), "pairs of \"_net0\" is 2, and there are 1");
    }

    fn no_state_that_was_tampered_with_does_harm() {
        let mut b = bench(2, ALL);
        assert_eq!(command(&mut b, 4, &[4, 0, 2, 0]), 0);
        let features = b.device.features();
        b.stop();
        let node = b.device.save().unwrap().unwrap();
        drop(b);
        let (kept, mut spec) = (Kept::default(), spec(2));
        for tampered in tamper(&node) {
            let Some(node) = tampered.node() else { continue };
            let device = make(&mut spec, &kept);
            if device.load(Some(node)).is_ok() {
                assert!(!tampered.impossible, "{} was taken", tampered.what);
                // What does not go with the features is found out here.
                let _refused = device.activate(features);
                device.save().unwrap();
                device.reset();
            }
        }
    }

    fn states_of_all_versions_load() {
        let mut b = bench(2, ALL);
        assert_eq!(command(&mut b, 4, &[4, 0, 2, 0]), 0);
        let features = b.device.features();
        b.stop();
        let present = b.device.save().unwrap().unwrap();
        drop(b);
        for node in golden(env!("CARGO_MANIFEST_DIR"), "virtio-net", &present) {
            let device = make(&mut spec(2), &Kept::default());
            device.load(Some(node)).unwrap();
            device.activate(features).unwrap();
            assert_eq!(device.shared.pairs.in_use(), 2);
        }
    }

    fn nothing_is_lost_or_comes_twice_over_three_hundred_pauses() {
        let mut b = bench(1, ALL);
        greet(&mut b);
        offer(&mut b, RX, 0..64, 0x1_0000);
        b.put(FREE, &arp_request());
        let sender = UdpSocket::bind((HOST, 0)).unwrap();
        let (mut sent, mut next, mut with_us) = (1u64, 0u16, [false; 64]);
        // A buffer that came back: datagrams are numbered and stay in order.
        let mut take = |b: &Bench<Net>, head: u16, length: u32| {
            let frame = b.get(buffer(RX, head), length as usize);
            if length > 55 && frame[12 + 23] == 17 && frame[12 + 36..12 + 38] == 7000u16.to_be_bytes() {
                assert_eq!(u16::from_be_bytes([frame[54], frame[55]]), next);
                next += 1;
            }
            next
        };
        for round in 0..300u16 {
            let burst = round % 20 + 1;
            for head in 0..burst {
                b.chain(TX, head, &[(FREE, 54, false)]);
            }
            if round % 3 != 0 {
                b.kick(TX);
            }
            for n in 4 * round..4 * round + 4 {
                sender.send_to(&n.to_be_bytes(), (GUEST, 7000)).unwrap();
            }
            if round % 4 == 1 {
                std::thread::sleep(Duration::from_micros(u64::from(round) % 5 * 60));
            }
            let (tx, rx) = (b.device.stop_queue(TX).unwrap(), b.device.stop_queue(RX).unwrap());
            assert_eq!((rx.next_avail, tx.next_avail), (rx.next_used, tx.next_used), "nothing outstanding");
            let ctrl = b.device.stop_queue(2).unwrap();
            b.start(2, ctrl.next_avail);
            b.start(RX, rx.next_avail);
            b.start(TX, tx.next_avail);
            // In their order, each once.
            for head in 0..burst {
                assert_eq!(b.used(TX), (head, 0));
            }
            sent += u64::from(burst);
            while let Some((head, length)) = b.try_used(RX, Duration::ZERO) {
                take(&b, head, length);
                let place = &mut with_us[usize::from(head)];
                assert!(!std::mem::replace(place, true), "buffer {head} came back twice");
            }
            // Now and then all of them go out again.
            for head in (0..64u16).filter(|_| round % 5 == 4) {
                if std::mem::take(&mut with_us[usize::from(head)]) {
                    offer(&mut b, RX, head..head + 1, 0x1_0000);
                }
            }
        }
        // What waited for buffers comes in the end.
        for head in (0..64u16).filter(|head| with_us[usize::from(*head)]) {
            offer(&mut b, RX, head..head + 1, 0x1_0000);
        }
        loop {
            let (head, length) = b.used(RX);
            if take(&b, head, length) == 1200 {
                break;
            }
            offer(&mut b, RX, head..head + 1, 0x1_0000);
        }
        assert_eq!((b.try_used(TX, SHORT), count(&b, "tx_frames")), (None, sent));
        assert!(!b.link.broken());
        stop(&mut b);
    }
}
