//! A card whose frames passt moves: a back end that nobody here wrote.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::probe::{Guest, Running};
use tests::{programs, tap};

/// passt at work; killed on drop.
struct Passt(Child);

impl Passt {
    /// Starts it for a guest at 192.168.249.2.
    fn start(program: &Path, socket: &Path) -> Passt {
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new(program);
        command.args(["--vhost-user", "--foreground", "--runas", "0", "--socket"]).arg(socket);
        command.args(["--ipv4-only", "--address", "192.168.249.2", "--gateway", "192.168.249.1"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let passt = Passt(child.expect("passt starts"));
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "passt does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        passt
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Both fail only if it has ended meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest whose card passt serves, unless there is none.
fn guest(words: &str) -> Option<(Running, Passt)> {
    let program = programs::passt()?;
    tap::enter_private_network().expect("these tests run as root");
    let guest = Guest::new(words).memory("size=256M,shared=on").with_api();
    let guest = guest.option("probe.ip=192.168.249.2 probe.host=192.168.249.1 probe.mac=52:54:00:aa:bb:cc");
    let socket = guest.file("socket");
    let passt = Passt::start(&program, &socket);
    let net = format!("vhost_user=on,socket={},mac=52:54:00:aa:bb:cc,mtu=1400", socket.display());
    Some((guest.option("probe.mtu=1400").with(&["--net", &net]).start(), passt))
}

#[test]
fn passt_answers_the_guest_and_commands_are_ours() {
    let Some((running, _passt)) = guest("net-info,net-arp,net-control,net-arp") else { return };
    running.finish().all_passed();
}
