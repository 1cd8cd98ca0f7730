//! A network card of a stock kernel; its partner is a tap in the story's own network.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tests::image;
use tests::linux::{Linux, Pvh, Running};
use tests::stock::Stock;

const HOST: &str = "192.168.249.1";
const GUEST: &str = "192.168.249.2";

/// Takes the one connection that the guest makes.
fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("the guest connects");
    stream.set_read_timeout(Some(tests::linux::PATIENCE)).expect("a time limit can be set");
    stream
}

fn listen(host: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((host, 0)).expect("the tap has its address");
    let port = listener.local_addr().expect("a listener has an address").port();
    (listener, port)
}

fn megabytes_per_second(bytes: usize, begun: Instant) -> f64 {
    bytes as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

fn seconds_up(guest: &mut Running) -> f64 {
    guest.sh("cut -d ' ' -f 1 /proc/uptime").parse().expect("a number of seconds")
}

#[test]
fn an_old_kernel_by_pvh_talks_to_the_host_through_two_pairs_of_queues() {
    tests::elsewhere!();
    let keys = format!("ip={HOST},mask=255.255.255.0,mac=52:54:00:aa:bb:cc,num_queues=4,mtu=1400,id=card");
    let mut guest = Linux::new("6.1", Pvh).cpus("boot=2").with(&["--net", &keys]).boot();
    assert_eq!(
        guest.sh("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu"),
        "52:54:00:aa:bb:cc\n1400"
    );
    guest.sh(&format!("ip addr add {GUEST}/24 dev eth0; ip link set eth0 up"));
    guest.sh(&format!("ping -c 5 -i 0.2 -W 10 {HOST}"));
    guest.sh(&format!("ping -c 2 -s 8000 -W 10 {HOST}"));
    assert_eq!(guest.sh("ls -d /sys/class/net/eth0/queues/rx-* | wc -l"), "2");
    there_and_back(&mut guest, HOST, &NC);
    a_pause(&mut guest);
    // They are named after the queues: two in, two out.
    let interrupts = guest
        .sh("grep -E \"$(basename $(readlink /sys/class/net/eth0/device))-(in|out)put\" /proc/interrupts");
    assert_eq!(interrupts.lines().count(), 4, "{interrupts}");
    let counters: serde_json::Value =
        serde_json::from_str(&guest.ask(&["counters"])).expect("vm.counters is JSON");
    let sent = counters["card"]["tx_bytes"].as_u64().unwrap_or_default();
    assert!(sent > SIZE as u64, "{counters}");
    guest.power_off();
}

const SIZE: usize = 8 << 20;

/// How a guest gets a file, and sends it.
pub(crate) struct Tools {
    get: &'static str,
    put: &'static str,
}

/// Of busybox.
pub(crate) const NC: Tools = Tools { get: "nc {to} < /dev/null > /tmp/data", put: "nc {to} < /tmp/data" };
/// Of bash.
const BASH: Tools = Tools { get: "cat < /dev/tcp/{to} > /run/data", put: "cat /run/data > /dev/tcp/{to}" };

impl Tools {
    /// The command, with the address that it goes to.
    fn command(&self, words: &str, host: &str, port: u16) -> String {
        let between = if words.contains("/dev/tcp") { '/' } else { ' ' };
        words.replace("{to}", &format!("{host}{between}{port}"))
    }
}

/// Both ways by TCP, unchanged; `host` is the address of the host's end.
pub(crate) fn there_and_back(guest: &mut Running, host: &str, tools: &Tools) {
    let data = image::pattern(7, 0, SIZE as u64 / image::SECTOR);
    let (listener, port) = listen(host);
    let receive = tools.command(tools.get, host, port);
    guest.begin(&receive);
    let mut stream = accept(&listener);
    let begun = Instant::now();
    stream.write_all(&data).expect("the guest takes all of it");
    drop(stream);
    let (status, output) = guest.end(&receive);
    assert_eq!(status, 0, "{output}");
    println!("to the guest: {:.1} MB/s", megabytes_per_second(SIZE, begun));
    back(guest, host, tools, || {});
}

/// The guest sends what [`there_and_back`] sent it; `meanwhile` is called when some of it has come.
pub(crate) fn back(guest: &mut Running, host: &str, tools: &Tools, meanwhile: impl FnOnce()) {
    let (listener, port) = listen(host);
    let send = tools.command(tools.put, host, port);
    guest.begin(&send);
    let mut stream = accept(&listener);
    let begun = Instant::now();
    let mut back = vec![0; SIZE];
    let (first, rest) = back.split_at_mut(SIZE / 8);
    stream.read_exact(first).expect("the guest sends some of it");
    meanwhile();
    stream.read_exact(rest).expect("the guest sends all of it");
    println!("from the guest: {:.1} MB/s", megabytes_per_second(SIZE, begun));
    let data = image::pattern(7, 0, SIZE as u64 / image::SECTOR);
    assert!(data == back, "what came back is something else");
    drop(stream);
    guest.end(&send);
}

/// Bytes of a frame to the guest, on average, while something is done.
fn average_frame(guest: &mut Running, work: impl FnOnce(&mut Running)) -> u64 {
    let count = |guest: &mut Running| {
        let text = guest.ask(&["counters"]);
        let counters: serde_json::Value = serde_json::from_str(&text).expect("vm.counters is JSON");
        ["rx_bytes", "rx_frames"].map(|name| counters["card"][name].as_u64().expect("a number"))
    };
    let before = count(guest);
    work(guest);
    let after = count(guest);
    (after[0] - before[0]) / (after[1] - before[1])
}

#[test]
fn a_current_kernel_switches_offloads_at_run_time() {
    tests::elsewhere!(Stock::get().debian());
    let keys = format!("ip={HOST},mask=255.255.255.0,mac=52:54:00:aa:bb:cc,num_queues=4,id=card");
    let mut guest = Linux::new("6.12", Pvh).debian().cpus("boot=2").with(&["--net", &keys]).boot();
    // Character n is feature n: mergeable buffers, and UDP datagrams packed, both ways.
    let features = guest.sh("cat /sys/class/net/ens3/device/features");
    for feature in [15, 54, 55, 56] {
        assert_eq!(features.chars().nth(feature), Some('1'), "feature {feature} of {features}");
    }
    guest.sh(&format!("ip addr add {GUEST}/24 dev ens3; ip link set ens3 up"));
    guest.sh(&format!("ping -c 3 -i 0.2 -W 10 {HOST}"));
    for (state, most) in [("on", 65_600), ("off", 1514), ("on", 65_600)] {
        guest.sh(&format!("ethtool -K ens3 rx-gro-hw {state}"));
        let average = average_frame(&mut guest, |guest| there_and_back(guest, HOST, &BASH));
        println!("large frames {state}: {average} bytes on average");
        assert!(average <= most, "{average} bytes with large frames {state}");
    }
    assert_eq!(guest.sh("dmesg | grep -iE 'BUG:|WARNING:' || true"), "");
    guest.power_off();
}

/// While the machine is paused nothing comes, its clock stands still, and the connection survives.
fn a_pause(guest: &mut Running) {
    const LINES: u32 = 40;
    let (listener, port) = listen(HOST);
    let send = format!("for i in $(seq 1 {LINES}); do echo $i; usleep 100000; done | nc {HOST} {port}");
    let before = seconds_up(guest);
    let begun = Instant::now();
    guest.begin(&send);
    let mut lines = BufReader::new(accept(&listener));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line comes");
    assert_eq!(line, "1\n");
    guest.ask(&["pause"]);
    assert_eq!(guest.info()["state"], "Paused");

    // What was under way may still arrive.
    let stream = lines.get_ref().try_clone().expect("a socket can be duplicated");
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit can be set");
    let mut count = 1;
    while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
        count += 1;
    }
    assert!(count < LINES, "it was not paused");
    let pause = Duration::from_secs(8);
    std::thread::sleep(pause);
    assert!(lines.read_line(&mut line).is_err(), "a machine that is paused has sent something");

    guest.ask(&["resume"]);
    assert_eq!(guest.info()["state"], "Running");
    stream.set_read_timeout(Some(tests::linux::PATIENCE)).expect("a time limit can be set");
    while lines.read_line(&mut line).expect("more comes") > 0 {
        count += 1;
    }
    let expected: String = (1..=LINES).map(|i| format!("{i}\n")).collect();
    assert_eq!(line, expected);
    assert_eq!(count, LINES);
    drop((lines, stream)); // the guest's nc waits for our end
    let (status, output) = guest.end(&send);
    assert_eq!(status, 0, "{output}");
    let inside = seconds_up(guest) - before;
    let outside = begun.elapsed().as_secs_f64();
    println!("between the same two moments: {inside:.2} s inside, {outside:.2} s outside");
    assert!(
        inside < outside - 0.8 * pause.as_secs_f64(),
        "the guest's clock went on: {inside} of {outside} s"
    );
}
