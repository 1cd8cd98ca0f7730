use spec::{Facts, Spec};

use super::*;

fn parse(text: &str) -> Result<NetSpec, Refusal> {
    let facts = Facts { boot_vcpus: 4, shared_memory: true, ..Facts::default() };
    let spec = NetSpec::parse(text)?;
    spec.check(&facts).map(|()| spec)
}

fn arguments(text: &str, resolvers: &[&str]) -> String {
    let spec = parse(text).unwrap();
    let task = Task { card: spec.user, mtu: spec.mtu };
    let written = serde_json::to_string(&task).unwrap();
    assert_eq!(serde_json::from_str::<Task>(&written).unwrap(), task, "{written}");
    let resolvers: Vec<_> = resolvers.iter().map(|r| r.parse().unwrap()).collect();
    task.arguments(7, &resolvers).join(" ")
}

#[test]
fn passt_is_told_what_the_card_is_to_be() {
    let begin = "--vhost-user --foreground --quiet --fd 7";
    let none = "--tcp-ports none --udp-ports none";
    for (text, told) in [
        ("user=on", format!("--map-host-loopback none {none}")),
        ("user=on,host_access=loopback,mtu=1400", format!("--mtu 1400 {none}")),
        ("user=on,host_access=none,only=ipv6", format!("--map-host-loopback none {none} --ipv6-only")),
        (
            "user=on,forward=[tcp:2222:22,tcp:[::1]:80:8080,udp:192.0.2.2:53:53]",
            "--map-host-loopback none --tcp-ports 127.0.0.1/2222:22 --tcp-ports ::1/80:8080 --udp-ports 192.0.2.2/53:53".into(),
        ),
        (
            "user=on,dns=[192.0.2.1,fd00::1],search=[a.example,b.example],only=ipv4",
            format!(
                "--map-host-loopback none --dns 192.0.2.1 --dns fd00::1 --search a.example b.example {none} --ipv4-only"
            ),
        ),
    ] {
        assert_eq!(arguments(text, &["192.0.2.53", "127.0.0.1"]), format!("{begin} {told}"), "{text}");
    }
    let told = format!("--dns 169.254.2.53 --dns-forward 169.254.2.53 --dns-host 127.0.0.53 {none}");
    assert_eq!(arguments("user=on", &["127.0.0.53"]), format!("{begin} --map-host-loopback none {told}"));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (text, words) in [
        ("forward=[tcp:1:1]", "need user=on"),
        ("user=on,vhost_user=on,socket=/x", "exclude each other"),
        ("user=on,tap=t", "has none"),
        ("user=on,fd=[7]", "has none"),
        ("user=on,num_queues=4", "one pair"),
        ("user=on,bw_size=1,bw_refill_time=1", "Rate limiting"),
        ("user=on,forward=[tcp:80:80,tcp:0.0.0.0:80:81]", "tcp:127.0.0.1:80:80 and tcp:0.0.0.0:80:81"),
        ("user=on,forward=[udp:80:80,udp:80:80]", "same port of the host"),
        ("user=on,search=[--x]", "no name of a domain"),
    ] {
        let refused = parse(text).unwrap_err().chain().join(": ");
        assert!(refused.contains(words), "{text}: {refused}");
    }
    let many: Vec<String> = (1..=129).map(|port| format!("tcp:{port}:1")).collect();
    assert!(parse(&format!("user=on,forward=[{}]", many.join(","))).is_err());
    for text in [
        "user=maybe",
        "user=on,forward=[tcp:80]",
        "user=on,forward=[sctp:1:1]",
        "user=on,forward=[tcp:0:1]",
        "user=on,forward=[tcp:70000:1]",
        "user=on,forward=[tcp:::1:1:1]",
        "user=on,deny=[10.0.0.0/33]",
        "user=on,deny=[x]",
        "user=on,dns=[x]",
        "user=on,host_access=some",
        "user=on,only=ipx",
    ] {
        assert!(NetSpec::parse(text).is_err(), "{text}");
    }
    // One port of both protocols, and two addresses of one port.
    assert!(parse("user=on,forward=[tcp:80:80,udp:80:80,tcp:127.0.0.2:80:80]").is_ok());
}

#[test]
fn a_network_has_its_addresses_and_no_others() {
    for (network, inside, outside) in [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
        ("0.0.0.0/0", "255.1.1.1", "::1"),
        ("fd00::/8", "fdff::1", "fe00::1"),
        ("::/0", "::1", "1.1.1.1"),
        ("::1/128", "::1", "::2"),
    ] {
        let network: Network = network.parse().unwrap();
        assert!(network.contains(inside.parse().unwrap()), "{network} {inside}");
        assert!(!network.contains(outside.parse().unwrap()), "{network} {outside}");
    }
}

#[test]
fn without_somebody_who_starts_programs_the_flag_is_named() {
    let host = Host { id: "card", facts: &Facts::default(), kept: &device::Kept::default() };
    let mut spec = parse("user=on").unwrap();
    let refused = device::Build::build(&mut spec, &host).err().unwrap().chain().join(": ");
    assert!(refused.contains("--passt"), "{refused}");
}

#[test]
fn json_has_the_same_texts() {
    let body = r#"{"user":true,"forward":["tcp:127.0.0.1:2222:22"],"host_access":"None","deny":["10.0.0.0/8"],"only":"Ipv4",
        "dns":["192.0.2.1"],"search":["a.example"]}"#;
    let spec: NetSpec = serde_json::from_str(body).unwrap();
    let text = "user=on,forward=[tcp:2222:22],host_access=none,deny=[10.0.0.0/8],only=ipv4,dns=[192.0.2.1],search=[a.example]";
    assert_eq!(spec, NetSpec::parse(text).unwrap());
    let plain = serde_json::to_value(NetSpec::default()).unwrap();
    assert!(plain.get("user").is_none() && plain.get("forward").is_none(), "{plain}");
    assert!(serde_json::from_str::<NetSpec>(r#"{"user":true,"forward":["tcp:x"]}"#).is_err());
}
