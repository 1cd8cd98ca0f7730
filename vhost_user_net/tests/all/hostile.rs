//! Peers that mean it no good.

use std::time::{Duration, Instant};

use net_util::netns_test;
use net_util::wire::{HEADER, Wire};
use vhost::VhostBackend;
use vhost_user::testing::front::{EVENT_IDX, Front, HALF, MEMORY};
use vhost_user::testing::peer::Victim;
use vhost_user::testing::{garbage, hostile};

use crate::card::{Guest, SUBJECT, TAP, frame};

netns_test! {
    fn it_survives_hang_ups_at_every_message_and_within() {
        garbage::hang_ups(&SUBJECT);
    }

    fn it_survives_conversations_with_mistakes() {
        garbage::mistakes(&SUBJECT);
    }

    fn it_survives_messages_that_make_no_sense() {
        garbage::nonsense(&SUBJECT);
    }

    fn memory_that_is_not_there() {
        hostile::memory_that_is_not_there(&SUBJECT);
    }

    fn more_memory_than_there_may_be() {
        hostile::too_much_memory(&SUBJECT);
    }

    fn rings_that_cannot_be() {
        hostile::rings_that_cannot_be(&SUBJECT);
    }

    fn descriptors_that_are_something_else() {
        hostile::strange_descriptors(&SUBJECT);
    }

    fn half_a_message_is_not_waited_for_without_end() {
        hostile::half_a_message(&SUBJECT);
    }

    fn answers_that_nobody_reads() {
        hostile::unread_answers(&SUBJECT);
    }

    /// The guest's memory is cut short under buffers and rings, with frames coming and going.
    fn memory_that_shrinks_under_our_feet() {
        let victim = Victim::new(&SUBJECT);
        let wire = Wire::new(TAP).unwrap();
        for left in [0, 0x1000, HALF, MEMORY - (3 << 20)] {
            let mut guest = Guest::new(1);
            guest.plug(Front::connect(&victim.socket, EVENT_IDX));
            guest.exchange(&wire, 0, 3);
            for n in 0..20 {
                guest.offer(0, &[&[0; 12][..], &frame(n, 1000)].concat());
            }
            guest.memory.file.set_len(left).unwrap();
            guest.rings[1].kick();
            for n in 0..64 {
                let _ = wire.send(&[&[0; HEADER][..], &frame(n, 1000)].concat());
            }
            // Where a ring itself went, the daemon stumbles and hangs up; where only frames went, the kernel tells it of an error.
            if left < HALF {
                let begun = Instant::now();
                while guest.front().socket.get_features().is_ok() {
                    assert!(begun.elapsed() < Duration::from_secs(20), "it has not noticed");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            drop(guest);
            victim.is_well();
        }
    }

    fn a_driver_of_before_virtio_1_is_refused() {
        let victim = Victim::new(&SUBJECT);
        let mut guest = Guest::new(1);
        let mut front = Front::connect(&victim.socket, EVENT_IDX);
        front.socket.set_features(front.features & !(1 << 32)).unwrap();
        front.socket.set_mem_table(&guest.memory.regions()).unwrap();
        front.socket.set_vring_num(0, 64).unwrap();
        let at = vhost_user::testing::front::addresses(&guest.memory, &guest.rings[0]);
        front.socket.set_vring_addr(0, &at).unwrap();
        front.socket.set_vring_kick(0, &guest.rings[0].kick).unwrap();
        vhost::vhost_user::VhostUserFrontend::set_vring_enable(&mut front.socket, 0, true).unwrap_err();
        drop(front);
        assert!(victim.daemon.said().contains("a driver without VIRTIO_F_VERSION_1"), "{}", victim.daemon.said());
        guest.plug(Front::connect(&victim.socket, EVENT_IDX));
        guest.exchange(&Wire::new(TAP).unwrap(), 0, 2);
        drop(guest);
        victim.is_well();
    }
}
