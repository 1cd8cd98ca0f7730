use super::*;

fn parse(text: &str) -> Result<NetSpec, Refusal> {
    NetSpec::parse(text)
}

fn refusal(text: &str) -> String {
    let facts = Facts { boot_vcpus: 4, ..Facts::default() };
    let refused = parse(text).and_then(|s| s.check(&facts)).unwrap_err();
    refused.chain().last().unwrap().clone()
}

#[test]
fn everything_of_the_flag_is_taken() {
    let text = "id=n,tap=t0,ip=10.0.0.1,mask=255.0.0.0,mac=2E:00:00:00:00:01,host_mac=2e:00:00:00:00:02,mtu=1500,\
                num_queues=4,queue_size=512,vhost_user=off,vhost_mode=client,offload_tso=off,offload_ufo=off,\
                offload_csum=off,pci_segment=0,pci_device_id=7";
    let spec = parse(text).unwrap();
    assert!(spec.check(&Facts { boot_vcpus: 2, ..Facts::default() }).is_ok());
    assert_eq!(spec.tap.as_deref(), Some("t0"));
    assert_eq!(spec.mac.unwrap().0.to_string(), "2e:00:00:00:00:01");
    assert_eq!((spec.mtu, spec.num_queues, spec.queue_size), (Some(1500), 4, 512));
    assert_eq!(spec.offloads(true), 0);
    let spec = parse("fd=[5,7-8],num_queues=6").unwrap();
    assert_eq!(spec.fds.numbers(), [5, 7, 8]);
    let spec = parse("").unwrap();
    assert_eq!((spec.num_queues, spec.queue_size, spec.offload_tso), (2, 256, true));
    assert!(spec.check(&Facts::default()).is_ok());
}

#[test]
fn rules_of_the_contract_are_refused_in_its_words() {
    for (text, words) in [
        ("num_queues=10", "Queue count (5) must not exceed boot vCPUs (4)"),
        ("queue_size=0", "Queue size must be a power of 2 no greater than 32768: 0"),
        ("queue_size=100", "Queue size must be a power of 2 no greater than 32768: 100"),
        ("num_queues=1", "Number of queues (1) to virtio_net should be higher than 2"),
        ("fd=[3,4],num_queues=2", "Number of queues (2) to virtio_net does not match the number of FDs (4)"),
        ("fd=2", "Reserved fd number (<= 2): 2"),
        ("mtu=1279", "Provided MTU 1279 is lower than 1280 (expected by VIRTIO specification)"),
        ("offload_csum=off", "\"offload_tso\" and \"offload_ufo\" depend on \"offload_csum\""),
        ("mask=255.0.0.0", "Mask provided without an IP"),
        ("ip=10.0.0.1", "IP provided without a mask"),
        ("id=__x", "Identifier __x is not valid"),
    ] {
        assert_eq!(refusal(text), words, "{text}");
    }
    assert!(refusal("iommu=on").contains("not supported yet"), "{}", refusal("iommu=on"));
    for text in ["mac=zz", "ip=1.2.3", "mtu=70000", "fd=[x]", "tap", "nonsense=1"] {
        assert_eq!(parse(text).unwrap_err().chain()[0], "Error parsing --net", "{text}");
    }
}

#[test]
fn a_json_body_is_read_and_printed_as_in_the_contract() {
    let body = r#"{"id":"_net1","tap":"tap3","mac":"2e:11:22:33:44:55","num_queues":2,"queue_size":256,
        "vhost_user":false,"vhost_mode":"Client","offload_tso":true,"offload_ufo":true,"offload_csum":true,
        "vhost_socket":null,"rate_limiter_config":null,"iommu":false,"pci_segment":0}"#;
    let spec: NetSpec = serde_json::from_str(body).unwrap();
    assert!(spec.check(&Facts::default()).is_ok());
    assert_eq!(
        serde_json::to_string(&spec).unwrap(),
        r#"{"id":"_net1","pci_segment":0,"tap":"tap3","mac":"2e:11:22:33:44:55","num_queues":2,"queue_size":256,"vhost_user":false,"vhost_mode":"Client","offload_tso":true,"offload_ufo":true,"offload_csum":true}"#
    );
}

#[test]
fn a_card_whose_frames_another_process_moves_needs_a_socket_and_has_no_limits_here() {
    let (facts, private) = (Facts { shared_memory: true, ..Facts::default() }, Facts::default());
    let check =
        |text: &str, facts| NetSpec::parse(text).unwrap().check(facts).map_err(|e| e.chain().join(": "));
    for text in ["vhost_user=on,socket=/s", "vhost_user=on,socket=/s,vhost_mode=server,mtu=1500"] {
        assert_eq!(check(text, &facts), Ok(()), "{text}");
        assert!(check(text, &private).unwrap_err().contains("requires using shared memory"), "{text}");
    }
    for (text, want) in [
        ("vhost_user=on", "No socket provided when using vhost-user"),
        ("socket=/s", "A socket without vhost_user=on"),
        (
            "vhost_user=on,socket=/s,bw_size=1,bw_refill_time=1",
            "Rate limiting is not supported with vhost-user",
        ),
        ("vhost_user=on,socket=/s,num_queues=4", "Queue count (2) must not exceed boot vCPUs (1)"),
    ] {
        assert_eq!(check(text, &facts), Err(want.to_owned()), "{text}");
    }
}

#[test]
fn descriptor_numbers_in_json_are_printed_and_not_read() {
    let spec: NetSpec = serde_json::from_str(r#"{"fds":[7,9]}"#).unwrap();
    assert!(spec.fds.numbers().is_empty() && spec.fds.told() == 2);
    for none in [r#"{"fds":[]}"#, r#"{"fds":null}"#, "{}"] {
        assert_eq!(serde_json::from_str::<NetSpec>(none).unwrap().fds.told(), 0, "{none}");
    }
    assert!(serde_json::from_str::<NetSpec>(r#"{"fds":"x"}"#).is_err());
    let printed = serde_json::to_value(parse("fd=[7,9],num_queues=4").unwrap()).unwrap();
    assert_eq!(printed["fds"], serde_json::json!([7, 9]));
    let null = std::fs::File::open("/dev/null").unwrap();
    let number = null.as_raw_fd();
    assert_eq!(TapFds::received(vec![null.into()]).numbers(), [number]);
}
