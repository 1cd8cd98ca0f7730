//! SSH with a stock Debian over its vsock: systemd listens there, `ch-remote vsock-connect` is the way in, and all of it is there after each of many
//! snapshots and restores.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::linux::{Linux, PATIENCE, Pvh, Running};
use tests::stock::Stock;
use tests::{place, remote};

/// Restores, each of a machine that was saved while a session was open: see `VIRGA_SSH_ROUNDS`.
const ROUNDS: u32 = 10;

/// What a stock systemd needs to have a stock sshd serve vsock: an instance for each connection.
const UNITS: &str = "mkdir -p /run/sshd /run/systemd/system && cd /run/systemd/system && \
    printf '[Socket]\\nListenStream=vsock::22\\nAccept=yes\\n' > ssh-vsock.socket && \
    printf '[Service]\\nExecStart=-/usr/sbin/sshd -i -o AuthorizedKeysFile=/run/key.pub -o UsePAM=no\\nStandardInput=socket\\n' \
        > ssh-vsock@.service && systemctl daemon-reload && systemctl start ssh-vsock.socket";

/// The client, on its way to a machine.
struct Client {
    ssh: PathBuf,
    key: PathBuf,
}

impl Client {
    fn new() -> Client {
        let key = place::scratch().join("key");
        let keygen = Stock::get().workshop().join("wrappers/ssh-keygen");
        let made = Command::new(keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.expect("ssh-keygen starts").success());
        Client { ssh: Stock::get().workshop().join("wrappers/ssh"), key }
    }

    fn command(&self, api: &Path, what: &str) -> Command {
        let remote = remote::program();
        let program = Path::new(remote.get_program()).display();
        let proxy = format!("ProxyCommand={program} --api-socket {} vsock-connect 22", api.display());
        let mut command = Command::new(&self.ssh);
        command.args(["-F", "none", "-o", &proxy, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
        // The least work for emulated processors.
        command.args(["-o", "KexAlgorithms=curve25519-sha256", "-i"]).arg(&self.key);
        command.args(["root@guest", what]).stdin(Stdio::null());
        command
    }

    /// Runs a command in the guest.
    #[track_caller]
    fn sh(&self, api: &Path, what: &str) -> String {
        let output = self.command(api, what).output().expect("ssh starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ssh: {}: {said}", output.status);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A session that stays, and what its command says first.
    #[track_caller]
    fn stay(&self, api: &Path, what: &str) -> (Child, String) {
        let mut command = self.command(api, &format!("{what}; sleep 10000"));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("ssh starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("the session says something");
        (child, line.trim().to_owned())
    }
}

/// Waits in the guest until no session is left but the one that asks.
const ALONE: &str = "for i in $(seq 300); do n=$(systemctl list-units --state=running -q 'ssh-vsock@*' | wc -l); \
    [ $n = 1 ] && break; sleep 0.2; done; echo $n sessions";

/// Saved with a session open and restored; the session ends on both sides, and there is a way in again.
fn once_more(guest: Running, mut session: Child, client: &Client) -> (Running, Child) {
    let saved = guest.save();
    // The client hears of it: its connection ended with the VMM.
    let begun = Instant::now();
    while session.try_wait().expect("a child can be waited for").is_none() {
        assert!(begun.elapsed() < PATIENCE, "the client of a machine that is gone waits for it");
        std::thread::sleep(Duration::from_millis(20));
    }
    let guest = saved.restore("mmap", &[]);
    // So does the guest.
    let (session, said) = client.stay(guest.socket(), ALONE);
    assert_eq!(said, "1 sessions");
    saved.forget();
    (guest, session)
}

#[test]
fn ssh_over_vsock_works_after_each_restore() {
    tests::elsewhere!();
    let rounds = std::env::var("VIRGA_SSH_ROUNDS").map_or(ROUNDS, |n| n.parse().expect("a number of rounds"));
    let client = Client::new();
    let mut guest = Linux::new("6.12", Pvh)
        .debian()
        .console_pty()
        .memory("size=256M")
        .with(&["--vsock", &format!("cid=77,socket={}", place::scratch().join("v").display())])
        .boot();
    let key = std::fs::read_to_string(client.key.with_extension("pub")).expect("a key was made");
    guest.sh("modprobe vmw_vsock_virtio_transport");
    guest.sh(&format!("echo '{}' > /run/key.pub; {UNITS}", key.trim()));
    assert_eq!(client.sh(guest.socket(), "echo $(hostname) $USER"), "virga-guest root");
    let begun = Instant::now();
    let (mut session, said) = client.stay(guest.socket(), ALONE);
    assert_eq!(said, "1 sessions");
    for round in 1..=rounds {
        (guest, session) = once_more(guest, session, &client);
        println!("{round} restores after {:.1} s", begun.elapsed().as_secs_f32());
    }
    let complaints = guest.sh("dmesg | grep -E 'BUG:|WARNING:|blocked for more' || true");
    assert_eq!(complaints, "");
    guest.power_off();
    session.wait().expect("the session ends with the machine");
}
