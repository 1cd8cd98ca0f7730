//! Debian from its root file system on a disk.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tests::linux::{BzImage, Linux, Pvh, Running};
use tests::place;
use tests::stock::Stock;

/// Checks the file system, as the guest has left it.
fn check(path: &Path) {
    let output = Command::new("e2fsck").args(["-f", "-n"]).arg(path).output().expect("e2fsck runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// How fast TCP is each way; told rather than judged, since hosts differ so much.
fn throughput(guest: &mut Running) {
    const SIZE: usize = 16 << 20;
    let listener = TcpListener::bind("192.168.249.1:0").expect("the tap has its address");
    let port = listener.local_addr().expect("a listener has an address").port();
    let rate = |begun: Instant| SIZE as f64 / 1e6 / begun.elapsed().as_secs_f64();

    let command = format!(
        "dd if=/dev/zero bs=65536 count={} status=none > /dev/tcp/192.168.249.1/{port}",
        SIZE / 65536
    );
    guest.begin(&command);
    let (mut stream, _) = listener.accept().expect("the guest connects");
    let begun = Instant::now();
    let came = std::io::copy(&mut stream, &mut std::io::sink()).expect("the guest sends");
    println!("from the guest: {:.1} MB/s", rate(begun));
    assert_eq!(came, SIZE as u64);
    drop(stream);
    assert_eq!(guest.end(&command).0, 0);

    let command = format!("wc -c < /dev/tcp/192.168.249.1/{port}");
    guest.begin(&command);
    let (mut stream, _) = listener.accept().expect("the guest connects");
    let begun = Instant::now();
    stream.write_all(&vec![0; SIZE]).expect("the guest takes all of it");
    drop(stream);
    assert_eq!(guest.end(&command), (0, SIZE.to_string()));
    println!("to the guest: {:.1} MB/s", rate(begun));
}

#[test]
fn debian_with_the_current_kernel_runs_and_heeds_the_power_button() {
    tests::elsewhere!(Stock::get().debian());
    let disk = place::copy();
    let mut guest = Linux::new("6.12", Pvh)
        .root_on_disk()
        .cpus("boot=2")
        .memory("size=1G")
        .with(&["--disk", &format!("path={},image_type=raw", disk.display())])
        .with(&["--net", "ip=192.168.249.1,mask=255.255.255.0,mac=52:54:00:aa:bb:cc"])
        .boot();
    let (_, state) = guest.try_sh("systemctl is-system-running --wait");
    assert_eq!(
        state,
        "running",
        "{}",
        guest.sh("systemctl --failed --no-pager; journalctl -b -p warning --no-pager | tail -n 50")
    );

    let functions = guest.sh("lspci -n | cut -d ' ' -f 1-3");
    let expected = [
        "00:00.0 0600: 8086:0d57",
        "00:01.0 ffff: 1af4:1043",
        "00:02.0 0180: 1af4:1042",
        "00:03.0 0200: 1af4:1041",
        "00:04.0 ffff: 1af4:1044",
    ];
    assert_eq!(functions.lines().collect::<Vec<_>>(), expected);
    let processors = guest.sh("lscpu");
    let field = |name: &str| {
        let line = processors.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_string()).unwrap_or_else(|| panic!("no {name} in\n{processors}"))
    };
    assert_eq!(field("CPU(s)"), "2");
    assert_eq!(field("Hypervisor vendor"), "KVM");

    // systemd calls the card after its hotplug slot. There is no DHCP server here.
    assert_eq!(guest.sh("ls -1 /sys/class/net"), "ens3\nlo");
    guest.sh("ip addr add 192.168.249.2/24 dev ens3; ip link set ens3 up");
    guest.sh("ping -c 3 -i 0.2 -W 10 192.168.249.1");
    throughput(&mut guest);
    println!("{}", guest.sh("journalctl -b -p warning --no-pager"));
    guest.ask(&["power-button"]);
    guest.ends_well();
    check(&disk);
}

#[test]
fn debian_with_the_old_kernel_keeps_its_files_over_a_reboot() {
    tests::elsewhere!(Stock::get().debian());
    let disk = place::copy();
    let mut guest = Linux::new("6.1", BzImage)
        .root_on_disk()
        .with(&["--disk", &format!("path={},image_type=raw", disk.display())])
        .boot();
    guest.sh("head -c 20000000 /dev/urandom > /root/data; sha256sum /root/data > /root/sum");
    guest.begin("systemctl reboot");
    guest.meet();
    guest.sh("sha256sum -c /root/sum");
    guest.begin("systemctl poweroff");
    guest.ends_well();
    check(&disk);
}
