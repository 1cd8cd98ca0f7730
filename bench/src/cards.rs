//! Network cards that another process serves, without a machine: a front end in this process drives the queues, and polls for what comes back.
//!
//! Ours and DPDK's testpmd move frames between the queues and a tap of the bench's own, as in [`crate::network`]. passt has no tap: it answers
//! questions itself, and drops small frames, which are of a protocol that it does not know.

mod front;

use std::fs;
use std::io::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::tests::tap::Tap;

use crate::daemon::{self, Daemon};
use crate::grid::{self, Figures, NetCase, Traffic};
use crate::load::Setting;
use crate::rows::Rows;
use crate::served::unique;
use crate::targets::OURS;
use front::{Card, ENTRIES};

pub(crate) const HOST: [u8; 4] = [10, 11, 13, 1];
pub(crate) const GUEST: [u8; 4] = [10, 11, 13, 2];

/// Has testpmd's second port, the tap, cut segments; the first does not know how. It counts their Ethernet headers to the MTU.
const CUT: &str = "port stop all
port config 1 tx_offload ipv4_cksum on
port config 1 tx_offload tcp_cksum on
port config 1 tx_offload tcp_tso on
port config 1 tx_offload multi_segs on
port start all
port config mtu 1 1514
";

/// A program that serves cards, by its way of being told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    Testpmd,
    Passt,
}

impl Kind {
    /// Whether it does what is asked of it. testpmd's tap takes no segments from the kernel, which cuts them before, and passt has none.
    fn serves(self, case: &NetCase) -> bool {
        match self {
            Kind::Ours => true,
            Kind::Testpmd => case.traffic != Traffic::Receive || !case.is_cut(),
            Kind::Passt => {
                case.traffic == Traffic::Ask || case.traffic == Traffic::Send && case.bytes() == 0.0
            }
        }
    }
}

/// One such program.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    kind: Kind,
    program: PathBuf,
}

/// Those that there are.
pub(crate) fn servers(ours: PathBuf, testpmd: Option<PathBuf>, passt: Option<PathBuf>) -> Vec<Server> {
    let all = [(Kind::Ours, Some(ours)), (Kind::Testpmd, testpmd), (Kind::Passt, passt)];
    all.into_iter().filter_map(|(kind, program)| Some(Server { kind, program: program? })).collect()
}

/// A program at work. What it has comes after it.
struct Served {
    daemon: Daemon,
    tap: Option<Tap>,
    _commands: Option<Commands>,
}

/// A file that is removed on drop.
struct Commands(PathBuf);

impl Drop for Commands {
    fn drop(&mut self) {
        // It may not have been written.
        let _ = fs::remove_file(&self.0);
    }
}

impl Server {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Ours => OURS,
            Kind::Testpmd => "testpmd",
            Kind::Passt => "passt",
        }
    }

    fn serve(&self, case: &NetCase, scratch: &Path) -> Result<Served, Error> {
        let socket = daemon::socket(scratch);
        let path = socket.display();
        let mut command = Command::new(&self.program);
        let name = format!("bench{}", unique());
        let dotted = |[a, b, c, d]: [u8; 4]| format!("{a}.{b}.{c}.{d}");
        let (mut tap, mut commands) = (None, None);
        match self.kind {
            Kind::Ours => {
                tap = Some(Tap::new(&name)?);
                // It gives the tap an address in any case.
                let tap = format!("tap={name},ip={},mask=255.255.255.0", dotted(HOST));
                let line = format!("{tap},socket={path},num_queues=2,queue_size={ENTRIES}");
                command.args(["--net-backend", &line]);
            }
            Kind::Testpmd => {
                // It takes none that has not room for several queues.
                let made = Tap::with_pairs(&name, 2)?;
                made.give_address(HOST)?;
                tap = Some(made);
                testpmd(&mut command, &socket, &name)?;
                if case.is_cut() {
                    let file = Commands(socket.with_extension("commands"));
                    fs::write(&file.0, CUT)?;
                    command.arg("--cmdline-file").arg(&file.0);
                    commands = Some(file);
                }
            }
            Kind::Passt => {
                command.args(["--vhost-user", "--foreground", "--runas", "0", "--socket"]).arg(&socket);
                command.args(["--ipv4-only", "--address", &dotted(GUEST), "--gateway", &dotted(HOST)]);
            }
        }
        // passt takes one connection only.
        let daemon = Daemon::start(command, socket, self.kind != Kind::Passt)?;
        Ok(Served { daemon, tap, _commands: commands })
    }
}

/// Tells testpmd to move frames between socket and tap, by a thread that polls both.
fn testpmd(command: &mut Command, socket: &Path, tap: &str) -> Result<(), Error> {
    let last = std::thread::available_parallelism()?.get() - 1;
    // Neither of its threads is bound to a processor, no more than ours are.
    command.args(["--lcores", &format!("0@(0-{last}),1@(0-{last})")]);
    command.args(["--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"]);
    // Flags of the old kind have the tap do what the frame's header asks for.
    let port = format!("net_vhost0,iface={},queues=1,tso=1,legacy-ol-flags=1", socket.display());
    command.args(["--vdev", &port, "--vdev", &format!("net_tap0,iface={tap}"), "--"]);
    // It ends when it can read no more, but for showing figures now and then.
    command.args(["--forward-mode=io", "--auto-start", "--stats-period=10000"]);
    command.args(["--no-mlockall", "--total-num-mbufs=8192"]);
    Ok(())
}

/// Receives what the tap is flooded with meanwhile.
fn receive(card: &mut Card<'_>, tap: &Tap, case: &NetCase, time: Duration) -> Result<Figures, Error> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| tap.flood_while(case.size, || !done.load(Ordering::Relaxed)));
        let figures = card.receive(time);
        done.store(true, Ordering::Relaxed);
        host.join().expect("it does not panic").and(figures)
    })
}

fn turn(setting: &Setting<'_>, server: &Server, case: &NetCase) -> Result<Figures, Error> {
    let served = server.serve(case, setting.scratch)?;
    let time = Duration::from_millis(setting.millis);
    let mut card = Card::plug(&served.daemon, case)?;
    let figures = match (case.traffic, &served.tap) {
        (Traffic::Ask, _) => card.ask(case.depth, time),
        (Traffic::Send, tap) => card.send(case, tap.as_ref(), time),
        (Traffic::Receive, Some(tap)) => receive(&mut card, tap, case, time),
        (Traffic::Receive, None) => Err(Error::other("there is no tap")),
    }?;
    card.unplug()?;
    Ok(Figures { bytes: case.bytes(), ..figures })
}

/// All rows, by turns, in the network namespace of the calling thread.
pub(crate) fn measure(setting: &Setting<'_>, rows: &mut Rows, servers: &[Server]) {
    for (kind, name) in [(Kind::Testpmd, "testpmd"), (Kind::Passt, "passt")] {
        if !servers.iter().any(|server| server.kind == kind) {
            rows.skip(format!("cards: no {name} was named"));
        }
    }
    let yardstick = servers.get(1).map_or(OURS, Server::name);
    let cases = || grid::net_cases("cards", &[1]).filter(|case| setting.wants(&case.name, true));
    for round in 0..setting.runs {
        for case in cases() {
            for server in servers.iter().filter(|server| server.kind.serves(&case)) {
                match turn(setting, server, &case) {
                    Ok(figures) => figures.note(rows, &case.name, yardstick, server.name(), round),
                    Err(e) => rows.fail(format!("{}: {}: {e}", server.name(), case.name)),
                }
            }
        }
    }
}
