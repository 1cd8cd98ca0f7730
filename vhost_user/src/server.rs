//! A device on a socket: a thread that serves one front end after the other.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use device::guest_warn;
use device::limit::LogLimit;
use device::ram::RamMap;
use device::{Calls, Events, Ram, Request, Virtio, VirtioGrant, Workers};
use sandbox::{Role, common};
use terminal::socket::connect;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::PeerError;
use crate::calls::SERVE;
use crate::channel::Channel;
use crate::door::Door;
use crate::link::Link;
use crate::session::{Served, Session};

/// What front ends may make us log.
pub(crate) static LIMIT: LogLimit = LogLimit::new();

/// How long to leave a socket alone that gives no connection.
const PAUSE: Duration = Duration::from_millis(100);

const LISTENER: u64 = 0;
const COMMANDS: u64 = 1;
const PEER: u64 = 2;
const BELL: u64 = 3;

type Command = Box<dyn FnOnce(&dyn Virtio) + Send>;

/// A device that is served on a socket. Dropping it ends that, and removes the socket's file if it is ours.
pub struct Server {
    name: String,
    /// Its absence tells the thread to end.
    commands: Option<Sender<Command>>,
    wake: EventFd,
    /// It gives the way to front ends back: who waits for the thread removes the socket's file.
    thread: Option<JoinHandle<Door>>,
}

impl Server {
    /// Serves a device from now on; `name` is for messages, and `calls` are those of such devices.
    ///
    /// # Errors
    /// No descriptor or thread could be had.
    pub fn start(
        name: &str,
        door: Door,
        mut device: Box<dyn Virtio>,
        events: Arc<dyn Events>,
        calls: Calls,
    ) -> io::Result<Server> {
        let ram = Ram::new(RamMap::new());
        let link = Arc::new(Link::new(name, device.queue_sizes().len()));
        device.connect(VirtioGrant {
            ram: ram.clone(),
            link: link.clone(),
            workers: Workers::new(events.clone()).of(name, device.calls()),
            events: events.clone(),
        });
        let (commands, inbox) = channel();
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        let watch = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        if let Door::Ours(listener) = &door {
            watch(listener.socket().as_raw_fd(), LISTENER)?;
        }
        watch(wake.as_raw_fd(), COMMANDS)?;
        watch(bell.as_raw_fd(), BELL)?;
        let served = Served { name: name.to_owned(), device, ram, link };
        let host = Host { served, door, epoll, wake: wake.try_clone()?, bell, inbox };
        let thread = std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || {
            let name = host.served.name.clone();
            let run = || {
                let mut sets = vec![common::EVERYWHERE, common::STARTS_THREADS, SERVE];
                sets.extend([calls.own, calls.registers, calls.upkeep].concat());
                (Role { asked_by: &name, sets: &sets }).enter().map_err(io::Error::other)?;
                host.run()
            };
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(())) => return host.door,
                Ok(Err(e)) => log::error!("{name}: cannot serve any more: {e}"),
                Err(_) => log::error!("{name}: its thread panicked"),
            }
            events.request(Request::Fault);
            host.door
        })?;
        Ok(Server { name: name.to_owned(), commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does something with the device while none of its queues is served, and returns the answer.
    ///
    /// # Errors
    /// The server has ended.
    pub fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Virtio) -> R + Send + 'static,
    ) -> io::Result<R> {
        let gone = || io::Error::other(format!("{} is not served any more", self.name));
        let (answer, wait) = channel();
        // Whoever asks waits for the answer.
        let command: Command = Box::new(move |device| drop(answer.send(work(device))));
        self.commands.as_ref().and_then(|c| c.send(command).ok()).ok_or_else(gone)?;
        self.wake.write(1)?;
        wait.recv().map_err(|_| gone())
    }

    /// Begins to end: hangs up, and answers what is under way.
    pub fn finish(&mut self) {
        self.commands = None;
        if let Err(e) = self.wake.write(1) {
            log::error!("{}: cannot wake its thread: {e}", self.name);
        }
    }

    /// Whether it has ended, which takes as long as what is under way.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.finish();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("{}: its thread panicked", self.name);
        }
    }
}

/// What the thread owns.
struct Host {
    served: Served,
    door: Door,
    epoll: Epoll,
    wake: EventFd,
    bell: EventFd,
    inbox: Receiver<Command>,
}

/// Whether to go on.
enum Next {
    Go,
    End,
}

impl Host {
    /// Serves until told to end.
    fn run(&self) -> io::Result<()> {
        let mut ready = [EpollEvent::default(); 4];
        // Whether it was said that nobody listens.
        let mut alone = false;
        loop {
            let mut patience = None;
            if let Door::Theirs(path) = &self.door {
                // Also after somebody who hung up at once.
                patience = Some(PAUSE);
                match connect(path) {
                    Ok(stream) => {
                        alone = false;
                        if matches!(self.meet(stream)?, Next::End) {
                            return Ok(());
                        }
                    }
                    Err(e) if !alone => {
                        alone = true;
                        let (name, path) = (&self.served.name, path.display());
                        guest_warn!(LIMIT, "{name}: nobody listens at {path} ({e}); waiting for somebody");
                    }
                    Err(_) => {}
                }
            }
            for event in wait(&self.epoll, patience, &mut ready)? {
                let next = match event.data() {
                    LISTENER => self.accept()?,
                    COMMANDS => self.commands(|work| work(&*self.served.device)),
                    _ => {
                        // Memory of a front end that is gone.
                        let _ = self.bell.read();
                        Next::Go
                    }
                };
                if matches!(next, Next::End) {
                    return Ok(());
                }
            }
        }
    }

    fn accept(&self) -> io::Result<Next> {
        let Door::Ours(listener) = &self.door else { return Ok(Next::Go) };
        let stream = match listener.socket().accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Next::Go),
            Err(e) => {
                guest_warn!(LIMIT, "{}: cannot accept a connection: {e}", self.served.name);
                std::thread::sleep(PAUSE);
                return Ok(Next::Go);
            }
        };
        // The next one waits until this one is gone.
        let listener = listener.socket().as_raw_fd();
        self.epoll.ctl(ControlOperation::Delete, listener, EpollEvent::default())?;
        let next = self.meet(stream);
        self.epoll.ctl(ControlOperation::Add, listener, EpollEvent::new(EventSet::IN, LISTENER))?;
        next
    }

    /// Serves one front end, and tells of it.
    fn meet(&self, stream: UnixStream) -> io::Result<Next> {
        log::info!("{}: a front end connected", self.served.name);
        match self.serve(stream)? {
            Ok(next) => return Ok(next),
            Err(PeerError::HungUp) => log::info!("{}: the front end hung up", self.served.name),
            Err(e) => {
                let cause = std::error::Error::source(&e).map(|e| format!(": {e}")).unwrap_or_default();
                guest_warn!(LIMIT, "{}: hung up on the front end: {e}{cause}", self.served.name);
            }
        }
        Ok(Next::Go)
    }

    /// Serves one front end: the inner error is its, the outer one ours.
    fn serve(&self, stream: UnixStream) -> io::Result<Result<Next, PeerError>> {
        let mut channel = Channel::new(stream)?;
        // Whatever rang for the one before.
        let _ = self.bell.read();
        let mut session = Session::new(&self.served, &self.bell);
        self.epoll.ctl(ControlOperation::Add, channel.fd(), EpollEvent::new(EventSet::IN, PEER))?;
        let result = self.converse(&mut channel, &mut session);
        self.epoll.ctl(ControlOperation::Delete, channel.fd(), EpollEvent::default())?;
        drop(session);
        result
    }

    fn converse(
        &self,
        channel: &mut Channel,
        session: &mut Session<'_>,
    ) -> io::Result<Result<Next, PeerError>> {
        let mut ready = [EpollEvent::default(); 4];
        loop {
            let patience = channel.patience();
            if patience.is_some_and(|left| left.is_zero()) {
                return Ok(Err(PeerError::Slow));
            }
            for event in wait(&self.epoll, patience, &mut ready)? {
                match event.data() {
                    PEER => match channel.receive() {
                        Ok(None) => {}
                        Ok(Some(message)) => {
                            if let Err(e) = session.handle(message, channel) {
                                return Ok(Err(e));
                            }
                        }
                        Err(e) => return Ok(Err(e)),
                    },
                    COMMANDS => {
                        let mut result = Ok(());
                        let next = self.commands(|work| {
                            if let Err(e) = session.quiesced(work) {
                                result = Err(e);
                            }
                        });
                        match result {
                            Ok(()) if matches!(next, Next::End) => return Ok(Ok(Next::End)),
                            Ok(()) => {}
                            Err(e) => return Ok(Err(e)),
                        }
                    }
                    BELL => return Ok(Err(PeerError::Shrunk)),
                    _ => {}
                }
            }
        }
    }

    /// Has the commands done that are there.
    fn commands(&self, mut work: impl FnMut(Command)) -> Next {
        // Nothing to read only means that nothing new came since.
        let _ = self.wake.read();
        loop {
            match self.inbox.try_recv() {
                Ok(command) => work(command),
                Err(TryRecvError::Empty) => return Next::Go,
                Err(TryRecvError::Disconnected) => return Next::End,
            }
        }
    }
}

/// Waits for something to happen, or for so long.
fn wait<'e>(
    epoll: &Epoll,
    patience: Option<Duration>,
    ready: &'e mut [EpollEvent],
) -> io::Result<&'e [EpollEvent]> {
    let until = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, lest we spin for the last millisecond.
        let milliseconds = left.map_or(-1, |left| left.as_millis() as i32 + 1);
        match epoll.wait(milliseconds, ready) {
            Ok(count) => return Ok(&ready[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
