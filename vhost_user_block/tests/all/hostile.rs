//! Peers that mean it no good.

use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost_user::testing::front::{DATA, EVENT_IDX, Front, HALF, MEMORY, Memory, Queue};
use vhost_user::testing::peer::Victim;
use vhost_user::testing::{garbage, hostile};

use crate::disk::{OUT, Requests, SUBJECT};

#[test]
fn it_survives_hang_ups_at_every_message_and_within() {
    garbage::hang_ups(&SUBJECT);
}

#[test]
fn it_survives_conversations_with_mistakes() {
    garbage::mistakes(&SUBJECT);
}

#[test]
fn it_survives_messages_that_make_no_sense() {
    garbage::nonsense(&SUBJECT);
}

#[test]
fn memory_that_is_not_there() {
    hostile::memory_that_is_not_there(&SUBJECT);
}

#[test]
fn more_memory_than_there_may_be() {
    hostile::too_much_memory(&SUBJECT);
}

#[test]
fn rings_that_cannot_be() {
    hostile::rings_that_cannot_be(&SUBJECT);
}

#[test]
fn descriptors_that_are_something_else() {
    hostile::strange_descriptors(&SUBJECT);
}

#[test]
fn half_a_message_is_not_waited_for_without_end() {
    hostile::half_a_message(&SUBJECT);
}

#[test]
fn answers_that_nobody_reads() {
    hostile::unread_answers(&SUBJECT);
}

/// The guest's memory is cut short while its rings are in use: the thread that serves them goes on with zeros, the connection ends.
#[test]
fn memory_that_shrinks_under_our_feet() {
    let victim = Victim::new(&SUBJECT);
    for left in [0, 0x1000, HALF, MEMORY - 4096] {
        let memory = Memory::new();
        let mut rings = [Queue::new(0, 16)];
        let mut front = Front::connect(&victim.socket, EVENT_IDX);
        front.start(&memory, &rings);
        // A request whose data is where there will be nothing, and a ring that may go too.
        assert_eq!(rings[0].ask(&memory, OUT, 8, (DATA, 4096)), 0);
        assert_eq!(rings[0].ask(&memory, OUT, 8, (MEMORY - 4096, 4096)), 0);
        // The daemon may still be looking for requests: where the ring stays, the data goes before there is one.
        let cut = || memory.file.set_len(left).unwrap();
        if left >= HALF {
            cut();
        }
        rings[0].offer(&memory, 0, OUT, 8, (MEMORY - 4096, 4096));
        if left < HALF {
            cut();
        }
        rings[0].kick();
        // Where the ring itself went, the daemon stumbles and hangs up; where only data went, the kernel tells it of an error.
        if left < HALF {
            let begun = Instant::now();
            while front.socket.get_features().is_ok() {
                assert!(begun.elapsed() < Duration::from_secs(20), "it has not noticed");
                std::thread::sleep(Duration::from_millis(1));
            }
        } else {
            let (_, status) = rings[0].wait(&memory);
            assert_eq!(status, 1, "an I/O error");
        }
        drop(front);
        victim.is_well();
    }
}
