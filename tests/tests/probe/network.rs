//! Network cards on taps, in a namespace of their own: the partner is the host's network stack.

use tests::probe::Guest;

/// A guest whose card's tap has 192.168.249.1 on the host's side.
fn with_net(tests: &str, keys: &str) -> Guest {
    let argument = format!("ip=192.168.249.1,mask=255.255.255.0,mac=52:54:00:aa:bb:cc{keys}");
    Guest::new(tests)
        .in_private_network()
        .option("probe.ip=192.168.249.2 probe.host=192.168.249.1")
        .with(&["--net", &argument])
}

#[test]
fn the_host_answers_the_guest() {
    with_net("net-info,net-arp,net-ping", "").option("probe.mac=52:54:00:aa:bb:cc").run().all_passed();
}

#[test]
fn the_device_completes_checksums_left_to_it() {
    with_net("net-checksum", "").run().all_passed();
}

#[test]
fn the_control_queue_refuses_what_it_does_not_know() {
    with_net("net-control", "").run().all_passed();
}

#[test]
fn the_mtu_is_the_one_asked_for() {
    with_net("net-info", ",mtu=1400").option("probe.mtu=1400").run().all_passed();
}

#[test]
fn frames_that_no_network_has_leave_the_card_working() {
    with_net("net-hostile", "").run().all_passed();
}
