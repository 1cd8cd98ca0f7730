//! The control queue: offloads, pairs of queues, announcements.

use super::*;

netns_test! {
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
}
