//! Whose a tap is, how long, and what becomes of the card without it.

use super::*;

netns_test! {
    fn a_tap_that_goes_away_stops_nothing_else() {
        let mut b = bench(1, ALL);
        offer(&mut b, RX, 0..8, 0x1_8000);
        greet(&mut b);
        delete_link("vmtap0");
        std::thread::sleep(SHORT);
        let before = cpu_time();
        std::thread::sleep(2 * SHORT);
        assert!(cpu_time() - before < SHORT, "a thread spins");
        greet(&mut b);
        assert!(counts(&b, "tx_dropped", 1), "a frame into the void is given back");
        assert_eq!(command(&mut b, 2, &[3, 0, 0]), 0);
        stop(&mut b);
    }

    fn the_tap_stays_over_a_reboot_and_goes_with_the_machine() {
        let (kept, mut spec) = (Kept::default(), spec(1));
        for _ in 0..3 {
            let mut b = Bench::new(make(&mut spec, &kept), ALL);
            assert_eq!(command(&mut b, 2, &[4, 0, 1, 0]), 0);
            greet(&mut b);
            offer(&mut b, RX, 0..16, 0x1_8000);
            stop(&mut b);
            assert_eq!(spec.tap.as_deref(), Some("vmtap0"));
        }
        let again = TapSet::open(Some("vmtap0"), 1, &LinkConfig::default());
        assert!(matches!(again, Err(net_util::Error::InUse(_))), "it is still ours");
        kept.clear();
        assert_eq!(TapSet::open(None, 1, &LinkConfig::default()).unwrap().name(), "vmtap0", "the name is free again");
    }

    fn frames_of_before_are_not_shown_to_the_next_driver() {
        let (kept, mut spec) = (Kept::default(), spec(1));
        let mut b = Bench::new(make(&mut spec, &kept), ALL);
        greet(&mut b);
        send(8000, &[7; 600]);
        std::thread::sleep(SHORT);
        stop(&mut b);
        drop(b);
        let mut b = Bench::new(make(&mut spec, &kept), 0);
        offer(&mut b, RX, 0..16, 0x1_8000);
        assert!(datagram(&mut b, RX, 8000, SHORT).is_none());
        stop(&mut b);
    }

    fn taps_by_descriptor_stay_open_and_attached_for_the_next_boot() {
        let set = TapSet::open(Some("given"), 2, &LinkConfig::default()).unwrap();
        let fds: Vec<_> = set.taps().iter().map(|t| t.try_clone().unwrap()).collect();
        let numbers: Vec<String> = fds.iter().map(|t| t.as_raw_fd().to_string()).collect();
        let text = format!("fd=[{}],num_queues=4", numbers.join(","));
        let mut spec = <NetSpec as ::spec::Spec>::parse(&text).unwrap();
        for _ in 0..2 {
            let kept = Kept::default();
            let mut b = Bench::new(make(&mut spec, &kept), ALL);
            greet(&mut b);
            stop(&mut b);
            assert_eq!(count(&b, "tx_frames") + count(&b, "tx_dropped"), 1);
            assert_eq!(spec.tap, None);
        }
        let error = NetSpec { fds: <TapFds as ::spec::Value>::convert("[700,701]").unwrap(), ..spec }
            .make(&Host { id: "_net0", facts: &Facts::default(), kept: &Kept::default() })
            .err()
            .unwrap();
        assert_eq!(error.chain()[..2], ["cannot set up the tap of \"_net0\"", "fd 700 is not open"]);
    }

    fn a_tap_in_use_is_named() {
        let _held = TapSet::open(Some("held"), 1, &LinkConfig::default()).unwrap();
        let mut spec = NetSpec { tap: Some("held".into()), ..NetSpec::default() };
        let error = spec.make(&Host { id: "_net3", facts: &Facts::default(), kept: &Kept::default() }).err().unwrap();
        assert_eq!(error.kind(), ::spec::Kind::Host);
        assert!(error.chain()[1].starts_with("tap \"held\" is in use"), "{:?}", error.chain());
    }
}

/// Removes an interface, as an administrator would (RTM_DELLINK of rtnetlink).
fn delete_link(name: &str) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0);
    let mut message = [0u8; 32];
    message[..4].copy_from_slice(&32u32.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_DELLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    let mut answer = [0u8; 64];
    // SAFETY: the buffers are valid for their lengths, and the socket is this function's own.
    unsafe {
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        assert_eq!(libc::send(socket, message.as_ptr().cast(), message.len(), 0), 32);
        assert!(libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0) >= 20);
        libc::close(socket);
    }
    assert_eq!(answer[16..20], [0; 4], "the kernel's answer");
}
