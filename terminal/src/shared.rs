//! A terminal as a device has it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use device::limit::LogLimit;
use device::{Attached, DeviceError, Workers, guest_warn};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::outlet::{Loss, Manner, Outlet};
use crate::pump::{Ends, Pump};
use crate::ring::Ring;
use crate::socket::Listener;
use crate::tty::{self, Raw};
use crate::{ConsoleMode, Input, Mode, TerminalError, pty};

/// When a terminal goes, how long its last output is offered to somebody who takes none of it, and to somebody who is slow.
const PARTING: Duration = Duration::from_secs(1);
const PARTING_TOTAL: Duration = Duration::from_secs(10);

/// The host side of one console. Cheap to clone; everything goes with the last clone.
#[derive(Clone)]
pub struct Terminal(Arc<Shared>);

pub(crate) struct Shared {
    out: Mutex<Out>,
    /// Written to when the pump has something to look at.
    pub(crate) kick: EventFd,
    paused: AtomicBool,
    terminal: Option<Arc<OwnedFd>>,
    path: Option<PathBuf>,
    /// The file of mode `File`, for messages.
    output: Option<PathBuf>,
    ends: Mutex<Option<Ends>>,
    /// Whether there is another end to serve.
    served: bool,
    pub(crate) limit: LogLimit,
    // Goes last, after the output.
    _raw: Option<Raw>,
}

struct Out {
    to: Option<Outlet>,
    ring: Ring,
    /// What happens to output while there is nobody to take it.
    keep: bool,
    /// Whether the pump was asked to go on writing.
    waiting: bool,
}

impl Terminal {
    /// Opens what the mode says; `None` for [`Mode::Off`].
    ///
    /// # Errors
    /// What the host refused, naming the path.
    pub fn open(mode: &ConsoleMode) -> Result<Option<Self>, TerminalError> {
        let mut shared = Shared::new()?;
        let out = shared.out.get_mut().unwrap_or_else(PoisonError::into_inner);
        let ends = match mode.mode {
            Mode::Off => return Ok(None),
            Mode::Null => None,
            Mode::File => {
                let path = mode.file.as_ref().ok_or(TerminalError::PathMissing("file"))?;
                // A FIFO is not waited for: nobody could stop us while we do.
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                    .open(path)
                    .map_err(|source| match source.raw_os_error() {
                        Some(libc::ENXIO) => TerminalError::NoReader(path.clone()),
                        _ => TerminalError::Create { path: path.clone(), source },
                    })?;
                shared.output = Some(path.clone());
                out.to = Some(Outlet { fd: Arc::new(file.into()), manner: Manner::Write, loss: Loss::Retry });
                None
            }
            Mode::Tty => {
                let standard = tty::standard()?;
                let output = standard.pollable.then(|| standard.outlet.fd.clone());
                shared.terminal = standard.raw.is_some().then(|| standard.outlet.fd.clone());
                shared._raw = standard.raw;
                out.to = Some(standard.outlet);
                (output.is_some() || standard.input.is_some())
                    .then_some(Ends::Tty { input: standard.input, output })
            }
            Mode::Pty => {
                let (main, path) = pty::open().map_err(TerminalError::Pty)?;
                let main = Arc::new(main);
                out.keep = true;
                shared.terminal = Some(main.clone());
                shared.path = Some(path);
                Some(Ends::pty(main).map_err(TerminalError::Event)?)
            }
            Mode::Socket => {
                let path = mode.socket.as_ref().ok_or(TerminalError::PathMissing("socket"))?;
                out.keep = true;
                Some(Ends::Socket { listener: Listener::bind(path)?, client: None, ended: false })
            }
        };
        shared.served = ends.is_some();
        shared.ends = Mutex::new(ends);
        Ok(Some(Terminal(Arc::new(shared))))
    }

    /// Standard output, without input and with the terminal's settings left as they are.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn standard_output() -> Result<Self, TerminalError> {
        let mut shared = Shared::new()?;
        let (outlet, pollable) = tty::output(io::stdout().as_fd()).map_err(TerminalError::Stdout)?;
        let output = pollable.then(|| outlet.fd.clone());
        shared.out.get_mut().unwrap_or_else(PoisonError::into_inner).to = Some(outlet);
        shared.served = output.is_some();
        shared.ends = Mutex::new(output.map(|fd| Ends::Tty { input: None, output: Some(fd) }));
        Ok(Terminal(Arc::new(shared)))
    }

    /// Writes output; never waits. What is not taken at once is kept as [`crate::ring`] says, or dropped if nobody can ever read it.
    pub fn write(&self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Where a user finds the terminal, in mode `Pty`; to be written back into the configuration.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Columns and rows of the terminal at the other end; `None` without one, or when it has not said.
    ///
    /// There are two ways to learn of a change. The kernel signals SIGWINCH for the terminal that controls the program, which
    /// whoever gets it passes on through [`device::grant::Terminal::resized`]. For any other terminal, a pseudo-terminal above
    /// all, no signal reaches us, and the size is looked at again when somebody opens it or types: whoever types after a change
    /// sees it take effect before the key arrives ([`Input::resized`]). This costs no process and no timer.
    pub fn size(&self) -> Option<(u16, u16)> {
        self.0.size()
    }

    /// Serves the other end, on the thread that quiet devices share: input goes to `input`, and kept output is written when the other end
    /// takes it. Ends with the [`Session`]; another may follow.
    ///
    /// # Errors
    /// A session is there already, or no thread could be had.
    pub fn serve(&self, workers: &Workers, input: Arc<dyn Input>) -> Result<Session, DeviceError> {
        let session = self.begin(workers, input)?;
        session.settled().map(|()| session)
    }

    /// The same without waiting for the thread: [`Session::settle`] does.
    ///
    /// # Errors
    /// A session is there already, or no descriptor could be had.
    pub fn begin(&self, workers: &Workers, input: Arc<dyn Input>) -> Result<Session, DeviceError> {
        let shared = self.0.clone();
        if !shared.served {
            return Ok(Session { pump: None });
        }
        let taken = || DeviceError { what: "the terminal is in use".into(), source: None };
        let ends = shared.ends().take().ok_or_else(taken)?;
        // From here on the pump gives them back.
        let pump = Pump::new(ends, shared, input);
        let pump = workers.shared()?.begin(pump).map_err(unserved)?;
        Ok(Session { pump: Some(pump) })
    }

    /// Goes on reading input after [`Input::room`] was 0. Cheap when it was not.
    pub fn resume(&self) {
        // Looked at first, so that the usual case writes nothing that other processors hold.
        if self.0.paused() && self.0.paused.swap(false, Ordering::AcqRel) {
            self.0.kick();
        }
    }
}

/// Serving one terminal for one device. Dropping it stops input; output goes on as far as it needs no waiting.
pub struct Session {
    pump: Option<Attached<Pump>>,
}

impl Session {
    /// Waits until the other end is served, if there is a session; one that cannot be ends, and another may begin.
    ///
    /// # Errors
    /// No thread could be had, or it cannot wait for the other end.
    pub fn settle(slot: &mut Option<Session>) -> Result<(), DeviceError> {
        let settled = slot.as_ref().map_or(Ok(()), Session::settled);
        if settled.is_err() {
            *slot = None;
        }
        settled
    }

    fn settled(&self) -> Result<(), DeviceError> {
        self.pump.as_ref().map_or(Ok(()), Attached::settle).map_err(unserved)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What is left of it is dropped here, and its ends are there for another.
        drop(self.pump.take().and_then(Attached::stop));
    }
}

fn unserved(e: io::Error) -> DeviceError {
    DeviceError::new("cannot serve a terminal", e)
}

impl Shared {
    /// A terminal that leads nowhere yet.
    fn new() -> Result<Self, TerminalError> {
        Ok(Shared {
            out: Mutex::new(Out { to: None, ring: Ring::default(), keep: false, waiting: false }),
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(TerminalError::Event)?,
            paused: AtomicBool::new(false),
            terminal: None,
            path: None,
            output: None,
            ends: Mutex::new(None),
            served: false,
            limit: LogLimit::new(),
            _raw: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ends(&self) -> MutexGuard<'_, Option<Ends>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self) {
        if let Err(e) = self.kick.write(1) {
            log::error!("cannot signal a terminal: {e}");
        }
    }

    fn write(&self, mut bytes: &[u8]) {
        let mut out = self.lock();
        while !bytes.is_empty() && out.ring.is_empty() {
            match self.attempt(&mut out, bytes) {
                Some(count) => bytes = &bytes[count..],
                None => break,
            }
        }
        if bytes.is_empty() || (out.to.is_none() && !out.keep) {
            return;
        }
        out.ring.push(bytes);
        if out.to.is_some() && !out.waiting {
            out.waiting = true;
            self.kick();
        }
    }

    /// Writes once; `None` when nothing more can be written now. Bytes that are given up count as written.
    fn attempt(&self, out: &mut Out, bytes: &[u8]) -> Option<usize> {
        let outlet = out.to.as_ref()?;
        match outlet.write(bytes) {
            Ok(count) => Some(count),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) => {
                let loss = outlet.loss;
                match loss {
                    Loss::Keep => log::debug!("console: the other end went away: {e}"),
                    _ => match &self.output {
                        Some(path) => {
                            guest_warn!(self.limit, "console output to {} is dropped: {e}", path.display());
                        }
                        None => guest_warn!(self.limit, "console output is dropped: {e}"),
                    },
                }
                if loss == Loss::Retry {
                    return Some(bytes.len());
                }
                out.to = None;
                out.waiting = false;
                None
            }
        }
    }

    fn drain(&self, out: &mut Out) {
        while !out.ring.is_empty() {
            let ring = std::mem::take(&mut out.ring);
            let wrote = self.attempt(out, ring.front());
            out.ring = ring;
            match wrote {
                Some(count) => out.ring.consume(count),
                None if out.to.is_some() => {
                    out.waiting = true;
                    return;
                }
                None => {
                    if !out.keep {
                        out.ring.clear();
                    }
                    return;
                }
            }
        }
        out.waiting = false;
    }

    /// Somebody is there to take output.
    pub(crate) fn connect(&self, outlet: Outlet) {
        let mut out = self.lock();
        out.to = Some(outlet);
        self.drain(&mut out);
    }

    /// Nobody is.
    pub(crate) fn disconnect(&self) {
        let mut out = self.lock();
        out.to = None;
        out.waiting = false;
    }

    /// Goes on writing what is kept.
    pub(crate) fn resume_output(&self) {
        self.drain(&mut self.lock());
    }

    pub(crate) fn waiting(&self) -> bool {
        self.lock().waiting
    }

    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        tty::size(self.terminal.as_ref()?.as_raw_fd())
    }

    /// How much input `input` takes; at 0, reading pauses until [`Terminal::resume`].
    pub(crate) fn room(&self, input: &dyn Input) -> usize {
        let room = input.room();
        if room != 0 {
            self.paused.store(false, Ordering::Release);
            return room;
        }
        self.paused.store(true, Ordering::Release);
        // Room made between the two looks would not be noticed otherwise.
        let room = input.room();
        if room != 0 {
            self.paused.store(false, Ordering::Release);
        }
        room
    }

    pub(crate) fn paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let out = self.out.get_mut().unwrap_or_else(PoisonError::into_inner);
        let last = Instant::now() + PARTING_TOTAL;
        let mut end = Instant::now() + PARTING;
        while let Some(outlet) = &out.to
            && !out.ring.is_empty()
        {
            let left = end.min(last).saturating_duration_since(Instant::now());
            match outlet.ready(left).and_then(|_| outlet.write(out.ring.front())) {
                Ok(count) => {
                    out.ring.consume(count);
                    end = Instant::now() + PARTING;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !left.is_zero() => {}
                Err(e) => {
                    log::warn!("the end of a console's output is lost: {e}");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
