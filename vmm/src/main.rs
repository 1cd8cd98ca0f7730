//! `cloud-hypervisor`: reads the options, wires the parts, and tells how it ended.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use api::Monitor;
use api::server::Server;
use catalog::{JailSpec, VmSpec, flags};
use clap::ArgMatches;
use clap::error::ErrorKind;
use hypervisor::kvm::Kvm;
use sandbox::Mode;
use sandbox::jail::Side;
use sandbox::paths::Trail;
use spec::Refusal;
use vmm::api_socket::ApiSocket;
use vmm::cli;
use vmm::control::{Control, Opened, Setup};
use vmm::jail::Cell;
use vmm::launcher;
use vmm::logger;
use vmm::signals::Signals;

fn main() -> ExitCode {
    let matches = match cli::parse() {
        Ok(matches) => matches,
        Err(e) => {
            return match (e.kind(), e.print()) {
                (ErrorKind::DisplayHelp, Ok(())) => ExitCode::SUCCESS,
                (ErrorKind::DisplayHelp, Err(e)) => unprintable(e),
                _ => ExitCode::from(2),
            };
        }
    };
    if matches.get_flag("version") {
        return print(&cli::version(matches.get_count("v") > 0), ExitCode::SUCCESS);
    }
    if flags::is_on(&matches, "check-host") {
        return check_host();
    }
    let result = run(matches);
    terminal::restore_all();
    match result {
        Ok(code) => code,
        Err(e) => {
            report(&e);
            ExitCode::FAILURE
        }
    }
}

/// How long a client may take to read the last answer.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Runs until the machine or the process is asked to end.
fn run(given: ArgMatches) -> Result<ExitCode, Refusal> {
    let matches = &given;
    let text = |name| flags::text(matches, name);
    let parsing = |e: Refusal| e.within("Error parsing config");
    let cell = JailSpec::from_matches(matches).map_err(parsing)?.map(Cell::begin).transpose()?;
    logger::init(
        matches.get_count("v"),
        text("log-file").map(std::path::Path::new),
        text("log-format").unwrap_or(logger::DEFAULT_FORMAT),
    )
    .map_err(|e| Refusal::host("Error setting up logging", e))?;
    let mode = cli::seccomp(matches)?;

    // Sockets and files that we make are the owner's alone.
    // SAFETY: umask takes an integer and cannot fail.
    unsafe { libc::umask(0o077) };
    let parsed = VmSpec::from_matches(matches);
    let restore = VmSpec::restore_from_matches(matches);
    // What the machine is decides what has to be there before the filters are. That it cannot be opened is told when it is to be restored.
    let mut opened = restore.as_ref().ok().and_then(Option::as_ref).map(Opened::new);
    let saved = opened.as_ref().and_then(|opened| opened.as_ref().ok()).map(|opened| &opened.spec);
    let machine = parsed.as_ref().ok().and_then(Option::as_ref).or(saved);
    let by_passt = text("passt").is_some() || machine.is_some_and(VmSpec::is_by_passt);
    if by_passt && cell.is_some() {
        return Err(Refusal::invalid(
            "There is no passt in a jail: --passt and cards with user=on go without --jail",
        ));
    }
    let launcher = by_passt.then(|| launcher::start(text("passt"), mode).map(Arc::new)).transpose()?;
    let signals = Signals::take().map_err(|e| Refusal::host("Error setting up signals", e))?;
    // On the way into a jail more is done than may be done in it.
    if cell.is_none() {
        confine(mode)?;
    }

    let monitor = Monitor::new(cli::event_monitor(matches)?)
        .map_err(|e| Refusal::host("Error opening event monitor", e))?;
    let monitor = Arc::new(monitor);
    monitor.record("vmm", "starting", &[]);

    let mut spec = parsed.map_err(parsing)?;
    if let Some(spec) = &spec {
        spec.check().map_err(|e| parsing(e.within("Failed to validate config")))?;
    }
    let restore = restore.map_err(parsing)?;
    let mut socket = cli::api_socket(matches)?.map(ApiSocket::open).transpose()?;
    if spec.is_none() && restore.is_none() && socket.is_none() {
        return Err(Refusal::invalid(
            "Nothing to do: give --kernel to boot a machine, --restore to go on with a saved one, or --api-socket to wait for \
             requests",
        ));
    }
    let hypervisor = Kvm::open().map_err(|e| {
        Refusal::host("Failed to open hypervisor interface (is hypervisor interface available?)", e)
    })?;
    let mut jail = None;
    if let Some(cell) = cell {
        let mut saved = opened.transpose().map_err(|e| e.within("Error restoring VM"))?;
        let machine = spec.as_mut().or(saved.as_mut().map(|saved| &mut saved.spec));
        let started = std::process::id();
        let entered = cell.enter(matches, machine, restore.as_ref(), mode);
        // Also one that comes no further leaves what is outside to the other.
        if let Some(socket) = &mut socket
            && (matches!(entered, Ok(Side::Inside(_))) || std::process::id() != started)
        {
            socket.inside();
        }
        match entered? {
            Side::Inside(inside) => jail = Some(Arc::new(inside)),
            Side::Outside(outer) => {
                drop((given, signals, monitor, hypervisor, spec, restore, saved));
                let socket = socket.map(ApiSocket::outside);
                let failed = |e| Refusal::host("Error outside of the jail", e);
                let end = outer.wait().map_err(failed)?;
                drop(socket);
                if let Some(unsaid) = end.unsaid() {
                    report(&failed(unsaid));
                }
                return Ok(end.follow());
            }
        }
        opened = saved.map(Ok);
        confine(mode)?;
    }

    let queue = socket.as_ref().map(|_| api::calls::queue()).transpose();
    let queue = queue.map_err(|e| Refusal::host("cannot create the API's queue", e))?;
    let (caller, inbox) = queue.unzip();
    let trail = Trail::default();
    let mut control = Control::new(Setup {
        hypervisor: Arc::new(hypervisor),
        monitor,
        inbox,
        signals,
        launcher,
        no_shutdown: flags::is_on(matches, "no-shutdown"),
        paths: socket.iter().flat_map(ApiSocket::paths).collect(),
        trail: trail.clone(),
        jail,
    })?;
    // Threads that are started later are kept to the machine's paths as well, and those of the API follow.
    let create = |spec| control.create(spec).map_err(|e| e.within("Error creating VM"));
    let created = spec.map(create).transpose();
    let mut server = None;
    if let (Some(socket), Some(caller)) = (&socket, caller) {
        let serving = Server::start(socket.listener()?, caller, trail.follower());
        server = Some(serving.map_err(|e| Refusal::host("cannot start the API's thread", e))?);
    }
    let started = match (created, restore) {
        (Err(e), _) => Err(e),
        (Ok(Some(())), _) => control.boot().map_err(|e| e.within("Error booting VM")),
        (Ok(None), Some(request)) => {
            control.restore(&request, opened).map_err(|e| e.within("Error restoring VM"))
        }
        (Ok(None), None) => Ok(()),
    };
    if started.is_ok()
        && let Some(socket) = &mut socket
    {
        socket.serving();
    }
    let result = started.and_then(|()| control.run());
    control.end();
    if let Some(server) = server {
        server.finish(LAST_ANSWER);
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// Filters the system calls of this thread and, in their own ways, those that it starts.
fn confine(mode: Mode) -> Result<(), Refusal> {
    // Messages are of no use in a terminal that is still raw.
    sandbox::begin(mode, terminal::restore_all).map_err(|e| Refusal::host("Error setting up signals", e))?;
    vmm::confined::control()
}

/// Tells why the process ended, once and in full.
fn report(error: &Refusal) {
    // Nothing can be done about a standard error that takes nothing, and the exit status tells the rest.
    let _ = std::io::stderr().write_all(error.report("Cloud Hypervisor").as_bytes());
    log::error!("{}", spec::bounded(format!("Fatal error: {error:?}")));
}

/// Prints what the host can do; success means that it can run stock guests.
fn check_host() -> ExitCode {
    let report = vmm::check_host::check_host();
    let code = match report.verdict() {
        hypervisor::check::Verdict::NotReady => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    };
    print(&report.to_string(), code)
}

/// Prints a text that was asked for; a standard output that does not take it is a failure.
fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(e) => unprintable(e),
    }
}

fn unprintable(e: std::io::Error) -> ExitCode {
    report(&Refusal::host("Cannot write to standard output", e));
    ExitCode::FAILURE
}
