//! A stock kernel with four cards of four kinds: a tap, a tap by descriptor, one that our daemon serves, and one by passt. All stream with
//! checksums while cards come and go and the machine goes on in another process.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use tests::daemon::Daemon;
use tests::linux::{Linux, PATIENCE, Pvh, Running};
use tests::outside::{Echo, Echoing, FAR, HOST, Outside, PORT};
use tests::permissions::{own_mounts, own_root};
use tests::tap::Tap;
use tests::{place, programs};

/// Seconds that a guest may take to its part.
const WAIT: &str = "200";

/// A card: its name, the last byte of its MAC, the guest's address, whom it reaches.
const CARDS: [(&str, u8, &str, &str); 4] = [
    ("tap", 1, "192.168.201.2", "192.168.201.1"),
    ("fd", 2, "192.168.202.2", "192.168.202.1"),
    ("daemon", 3, "192.168.203.2", "192.168.203.1"),
    ("user", 4, HOST[0], FAR[0]),
];

/// One more, which comes and goes.
const EXTRA: (&str, u8, &str, &str) = ("extra", 5, "192.168.205.2", "192.168.205.1");

fn mac(last: u8) -> String {
    format!("52:54:00:aa:bb:{last:02x}")
}

/// Has the guest use a card, which is or comes there, and reach whom it leads to.
fn use_card(guest: &mut Running, (name, last, ours, theirs): (&str, u8, &str, &str)) {
    let mac = mac(last);
    guest.until(&format!("grep -qx {mac} /sys/class/net/*/address"));
    guest.sh(&format!(
        "c=$(basename $(dirname $(grep -lx {mac} /sys/class/net/*/address))); ip addr add {ours}/24 dev $c; ip link set $c up"
    ));
    let begun = Instant::now();
    guest.sh(&format!("ping -c 3 -i 0.2 -W 10 {theirs}"));
    println!("{name}: pinged within {:.1?}", begun.elapsed());
}

/// A stream that goes on in the background: blocks go out, and must come back as they were. One that breaks begins anew, also one that
/// only falls silent: the new passt knows nothing of what the old one still owed, and busybox's `nc -w` gives up on connecting only.
fn stream(name: &str, theirs: &str) -> String {
    format!(
        "(sum=$(sha256sum < /tmp/data); count=0; while [ ! -e /tmp/stop ]; do \
         timeout 20 nc {theirs} {PORT} < /tmp/data > /tmp/back-{name}; \
         if [ $(stat -c %s /tmp/back-{name}) -lt 100000 ]; then usleep 200000; \
         elif [ \"$(sha256sum < /tmp/back-{name})\" = \"$sum\" ]; then count=$((count + 1)); echo $count > /tmp/count-{name}; \
         else echo {name} >> /tmp/wrong; fi; done) > /dev/null 2>&1 &"
    )
}

/// Blocks that came back, of each card.
fn counts(guest: &mut Running) -> Vec<u64> {
    let list = CARDS.map(|(name, ..)| format!("cat /tmp/count-{name} 2> /dev/null || echo 0; echo"));
    let text = guest.sh(&list.join("; "));
    text.split_whitespace().map(|word| word.parse().expect("a number")).collect()
}

/// All streams go on, and nothing was wrong so far.
#[track_caller]
fn all_go_on(guest: &mut Running, when: &str) {
    let (before, begun) = (counts(guest), Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = counts(guest);
        // The second from now on began after it.
        if now.iter().zip(&before).all(|(now, before)| *now >= before + 2) {
            println!("{when}: {before:?} to {now:?} blocks in {:.1?}", begun.elapsed());
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{when}: a stream stands still, {before:?}, {now:?}");
    }
    assert_eq!(guest.sh("cat /tmp/wrong 2> /dev/null || true"), "", "{when}");
}

#[test]
fn four_kinds_of_cards_stream_while_cards_come_and_go_and_the_machine_moves() {
    tests::elsewhere!();
    let Some(passt) = programs::passt() else { return };
    let passt = passt.display().to_string();
    let daemon = programs::vhost_user_net();
    own_mounts();
    own_root();
    let _outside = Outside::new();
    // passt, which is nobody, sends pings.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("our own network");
    let _echo = Echoing::new(Echo::at(&[[0, 0, 0, 0].into()], PORT));
    let tap = Tap::new("held").expect("a tap can be made");
    let address = ["addr", "add", "192.168.202.1/24", "dev", "held"];
    let added = std::process::Command::new("ip").args(address).status();
    assert!(added.is_ok_and(|status| status.success()));
    let held = tap.open_for_others().expect("our own tap");
    let socket = place::scratch().join("socket");
    let keys = "tap=served,ip=192.168.203.1,mask=255.255.255.0,host_mac=2e:00:00:00:00:03";
    let _daemon = Daemon::of(daemon, "--net-backend", &socket, keys);

    let nets = [
        format!(
            "id=tap,mac={},tap=made,ip=192.168.201.1,mask=255.255.255.0,host_mac=2e:00:00:00:00:01",
            mac(1)
        ),
        format!("id=fd,mac={},fd=[{}]", mac(2), held.as_raw_fd()),
        format!("id=daemon,mac={},vhost_user=on,socket={}", mac(3), socket.display()),
        format!("id=user,mac={},user=on", mac(4)),
    ];
    let mut guest = Linux::new("6.12", Pvh).console_pty();
    guest = guest.with(&["--passt", &passt, "--net"]);
    guest = guest.with(&nets.each_ref().map(String::as_str));
    let mut guest = guest.boot();
    assert_eq!(guest.info()["config"]["memory"]["shared"], true);
    CARDS.iter().for_each(|card| use_card(&mut guest, *card));
    guest.sh("head -c 100000 /dev/urandom > /tmp/data");
    for (name, _, _, theirs) in CARDS {
        guest.sh(&stream(name, theirs));
    }
    all_go_on(&mut guest, "at first");

    // One more comes and goes, and one of the four goes and comes.
    let extra = format!("id=extra,mac={},ip={},mask=255.255.255.0", mac(EXTRA.1), EXTRA.3);
    guest.ask(&["add-net", &extra, "--wait", WAIT]);
    use_card(&mut guest, EXTRA);
    guest.ask(&["remove-device", "extra", "--wait", WAIT]);
    guest.ask(&["remove-device", "user", "--wait", WAIT]);
    guest.ask(&["add-net", &nets[3], "--wait", WAIT]);
    use_card(&mut guest, CARDS[3]);
    all_go_on(&mut guest, "after cards came and went");

    let saved = guest.save();
    let fds = format!("copy,net_fds=[fd@[{}]]", held.as_raw_fd());
    let mut guest = saved.restore(&fds, &["--passt", &passt]);
    all_go_on(&mut guest, "in another process");
    guest.sh("touch /tmp/stop");
    let wrong = "dmesg | grep -E 'BUG:|WARNING:|TX timeout|timed out' || true";
    assert_eq!(guest.sh(wrong), "");
    guest.power_off();
}
