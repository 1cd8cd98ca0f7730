//! Command lines that cannot be.

use net_util::netns_test;
use vhost_user::testing::Scratch;

use crate::card::PROGRAM;

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    PROGRAM.teaches(&[
        "tap",
        "ip",
        "mask",
        "mac",
        "host_mac",
        "mtu",
        "socket",
        "client",
        "num_queues",
        "queue_size",
    ]);
}

#[test]
fn lines_that_say_nothing_sensible() {
    PROGRAM.refuses("", &["Error parsing --net-backend: socket missing"]);
    PROGRAM.refuses("tap=a", &["Error parsing --net-backend: socket missing"]);
    PROGRAM.refuses("tap=a,sock=b", &["Error parsing --net-backend", "Unknown option: sock"]);
    PROGRAM.refuses(
        "socket=b,num_queues=1",
        &["Number of queues (1) must be even: each pair has one to receive and one to transmit"],
    );
    PROGRAM.refuses("socket=b,num_queues=0", &["Number of queues (0) to virtio_net should be higher than 2"]);
    PROGRAM.refuses(
        "socket=b,mtu=100",
        &["Provided MTU 100 is lower than 1280 (expected by VIRTIO specification)"],
    );
}

netns_test! {
    fn taps_and_sockets_that_cannot_be() {
        let scratch = Scratch::new();
        let none = scratch.path("none");
        let none = none.display();
        PROGRAM.refuses(
            &format!("socket={none}/socket"),
            &[
                "cannot serve network card \"net0\"",
                &format!("cannot listen on {none}/socket"),
                "No such file or directory (os error 2)",
            ],
        );
        let long = format!("/tmp/{}", "x".repeat(200));
        for (client, verb) in [("off", "listen on"), ("on", "connect to")] {
            PROGRAM.refuses(
                &format!("client={client},socket={long}"),
                &[
                    "cannot serve network card \"net0\"",
                    &format!("cannot {verb} {long}"),
                    "the path has 205 bytes; that of a socket has at most 107",
                ],
            );
        }
        let outer = "cannot set up the tap of \"net0\"";
        let socket = scratch.path("socket");
        let socket = socket.display();
        PROGRAM.refuses(
            &format!("socket={socket},tap=a-name-that-is-too-long"),
            &[outer, "tap name \"a-name-that-is-too-long\" is too long: 23 bytes, at most 15"],
        );
        PROGRAM.refuses(
            &format!("socket={socket},mask=255.0.255.0"),
            &[outer, "255.0.255.0 is not a mask for the address 192.168.100.1 of \"vmtap0\""],
        );
        PROGRAM.refuses(
            &format!("socket={socket},ip=fd00::1"),
            &[outer, "255.255.255.0 is not a mask for the address fd00::1 of \"vmtap0\""],
        );
        // The second of two: neither is served.
        let first = format!("socket={socket}");
        let output = PROGRAM.run(&["--net-backend", &first, &format!("socket={none}/socket")]);
        assert_eq!(output.status.code(), Some(1));
        assert!(!scratch.path("socket").exists());

        // Without the privilege: what root starts has none that is out of bounds. The process is this test's own.
        for capability in 0..64 {
            // Beyond the last one the kernel refuses.
            // SAFETY: integers.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
        let refused = "no permission for tap \"vmtap%d\": cannot create or open it without CAP_NET_ADMIN \
                       (or give an existing tap of your own, or an open one by fd)";
        PROGRAM.refuses(&format!("socket={socket}"), &[outer, refused]);
    }
}
