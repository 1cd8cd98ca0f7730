//! How it begins, goes on after a death, and ends; and how it goes to front ends that wait for it.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use net_util::wire::{Wire, persistent};
use net_util::{LinkConfig, TapSet, VNET_HDR_LEN, netns_test};
use vhost_user::testing::front::{EVENT_IDX, Front};
use vhost_user::testing::{PATIENCE, Scratch};

use crate::card::{ALL, Guest, PROGRAM, TAP, frame, serve, start};

/// The next one that comes.
fn accept(listener: &UnixListener) -> Front {
    Front::accept(listener.accept().unwrap().0, ALL)
}

fn exists(link: &str) -> bool {
    Wire::new(link).is_ok()
}

netns_test! {
    fn one_front_end_after_the_other_is_served_until_sigterm() {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let scratch = Scratch::new();
            let socket = scratch.path("socket");
            let mut daemon = start(&scratch, &socket, "");
            for _ in 0..5 {
                serve(&socket);
            }
            daemon.signal(libc::SIGHUP);
            let wire = Wire::new(TAP).unwrap();
            let mut guest = Guest::new(1);
            guest.plug(Front::connect(&socket, EVENT_IDX));
            let waits = UnixStream::connect(&socket).unwrap();
            guest.exchange(&wire, 0, 10);
            daemon.signal(signal);
            assert!(daemon.end().success(), "{}", daemon.said());
            drop(waits);
            assert!(!socket.exists());
            assert!(!exists(TAP), "a tap that was made goes");
            assert_eq!(daemon.said(), "");
        }
    }

    fn a_daemon_that_is_killed_under_traffic_is_replaced_again_and_again() {
        persistent(TAP, false);
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let mut daemon = start(&scratch, &socket, "");
        let wire = Wire::new(TAP).unwrap();
        let mut guest = Guest::new(1);
        guest.plug(Front::connect(&socket, ALL));
        for round in 0..40u64 {
            for n in 0..20 {
                guest.offer(0, &[&[0; VNET_HDR_LEN][..], &frame(n, 500)].concat());
                let _ = wire.send(&[&[0; net_util::wire::HEADER][..], &frame(n, 500)].concat());
            }
            guest.rings[1].kick();
            std::thread::sleep(Duration::from_micros(20 * round));
            daemon.kill();
            daemon = start(&scratch, &socket, "");
            guest.plug(Front::connect(&socket, ALL));
            // What was under way goes out now, perhaps for the second time; then it is quiet.
            let begun = Instant::now();
            while guest.rings[1].seen != guest.rings[1].offered {
                guest.reclaim(0);
                assert!(begun.elapsed() < PATIENCE, "buffers do not come back");
            }
            let mut last = Instant::now();
            while last.elapsed() < Duration::from_millis(30) {
                if wire.next().is_some() || guest.receive(0).is_some() {
                    last = Instant::now();
                }
            }
            guest.exchange(&wire, 0, 5);
        }
        daemon.signal(libc::SIGTERM);
        assert!(daemon.end().success(), "{}", daemon.said());
        assert!(exists(TAP), "a tap that was there stays");
    }

    fn several_cards_in_one_process() {
        let scratch = Scratch::new();
        let sockets = [scratch.path("a"), scratch.path("b")];
        let line = |n: usize| format!("tap=card{n},ip=192.168.{n}.1,socket={}", sockets[n].display());
        let mut daemon = PROGRAM.spawn(&scratch, &["--net-backend", &line(0), &line(1)]);
        for (n, socket) in sockets.iter().enumerate() {
            assert!(daemon.listens(socket), "{}", daemon.said());
            let mut guest = Guest::new(1);
            guest.plug(Front::connect(socket, ALL));
            guest.exchange(&Wire::new(&format!("card{n}")).unwrap(), 0, 10);
            let names = daemon.threads_filtered("2");
            assert!(names.iter().any(|name| name.ends_with("_q0")), "{names:?}");
        }
        daemon.signal(libc::SIGTERM);
        assert!(daemon.end().success(), "{}", daemon.said());
    }

    fn as_a_client_it_goes_to_the_front_end_and_comes_back() {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let line = format!("tap={TAP},client=on,socket={}", socket.display());
        let mut daemon = PROGRAM.spawn(&scratch, &["--net-backend", &line]);
        // Nobody is there yet: said once, and no time is burnt.
        let begun = Instant::now();
        while !daemon.said().contains("nobody listens") {
            assert!(begun.elapsed() < PATIENCE, "{}", daemon.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(daemon.said().matches("nobody listens").count(), 1);
        let mut guest = Guest::new(1);
        let wire = Wire::new(TAP).unwrap();
        for _ in 0..3 {
            let listener = UnixListener::bind(&socket).unwrap();
            for _ in 0..3 {
                guest.plug(accept(&listener));
                guest.exchange(&wire, 0, 20);
                guest.front = None;
            }
            drop(listener);
            std::fs::remove_file(&socket).unwrap();
        }
        // One that has more to accept than the kernel holds: it is not waited for.
        let listener = UnixListener::bind(&socket).unwrap();
        // SAFETY: an integer.
        assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) }, 0);
        let _waits = UnixStream::connect(&socket);
        std::thread::sleep(Duration::from_millis(200));
        daemon.signal(libc::SIGTERM);
        let begun = Instant::now();
        assert!(daemon.end().success(), "{}", daemon.said());
        assert!(begun.elapsed() < PATIENCE / 2);
        assert!(socket.exists(), "the socket is the front end's");
    }

    fn what_is_taken_is_named() {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let path = socket.display();
        let _daemon = start(&scratch, &socket, "");
        PROGRAM.refuses(
            &format!("tap=other,ip=10.1.2.3,socket={path}"),
            &["cannot serve network card \"net0\"", &format!("socket path {path} is in use")],
        );
        PROGRAM.refuses(
            &format!("tap={TAP},socket={path}2"),
            &["cannot set up the tap of \"net0\"", "tap \"card\" is in use: another process has it open (only one at a time can)"],
        );
        let held = TapSet::open(Some("held"), 1, &LinkConfig::default()).unwrap();
        PROGRAM.refuses(
            &format!("tap=held,num_queues=4,socket={path}2"),
            &[
                "cannot set up the tap of \"net0\"",
                "interface \"held\" exists and is not a tap that takes 2 queue pairs \
                 (make it with: ip tuntap add dev held mode tap multi_queue)",
            ],
        );
        drop(held);
        PROGRAM.refuses(
            &format!("tap=lo,socket={path}2"),
            &["cannot set up the tap of \"net0\"", "interface \"lo\" exists and is not a tap"],
        );
        assert!(!scratch.path("socket2").exists());
        serve(&socket);
    }
}
