//! What the programs that serve devices have in common: log, signals, life and end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use device::{Calls, Events, Request, Virtio};
use sandbox::jail::{self, Plan, Side};
use sandbox::{Mode, Role, Set, common};
use spec::Refusal;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::calls::SERVE;
use crate::{Door, Server};

/// How long what is under way may take when the program is told to end.
const LAST_REQUESTS: Duration = Duration::from_secs(30);

/// A program of this kind at work.
pub struct Daemon {
    signals: Signals,
    watchman: Arc<Watchman>,
    calls: Calls,
}

/// A device, and where it is to be served.
pub struct Opened {
    /// For messages.
    pub name: String,
    /// The device.
    pub device: Box<dyn Virtio>,
    /// The way to its front ends.
    pub door: Door,
}

/// The life of `program` after its command line was understood: `prepare` says what is to be served and in what jail, `body` opens it and
/// has the daemon serve it. All its threads are confined as `seccomp` says ([`sandbox::Mode`]) to what is here and `calls`, those of such
/// devices.
pub fn main<T>(
    program: &str,
    seccomp: &str,
    calls: Calls,
    prepare: impl FnOnce() -> Result<(T, Option<Plan>), Refusal>,
    body: impl FnOnce(Daemon, T) -> Result<(), Refusal>,
) -> ExitCode {
    log();
    run(program, seccomp, calls, prepare, body).unwrap_or_else(|e| {
        report(program, &e);
        ExitCode::FAILURE
    })
}

fn run<T>(
    program: &str,
    seccomp: &str,
    calls: Calls,
    prepare: impl FnOnce() -> Result<(T, Option<Plan>), Refusal>,
    body: impl FnOnce(Daemon, T) -> Result<(), Refusal>,
) -> Result<ExitCode, Refusal> {
    let mode = seccomp.parse().map_err(|e| Refusal::invalid(format!("Error parsing --seccomp: {e}")))?;
    let (served, plan) = prepare()?;
    let signals = Signals::take().map_err(|e| Refusal::host("cannot take signals", e))?;
    if let Some(plan) = plan {
        let side = jail::enter(&plan, mode).map_err(|e| Refusal::host("cannot enter the jail", e))?;
        if let Side::Outside(outer) = side {
            drop((served, signals));
            let failed = |e| Refusal::host("error outside of the jail", e);
            let end = outer.wait().map_err(failed)?;
            if let Some(unsaid) = end.unsaid() {
                report(program, &failed(unsaid));
            }
            return Ok(end.follow());
        }
    }
    body(Daemon::new(mode, signals, calls)?, served).map(|()| ExitCode::SUCCESS)
}

/// Closes what the program was started with, apart from the standard streams; on the way into a jail, before anything is opened.
///
/// # Errors
/// The host does not say what there is.
pub fn alone() -> Result<(), Refusal> {
    let inherited = jail::inherited().map_err(|e| Refusal::host("cannot list descriptors", e))?;
    jail::close_all_but(&inherited, &[]);
    Ok(())
}

impl Daemon {
    fn new(mode: Mode, signals: Signals, calls: Calls) -> Result<Daemon, Refusal> {
        sandbox::begin(mode, || {}).map_err(|e| Refusal::host("cannot take signals", e))?;
        confine(calls)?;
        let watchman = Watchman::new().map_err(|e| Refusal::host("cannot watch over threads", e))?;
        Ok(Daemon { signals, watchman, calls })
    }

    /// Serves these devices until SIGTERM or SIGINT comes; SIGHUP calls `look` with the servers in their order. Then hangs up and waits
    /// until what is under way has been answered.
    ///
    /// # Errors
    /// A device could not be served, or a thread ended unexpectedly or does not come to its end.
    pub fn serve(self, devices: Vec<Opened>, look: impl Fn(&[Server])) -> Result<(), Refusal> {
        let events: Arc<dyn Events> = self.watchman.clone();
        let start = |Opened { name, device, door }| {
            Server::start(&name, door, device, events.clone(), self.calls)
                .map_err(|e| Refusal::host(format!("cannot serve {name}"), e))
        };
        let servers = devices.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
        attend(servers, &self.signals, &self.watchman, look)
    }
}

/// Confines the main thread, which opens what is served, and starts a thread for each of it.
fn confine(calls: Calls) -> Result<(), Refusal> {
    let mut sets: Vec<Set> =
        vec![common::EVERYWHERE, common::STARTS_THREADS, common::FILES, SERVE, terminal::calls::OPEN];
    sets.extend([calls.own, calls.registers, calls.upkeep, calls.host].concat());
    (Role { asked_by: "the main thread", sets: &sets }).enter().map_err(|e| {
        Refusal::host(
            "cannot confine the program; --seccomp false runs it without filters of system calls",
            e,
        )
    })
}

/// Logs to standard error, warnings and worse unless `RUST_LOG` in the environment says otherwise.
fn log() {
    let environment = env_logger::Env::default().default_filter_or("warn");
    // It fails only if somebody logs already.
    let _ = env_logger::Builder::from_env(environment).try_init();
}

/// Tells why a program ended, once and in full.
fn report(program: &str, error: &Refusal) {
    // Nothing can be done about a standard error that takes nothing, and the exit status tells the rest.
    let _ = io::stderr().write_all(error.report(program).as_bytes());
}

/// Signals, read instead of suffered. Made before any thread.
struct Signals(File);

impl Signals {
    /// Blocks SIGTERM, SIGINT and SIGHUP in this thread and those it starts. SIGXFSZ is ignored.
    ///
    /// # Errors
    /// What the host answered.
    fn take() -> io::Result<Signals> {
        // SAFETY: ignoring it runs no handler; an image that may not grow any more is then an error of the request.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // SAFETY: a zeroed set is what sigemptyset makes; the calls only read and write the set.
        let fd = unsafe {
            let mut set: libc::sigset_t = zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&raw mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        Ok(Signals(unsafe { File::from_raw_fd(fd) }))
    }

    fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        // The descriptor is non-blocking; an error means that there is none.
        (&self.0).read_exact(&mut info).ok()?;
        Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }
}

/// Hears of threads that ended unexpectedly.
struct Watchman {
    faulty: AtomicBool,
    wake: EventFd,
}

impl Watchman {
    /// One that has heard nothing yet.
    ///
    /// # Errors
    /// No descriptor could be had.
    fn new() -> io::Result<Arc<Watchman>> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Watchman { faulty: AtomicBool::new(false), wake }))
    }
}

impl Events for Watchman {
    fn record(&self, source: &str, event: &str, _properties: &[(&str, &str)]) {
        log::debug!("{source}: {event}");
    }

    fn request(&self, request: Request) {
        if request == Request::Fault {
            self.faulty.store(true, Ordering::SeqCst);
            if let Err(e) = self.wake.write(1) {
                log::error!("cannot wake the main thread: {e}");
            }
        }
    }
}

fn attend(
    mut servers: Vec<Server>,
    signals: &Signals,
    watchman: &Watchman,
    look: impl Fn(&[Server]),
) -> Result<(), Refusal> {
    wait(&servers, signals, watchman, look).map_err(|e| Refusal::host("cannot wait for signals", e))?;
    servers.iter_mut().for_each(Server::finish);
    let begun = Instant::now();
    while let Some(server) = servers.iter().find(|server| !server.is_finished()) {
        if begun.elapsed() > LAST_REQUESTS {
            let text = format!("{}: requests are under way that do not end", server.name());
            // Joining its thread would wait for them.
            std::mem::forget(servers);
            return Err(Refusal::new(spec::Kind::Host, text));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if watchman.faulty.load(Ordering::SeqCst) {
        return Err(Refusal::new(spec::Kind::Bug, "a thread ended unexpectedly; see the log"));
    }
    Ok(())
}

fn wait(
    servers: &[Server],
    signals: &Signals,
    watchman: &Watchman,
    look: impl Fn(&[Server]),
) -> io::Result<()> {
    let epoll = Epoll::new()?;
    let add = |fd: RawFd| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0));
    add(signals.0.as_raw_fd())?;
    add(watchman.wake.as_raw_fd())?;
    let mut ready = [EpollEvent::default(); 2];
    loop {
        match epoll.wait(-1, &mut ready) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
        if watchman.faulty.load(Ordering::SeqCst) {
            return Ok(());
        }
        while let Some(signal) = signals.next() {
            if signal != libc::SIGHUP {
                return Ok(());
            }
            look(servers);
        }
    }
}
