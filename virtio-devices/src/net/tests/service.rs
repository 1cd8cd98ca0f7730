//! The metadata service on a card: by the rings, as a driver has it, beside a tap that works.

use metadata::testing::{Guest, body, get};
use metadata::{ADDRESS, ADDRESS6, Document, Store, TokenUse};
use net_util::wire::Wire;

use super::*;

/// A card with the service.
fn served(pairs: usize, spec: NetSpec, accept: u64) -> (Bench<Net>, Arc<Store>) {
    let document = format!(r#"{{"meta-data":{{"hostname":"h"}},"large":"{}"}}"#, "x".repeat(50_000));
    let store = Arc::new(Store::new(Document::parse(document.as_bytes()).unwrap(), TokenUse::Optional));
    let kept = Kept::default();
    kept.keep(metadata::KEPT, || Ok::<_, ()>(store.clone())).unwrap();
    let facts = Facts { metadata: true, boot_vcpus: pairs as u32, ..Facts::default() };
    let net = { spec }.make(&Host { id: "_net0", facts: &facts, kept: &kept }).unwrap();
    (Bench::new(net, accept), store)
}

/// Has the card send a frame, by a queue, behind this header.
fn transmit(bench: &mut Bench<Net>, queue: usize, header: [u8; VNET_HDR_LEN], frame: &[u8]) {
    bench.put(FREE, &header);
    bench.put(FREE + 12, frame);
    bench.chain(queue, 0, &[(FREE, VNET_HDR_LEN as u32, false), (FREE + 12, frame.len() as u32, false)]);
    bench.kick(queue);
    assert_eq!(bench.used(queue), (0, 0));
}

/// Has the card send a frame with a segment whose checksum is left to it, as guests do: the header says where it is.
fn transmit_undone(bench: &mut Bench<Net>, queue: usize, mut frame: Vec<u8>) {
    let tcp = if frame[14] >> 4 == 6 { 54 } else { 34 };
    frame[tcp + 16..tcp + 18].copy_from_slice(&[0xde, 0xad]);
    transmit(bench, queue, [1, 0, 0, 0, 0, 0, tcp as u8, 0, 16, 0, 0, 0], &frame);
}

/// Carries frames between a guest and the card; `false` once nothing came for a while.
fn carry(bench: &mut Bench<Net>, guest: &mut Guest, queue: usize, room: u32) -> bool {
    let frames = guest.turn(Instant::now());
    let mut moved = !frames.is_empty();
    for frame in frames {
        transmit_undone(bench, queue, frame);
    }
    let mut patience = if moved { Duration::from_millis(200) } else { Duration::from_secs(5) };
    while let Some((head, length)) = bench.try_used(RX, patience) {
        let frame = bench.get(buffer(RX, head), length as usize);
        offer(bench, RX, head..head + 1, room);
        if frame[12 + 6..12 + 12] == metadata::MAC {
            assert_eq!(frame[..10], [0; 10]);
            guest.take(&frame[12..]);
            moved = true;
            patience = Duration::ZERO;
        }
    }
    moved
}

fn ask(bench: &mut Bench<Net>, guest: &mut Guest, queue: usize, request: &str) -> String {
    guest.ask(request, |guest| carry(bench, guest, queue, 1526))
}

fn guest(last: u8) -> Guest {
    Guest::new([192, 168, 249, last], Instant::now())
}

/// One by IPv6, which has no address but that of its link.
fn guest6(last: u8) -> Guest {
    Guest::new([0xfe80, 0, 0, 0, 0, 0, 0, last.into()], Instant::now())
}

netns_test! {
    fn the_service_answers_by_the_rings_while_the_tap_goes_on() {
        // Frames in several buffers, and in one each.
        for accept in [ALL, ALL & !feature::MRG_RXBUF] {
            let (mut b, store) = served(1, spec(1), accept);
            greet(&mut b);
            offer(&mut b, RX, 0..64, 1526);
            let mut guests = [guest(2), guest6(2)];
            for g in &mut guests {
                for _ in 0..3 {
                    assert_eq!(body(&ask(&mut b, g, TX, &get("/latest/meta-data/hostname"))), "h");
                }
                assert_eq!(body(&ask(&mut b, g, TX, &get("/latest/large"))).len(), 50_000);
            }
            store.replace(Document::parse(br#"{"meta-data":{"hostname":"new"}}"#).unwrap());
            for g in &mut guests {
                assert_eq!(body(&ask(&mut b, g, TX, &get("/latest/meta-data/hostname"))), "new");
            }
            send(9000, b"beside");
            assert!(datagram_in(&mut b, RX, 9000, Duration::from_secs(5), 1526).is_some());
            stop(&mut b);
            assert_eq!((count(&b, "tx_dropped"), count(&b, "rx_dropped")), (0, 0));
        }
    }

    fn what_is_for_the_service_does_not_reach_the_tap_and_all_else_does_unchanged() {
        let (mut b, _) = served(1, spec(1), ALL);
        let tap = Wire::new("vmtap0").unwrap();
        let mut secret = arp_request()[12..].to_vec();
        secret[38..42].copy_from_slice(&ADDRESS.octets());
        transmit(&mut b, TX, [0; VNET_HDR_LEN], &secret);
        // To other ports and by other protocols, and by way of the service to elsewhere.
        let mut g = guest(2);
        g.connect();
        for frame in g.turn(Instant::now()) {
            for (at, byte) in [(14, 0x45), (23, 17), (36, 1), (30, 8)] {
                let mut frame = frame.clone();
                frame[at] = byte;
                transmit(&mut b, TX, [0; VNET_HDR_LEN], &frame);
            }
        }
        // By IPv6 as well: as other protocols, behind further headers, as fragments; and whoever asks for that station or says to be it.
        let mut g = guest6(2);
        g.connect();
        for mut frame in g.turn(Instant::now()) {
            frame[..6].copy_from_slice(&[2; 6]);
            for next in [6, 0, 17, 43, 44, 58, 60] {
                frame[20] = next;
                transmit(&mut b, TX, [0; VNET_HDR_LEN], &frame);
            }
            let about_it = [&[0; 8][..], &ADDRESS6.octets()].concat();
            frame[20] = 58;
            frame[38..54].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 2, 0x54]);
            frame.splice(54.., about_it);
            for kind in [135, 136] {
                frame[54] = kind;
                transmit(&mut b, TX, [0; VNET_HDR_LEN], &frame);
            }
        }
        // Others of the same group, and the network's own messages, are not held back.
        let mut beside = arp_request()[12..].to_vec();
        beside[..14].copy_from_slice(&[0x33, 0x33, 0xff, 0, 2, 0x54, 0x2e, 0, 0, 0, 0, 2, 0x86, 0xdd]);
        beside.resize(78, 0);
        beside[20] = 58;
        beside[54] = 135;
        beside[62..78].copy_from_slice(&[0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54]);
        transmit(&mut b, TX, [0; VNET_HDR_LEN], &beside);
        tap.expect(|frame| {
            assert!(!frame.windows(16).any(|bytes| bytes == ADDRESS6.octets()), "{frame:x?}");
            frame == beside
        });
        let marker: Vec<u8> = [&[2; 6][..], &[0x2e, 0, 0, 0, 0, 2, 0x88, 0xb5], &[7; 1400]].concat();
        transmit(&mut b, TX, [0; VNET_HDR_LEN], &marker);
        let address = ADDRESS.octets();
        tap.expect(|frame| {
            assert!(!frame.windows(4).any(|bytes| bytes == address), "{frame:x?}");
            assert!(!frame.windows(16).any(|bytes| bytes == ADDRESS6.octets()), "{frame:x?}");
            assert_ne!(frame[..6], metadata::MAC);
            frame == marker
        });
        stop(&mut b);
    }

    fn a_card_with_its_service_off_has_none() {
        let (mut b, _) = served(1, NetSpec { metadata: Some(false), ..spec(1) }, ALL);
        let tap = Wire::new("vmtap0").unwrap();
        let mut question = arp_request()[12..].to_vec();
        question[38..42].copy_from_slice(&ADDRESS.octets());
        transmit(&mut b, TX, [0; VNET_HDR_LEN], &question);
        tap.expect(|frame| frame == question);
        stop(&mut b);
    }

    fn any_pair_of_queues_can_ask_and_the_first_has_the_answer() {
        let (mut b, _) = served(2, spec(2), ALL);
        assert_eq!(command(&mut b, 4, &[4, 0, 2, 0]), 0);
        offer(&mut b, RX, 0..64, 1526);
        let mut g = guest(2);
        for queue in [TX, TX + 2, TX + 2, TX] {
            assert_eq!(body(&ask(&mut b, &mut g, queue, &get("/meta-data/hostname"))), "h");
        }
        stop(&mut b);
    }

    fn frames_that_find_no_buffers_wait_and_no_thread_spins() {
        let (mut b, _) = served(1, spec(1), ALL);
        let mut question = arp_request()[12..].to_vec();
        question[38..42].copy_from_slice(&ADDRESS.octets());
        for _ in 0..200 {
            transmit(&mut b, TX, [0; VNET_HDR_LEN], &question);
        }
        let mut g = guest(2);
        g.connect();
        for frame in g.turn(Instant::now()) {
            transmit_undone(&mut b, TX, frame);
        }
        let before = cpu_time();
        std::thread::sleep(2 * SHORT);
        assert!(cpu_time() - before < SHORT, "a thread spins");
        offer(&mut b, RX, 0..100, 1526);
        let (head, length) = b.used(RX);
        assert_eq!(b.get(buffer(RX, head), length as usize)[12 + 6..12 + 12], metadata::MAC);
        let before = cpu_time();
        std::thread::sleep(2 * SHORT);
        assert!(cpu_time() - before < SHORT, "a thread spins");
        stop(&mut b);
    }

    fn a_pause_keeps_a_connection_and_a_reset_ends_it() {
        let (mut b, _) = served(1, spec(1), ALL);
        offer(&mut b, RX, 0..64, 1526);
        let mut g = guest(2);
        let request = get("/latest/large");
        let mut rounds = 0;
        let answer = g.ask(&request, |guest| {
            rounds += 1;
            if rounds % 3 == 0 {
                for queue in [RX, TX] {
                    let state = b.device.stop_queue(queue).unwrap();
                    b.start(queue, state.next_avail);
                }
            }
            carry(&mut b, guest, TX, 1526)
        });
        assert_eq!(body(&answer).len(), 50_000);
        assert!(rounds > 3, "{rounds}");
        stop(&mut b);
    }
}

#[test]
fn where_it_cannot_be_it_is_refused() {
    let check = |text: &str, facts: &Facts| {
        let refused = <NetSpec as ::spec::Spec>::parse(text).and_then(|s| ::spec::Spec::check(&s, facts));
        refused.map_err(|e| e.chain().pop().unwrap())
    };
    let with = Facts { metadata: true, shared_memory: true, ..Facts::default() };
    let without = Facts { shared_memory: true, ..Facts::default() };
    for text in
        ["", "metadata=on", "metadata=off", "vhost_user=on,socket=/s", "vhost_user=on,socket=/s,metadata=off"]
    {
        assert_eq!(check(text, &with), Ok(()), "{text}");
    }
    let remote = check("vhost_user=on,socket=/s,metadata=on", &with).unwrap_err();
    assert!(remote.starts_with("metadata=on with vhost_user=on: "), "{remote}");
    assert_eq!(check("metadata=on", &without).unwrap_err(), "metadata=on without --metadata");
    assert_eq!(check("metadata=off", &without), Ok(()));
}
