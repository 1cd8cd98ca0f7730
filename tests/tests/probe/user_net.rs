//! Cards with `user=on`: a guest's connections as those of a user without privileges, made by passt, which the VMM has started.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::outside::{self, ANSWER, Echo, Echoing, FAR, HOST, Outside, PORT};
use tests::permissions::{in_place_of, open_to_everybody, own_mounts};
use tests::probe::{Guest, Report, Running};
use tests::programs;

/// How long others may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Words for the probe's tests: who it is.
fn who() -> String {
    format!("probe.ip={} probe.host={} probe.ip6={} probe.host6={}", HOST[0], FAR[0], HOST[2], FAR[1])
}

/// A guest with such a card, and the network that its host is in; `None` where there is no passt.
pub(crate) fn guest(words: &str, keys: &str) -> Option<(Guest, Outside)> {
    let passt = programs::passt()?;
    let outside = Outside::new();
    let guest = Guest::new(words).option(&who()).with_api();
    let events = format!("path={}", guest.file("events").display());
    let arguments = ["--passt", &passt.display().to_string(), "--event-monitor", &events];
    let guest = guest.with(&arguments).with(&["--net", &format!("user=on,id=card{keys}")]);
    Some((guest, outside))
}

/// Has the VMM started by a user without privileges.
pub(crate) fn unprivileged(guest: Guest) -> Guest {
    let passt = programs::passt().expect("looked for before");
    let (passt, vmm) = (above(&passt), above(&programs::cloud_hypervisor()));
    let probe = programs::probe().parent().expect("a file lies somewhere").to_path_buf();
    own_mounts();
    open_to_everybody(&[&passt, &vmm, &probe], guest.directory());
    guest.as_nobody()
}

/// The directory above that of a program.
fn above(program: &Path) -> PathBuf {
    program.ancestors().nth(2).expect("a program lies somewhere").to_path_buf()
}

/// Nobody of those whom a VMM started is left in our network.
#[track_caller]
pub(crate) fn nothing_is_left() {
    until(|| outside::company().is_empty());
}

/// Waits until something is so of those whom a VMM started.
#[track_caller]
fn until(so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "there are still {:#?}", outside::company());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One of those whom the VMM started, by its name.
fn passts() -> Vec<i32> {
    let lines = outside::company();
    let passt = lines.iter().filter(|line| line.contains("--vhost-user"));
    passt.filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

/// All that there is to reach outside, by both protocols and families.
fn everybody(addresses: &[&str]) -> String {
    let of = |protocol| {
        addresses.iter().map(move |address| {
            let ip: IpAddr = address.parse().expect("an address");
            format!("{protocol}:{}", SocketAddr::new(ip, PORT))
        })
    };
    of("tcp").chain(of("udp")).collect::<Vec<_>>().join(",")
}

#[test]
fn a_user_without_privileges_gets_a_networked_guest_by_one_flag() {
    let words = format!("net-info,net-dhcp,net-dns,net-reach probe.to={}", everybody(&FAR));
    let Some((guest, _outside)) = guest(&words, &format!(",dns={}", FAR[0])) else { return };
    let report = unprivileged(guest).run();
    report.all_passed();
    assert_eq!(report.fact("net-dhcp", "address"), HOST[0]);
    assert_eq!(report.fact("net-dhcp", "router"), FAR[0]);
    assert_eq!(report.fact("net-dns", "server"), FAR[0]);
    assert_eq!(report.fact("net-dns", "answer"), IpAddr::from(ANSWER).to_string());
    assert_eq!(report.fact("net-reach", "results"), "echo,echo,echo,echo");
    nothing_is_left();
}

/// The host's name server is at its own loopback address.
fn asks_the_hosts_name_server(access: &str) {
    let Some((guest, _outside)) = guest("net-dhcp,net-dns", &format!(",host_access={access}")) else {
        return;
    };
    own_mounts();
    let file = guest.file("resolv.conf");
    std::fs::write(&file, "nameserver 127.0.0.53\n").expect("the scratch directory takes files");
    in_place_of(Path::new("/etc/resolv.conf"), &file);
    let mut server = Echo::default();
    server.name_server(SocketAddr::from(([127, 0, 0, 53], 53)));
    let _server = Echoing::new(server);
    let report = guest.run();
    report.all_passed();
    assert_eq!(report.fact("net-dns", "answer"), IpAddr::from(ANSWER).to_string());
}

#[test]
fn a_name_server_at_the_hosts_loopback_answers_the_guest() {
    asks_the_hosts_name_server("network");
}

#[test]
fn a_name_server_at_a_host_that_is_denied_answers_the_guest() {
    asks_the_hosts_name_server("none");
}

/// What the guest reaches of its host: its second addresses, and its loopback by the gateway's, both protocols, with both outside
/// for comparison.
fn reaches(keys: &str, by_nobody: bool) -> Option<String> {
    let words = format!("net-reach probe.to={}", everybody(&[HOST[1], HOST[3], FAR[0], FAR[1]]));
    let (guest, _outside) = guest(&words, keys)?;
    let own: Vec<IpAddr> =
        ["127.0.0.1", "::1", HOST[1], HOST[3]].iter().map(|a| a.parse().expect("an address")).collect();
    let _host = Echoing::new(Echo::at(&own, PORT));
    let guest = if by_nobody { unprivileged(guest) } else { guest };
    let report = guest.run();
    report.all_passed();
    nothing_is_left();
    Some(report.fact("net-reach", "results").to_string())
}

#[test]
fn the_guest_reaches_its_host_as_far_as_it_may() {
    // Outside is echoed; the host as the name says.
    let Some(network) = reaches("", false) else { return };
    assert_eq!(network, "echo,echo,echo,echo,echo,echo,echo,echo");
    let none = "refused,refused,echo,echo,silent,silent,echo,echo";
    assert_eq!(reaches(",host_access=none", false).as_deref(), Some(none));
}

#[test]
fn a_user_without_privileges_can_deny_the_host_as_well() {
    let Some(reached) = reaches(",host_access=none", true) else { return };
    assert_eq!(reached, "refused,refused,echo,echo,silent,silent,echo,echo");
}

#[test]
fn the_hosts_loopback_is_reached_only_if_it_may_be() {
    // Nobody outside listens there, but somebody at the host's loopback address does.
    for (access, results) in [("network", ["silent"; 2]), ("none", ["silent"; 2]), ("loopback", ["echo"; 2])]
    {
        // By the gateway's address, and by those that no host takes from its network.
        let to = [FAR[0], "127.0.0.1", "0.0.0.0"].map(|a| format!("tcp:{a}:7070,udp:{a}:7070")).join(",");
        let words = format!("net-reach probe.to={to}");
        let Some((guest, _outside)) = guest(&words, &format!(",host_access={access}")) else { return };
        let _host = Echoing::new(Echo::at(&[[127, 0, 0, 1].into()], 7070));
        let report = guest.run();
        report.all_passed();
        let found: Vec<&str> = report.fact("net-reach", "results").split(',').collect();
        println!("{access}: {found:?}");
        let others = found[2..].iter().all(|result| *result != "echo");
        assert!(others && found[1] == results[1], "{access}: {found:?}");
        assert_eq!(found[0] == "echo", results[0] == "echo", "{access}: {found:?}");
    }
}

#[test]
fn networks_that_are_denied_are_not_reached() {
    let keys = ",deny=[198.51.100.1/32,2001:db8::9/128]";
    let Some(reached) = reaches(keys, false) else { return };
    assert_eq!(reached, "echo,refused,refused,echo,echo,silent,silent,echo");
}

/// A conversation with the guest through a port of the host.
#[track_caller]
fn talks(address: &str, bytes: usize) {
    let begun = Instant::now();
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 31 + i / 253) as u8).collect();
    loop {
        match talk(address, &sent) {
            Ok(back) => {
                assert!(back == sent, "{} bytes came back changed from {address}", back.len());
                return;
            }
            Err(e) => assert!(begun.elapsed() < PATIENCE, "{address}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn talk(address: &str, sent: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut back = vec![0; sent.len()];
    for (out, back) in sent.chunks(4000).zip(back.chunks_mut(4000)) {
        stream.write_all(out)?;
        stream.read_exact(back)?;
    }
    Ok(back)
}

#[test]
fn ports_of_the_host_lead_into_the_guest() {
    let forward = format!(",forward=[tcp:127.0.0.1:2222:7,tcp:{}:2223:7,udp:127.0.0.1:2224:7]", HOST[1]);
    for access in ["network", "none"] {
        let keys = format!("{forward},host_access={access}");
        let Some((guest, _outside)) = guest("net-serve probe.connections=2", &keys) else { return };
        let mut running = guest.start();
        running.wait_for("# serving", 1);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
        let mut bytes = [0; 16];
        let echoed = (0..60).any(|_| {
            socket.send_to(b"are you there?", "127.0.0.1:2224").expect("a datagram is sent");
            socket.recv(&mut bytes).is_ok_and(|length| &bytes[..length] == b"are you there?")
        });
        assert!(echoed, "no datagram comes back ({access})");
        assert!(TcpStream::connect((HOST[1], 2222)).is_err(), "the port is open at another address");
        talks("127.0.0.1:2222", 100_000);
        talks(&format!("{}:2223", HOST[1]), 100_000);
        running.finish().all_passed();
        nothing_is_left();
    }
}

/// How often the event monitor has this event.
fn events(running: &Running, event: &str) -> usize {
    let text = std::fs::read_to_string(running.file("events")).expect("the event monitor has a file");
    text.matches(&format!("\"event\": \"{event}\"")).count()
        + text.matches(&format!("\"event\":\"{event}\"")).count()
}

const SERVE: &str = "net-serve";
const FORWARD: &str = ",forward=[tcp:127.0.0.1:2222:7]";

/// Ends a guest that serves for ever.
fn ends(running: Running) -> Report {
    running.signal(libc::SIGTERM);
    let report = running.finish();
    report.ended_well();
    nothing_is_left();
    report
}

#[test]
fn passt_is_started_again_when_it_dies_under_traffic() {
    let Some((guest, _outside)) = guest(SERVE, FORWARD) else { return };
    let mut running = guest.start();
    running.wait_for("# serving", 1);
    for round in 1..=3 {
        let mut stream = TcpStream::connect("127.0.0.1:2222").expect("the guest serves");
        stream.write_all(&[7; 1000]).expect("the guest takes it");
        let found = passts();
        assert_eq!(found.len(), 1, "{found:?}");
        // SAFETY: a signal to a process that our VMM started, found in our own network.
        assert_eq!(unsafe { libc::kill(found[0], libc::SIGKILL) }, 0);
        talks("127.0.0.1:2222", 20_000);
        // The connection may be ahead of the words about it.
        until(|| [events(&running, "back-end-lost"), events(&running, "back-end-back")] == [round; 2]);
    }
    let report = ends(running);
    let told = |words| report.messages.contains(words);
    assert!(told("passt was ended by signal 9") && told("starting it again"), "{report}");
}

#[test]
fn nothing_is_left_when_the_vmm_is_killed() {
    let Some((guest, _outside)) = guest(SERVE, "") else { return };
    let mut running = guest.start();
    running.wait_for("# serving", 1);
    assert_eq!(passts().len(), 1);
    running.signal(libc::SIGKILL);
    drop(running);
    nothing_is_left();
}

#[test]
fn a_card_comes_over_the_api_and_goes() {
    let Some(passt) = programs::passt() else { return };
    let _outside = Outside::new();
    let guest = Guest::new("hang").memory("size=256M,shared=on").with_api();
    let guest = guest.with(&["--passt", &passt.display().to_string()]);
    let running = guest.start();
    running.ask(&["ping"]);
    assert!(passts().is_empty());
    running.ask(&["add-net", "user=on,id=first,forward=[tcp:127.0.0.1:2222:7]"]);
    let refused = running.remote(&["add-net", "user=on,id=second,forward=[tcp:127.0.0.1:2222:7]"]);
    let refused = refused.expect_err("the port is taken");
    assert!(refused.contains("2222") && refused.contains("in use"), "{refused}");
    running.ask(&["add-net", "user=on,id=second,forward=[tcp:127.0.0.1:2223:7]"]);
    assert_eq!(passts().len(), 2);
    let card = running.info()["config"]["net"][0].clone();
    assert_eq!(card["forward"], serde_json::json!(["tcp:127.0.0.1:2222:7"]), "{card}");
    // The guest never answers, so they go with the machine; another machine finds the ports free.
    running.ask(&["reboot"]);
    until(|| passts().len() == 2);
    running.ask(&["shutdown"]);
    until(|| passts().is_empty());
    running.ask(&["boot"]);
    assert_eq!(passts().len(), 2);
    ends(running);
}

#[test]
fn without_the_flag_no_program_is_started_later() {
    let _outside = Outside::new();
    let running = Guest::new("hang").memory("size=256M,shared=on").with_api().start();
    let refused = running.remote(&["add-net", "user=on"]).expect_err("nobody starts passt");
    assert!(refused.contains("--passt"), "{refused}");
    assert_eq!(outside::company().len(), 1, "{:?}", outside::company());
    ends(running);
}

#[test]
fn a_saved_machine_goes_on_in_another_process_with_another_passt() {
    let Some((guest, _outside)) = guest(SERVE, FORWARD) else { return };
    let mut running = guest.start();
    running.wait_for("# serving", 1);
    talks("127.0.0.1:2222", 20_000);
    let saved = running.file("saved");
    std::fs::create_dir(&saved).expect("the scratch directory takes another");
    let url = format!("file://{}", saved.display());
    running.ask(&["pause"]);
    running.ask(&["snapshot", &url]);
    running.ask(&["shutdown"]);

    let passt = programs::passt().expect("looked for before");
    let restore = format!("source_url={url},resume=on");
    let restored = running.file("restored");
    let mut command = std::process::Command::new(programs::cloud_hypervisor());
    command.args(["--restore", &restore, "--net", "id=card,forward=[tcp:127.0.0.1:3333:7]"]);
    command.arg("--api-socket").arg(&restored).env("PATH", dirs(&passt));
    let mut child = command.spawn().expect("the VMM starts");
    talks("127.0.0.1:3333", 20_000);
    assert!(TcpStream::connect("127.0.0.1:2222").is_err(), "the old port is still open");
    tests::remote::ask(&restored, &["shutdown-vmm"]).expect("the VMM ends");
    assert!(child.wait().expect("a child can be waited for").success());
    ends(running);
}

/// A `PATH` that begins with where passt is.
fn dirs(passt: &Path) -> std::ffi::OsString {
    let first = passt.parent().expect("a program lies somewhere").to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(first).chain(std::env::split_paths(&path))).expect("a PATH")
}
