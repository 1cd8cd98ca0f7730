//! A Debian that asks who it is: stock cloud-init, which finds the metadata service as it would in EC2.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

use serde_json::json;
use tests::linux::{Linux, Pvh};
use tests::place;
use tests::stock::Stock;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 249, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 249, 2);
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000ops ops@example";
const OTHER: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000dev dev@example";

/// The answer to a question by DHCP (RFC 2131): always the same address.
fn lease(question: &[u8]) -> Option<Vec<u8>> {
    const OPTIONS: usize = 240;
    let mut rest = question.get(OPTIONS..)?;
    let kind = loop {
        match rest {
            [53, 1, kind, ..] => break *kind,
            [0, tail @ ..] => rest = tail,
            [_, length, tail @ ..] => rest = tail.get(usize::from(*length)..)?,
            _ => return None,
        }
    };
    // DISCOVER, OFFER; REQUEST, ACK.
    let answer = match kind {
        1 => 2,
        3 => 5,
        _ => return None,
    };
    let mut reply = question[..OPTIONS].to_vec();
    reply[0] = 2;
    reply[16..20].copy_from_slice(&GUEST.octets());
    reply[20..24].copy_from_slice(&HOST.octets());
    reply.extend([53, 1, answer, 51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0]);
    for option in [54, 3] {
        reply.extend([option, 4]);
        reply.extend(HOST.octets());
    }
    reply.push(255);
    reply.resize(reply.len().max(300), 0);
    Some(reply)
}

/// Answers questions for addresses, as long as this process lives, which is the story's alone.
fn serve_addresses() {
    let socket = UdpSocket::bind(("0.0.0.0", 67)).expect("the port is free in a network of one's own");
    socket.set_broadcast(true).expect("broadcasts can be sent");
    let answer = move || {
        let mut question = [0; 1500];
        while let Ok(length) = socket.recv(&mut question) {
            if let Some(reply) = lease(&question[..length])
                && let Err(e) = socket.send_to(&reply, ("192.168.249.255", 68))
            {
                println!("an address cannot be given: {e}");
            }
        }
    };
    std::thread::Builder::new().name("dhcp".into()).spawn(answer).expect("a thread can be had");
}

/// Asks the service by IPv6, from the address of the link: no program for that is in the image, but a shell that knows sockets.
const BY_IPV6: &str = r#"
card=$(ls /sys/class/net | grep -vx lo)
ip link set "$card" up
ip -6 route replace fd00:ec2::254 dev "$card"
until ip -6 addr show dev "$card" scope link -tentative | grep -q inet6; do sleep 0.2; done
ask() {
    exec 3<> /dev/tcp/fd00:ec2::254/80
    printf '%s HTTP/1.1\r\n%s\r\n\r\n' "$1" "$2" >&3
    tail -n 1 <&3
}
token=$(ask 'PUT /latest/api/token' 'X-aws-ec2-metadata-token-ttl-seconds: 60')
ask 'GET /latest/meta-data/instance-id' "X-aws-ec2-metadata-token: $token"
"#;

#[test]
fn cloud_init_takes_hostname_users_and_keys_from_the_service() {
    tests::elsewhere!(Stock::get().cloud());
    serve_addresses();
    let user_data = format!(
        "#cloud-config\nssh_genkeytypes: []\nusers:\n- default\n- name: dev\n  shell: /bin/bash\n  \
         ssh_authorized_keys: ['{OTHER}']\nwrite_files:\n- path: /root/told\n  content: by the service\n"
    );
    let document = json!({"latest": {
        "meta-data": {
            "instance-id": "i-0123456789abcdef0",
            "local-hostname": "web-1",
            "public-keys": {"0=ops": {"openssh-key": KEY}},
        },
        "user-data": user_data,
        "dynamic": {"instance-identity": {"document": json!({"region": "here"}).to_string()}},
    }});
    let file = place::scratch().join("metadata.json");
    std::fs::write(&file, document.to_string()).expect("the scratch directory takes files");
    let uuid = "ec2a1b2c-0000-4000-8000-0123456789ab";
    let disk = place::copy();
    // The stages that set these up are run by hand, and not at boot: on an emulated processor each takes its time.
    let mut guest = Linux::new("6.12", Pvh)
        .root_on_disk()
        .option("cloud-init=disabled")
        .cpus("boot=2")
        .memory("size=1G")
        .with(&["--disk", &format!("path={},image_type=raw", disk.display())])
        .with(&["--net", &format!("ip={HOST},mask=255.255.255.0,mac=52:54:00:aa:bb:cc,id=card")])
        .with(&["--platform", &format!("uuid={uuid},serial_number={uuid}")])
        .with(&["--metadata", &format!("file={},tokens=required", file.display())])
        .boot();
    guest.sh("/usr/lib/cloud-init/ds-identify --force");
    let found = guest.sh("cat /run/cloud-init/cloud.cfg");
    assert!(found.contains("Ec2"), "{found}");
    // In a shell of its own, so that the one here says nothing of its end.
    guest.sh("((cloud-init init --local && cloud-init init; echo $? > /run/ended) > /run/said 2>&1 &)");
    let begun = Instant::now();
    let status = loop {
        // The story's own limit ends it.
        let (status, text) = guest.try_sh("sleep 5; test -s /run/ended && cat /run/ended");
        if status == 0 {
            break text;
        }
    };
    println!("{}\nafter {:.1} s", guest.sh("cat /run/said"), begun.elapsed().as_secs_f32());
    assert_eq!(status, "0", "{}", guest.sh("grep -v DEBUG /var/log/cloud-init.log | tail -n 60; ip addr"));
    guest.sh(r#"grep '"cloud_name": "aws"' /run/cloud-init/instance-data.json"#);
    assert_eq!(guest.sh("hostname; cat /etc/hostname"), "web-1\nweb-1");
    assert_eq!(guest.sh("cat /root/told"), "by the service");
    let asked = Instant::now();
    assert_eq!(guest.sh(&format!("bash -c '{}'", BY_IPV6.replace('\'', r"'\''"))), "i-0123456789abcdef0");
    println!("asked by IPv6 in {:.1} s", asked.elapsed().as_secs_f32());
    for (user, key) in [("debian", KEY), ("dev", OTHER)] {
        let home = format!("/home/{user}");
        let line = guest.sh(&format!("getent passwd {user}"));
        println!("{line}");
        assert!(line.ends_with(&format!(":{home}:/bin/bash")), "{line}");
        let keys = guest
            .sh(&format!("cat {home}/.ssh/authorized_keys; stat -c '%U %a' {home}/.ssh/authorized_keys"));
        println!("{keys}");
        assert_eq!(keys, format!("{key}\n{user} 600"));
    }
    assert_eq!(guest.sh("dmesg | grep -iE 'BUG:|WARNING:' || true"), "");
    guest.power_off();
}
