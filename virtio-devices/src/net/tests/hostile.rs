//! Frames, headers, buffers and rings that are none.

use device::fake::again::Again;

use super::*;

netns_test! {
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

    fn buffers_of_no_use_without_end_do_not_hold_up_whoever_stops_the_queue() {
        let mut b = bench(1, ALL & !ring::RING_EVENT_IDX);
        b.chain(RX, 0, &[(BUFFERS, 2000, false)]);
        let again = Again::new(&mut b, RX);
        b.kick(RX);
        for _ in 0..1000 {
            b.used(RX);
        }
        b.device.stop_queue(RX).unwrap();
        assert!(again.goes_on(), "the queue stopped when the driver did");
        drop(again);
        stop(&mut b);
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
}
