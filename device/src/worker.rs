//! Threads that serve queues, and what runs on them.
//!
//! A [`Task`] is moved into a worker when a queue starts and moved back when it stops, so what a task owns needs no lock. Devices
//! whose speed matters take a worker of their own; the quiet ones share one, which exists only once somebody needs it.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sandbox::{Role, Set, common};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::threads::Starting;
use crate::{DeviceError, Events, Request, Threads};

/// Something that runs on a worker: it waits for file descriptors and never blocks for long.
pub trait Task: Send + 'static {
    /// Runs first, on the worker's thread: registers descriptors, makes what must be made on the thread that uses it.
    ///
    /// # Errors
    /// What could not be set up; the task is given back.
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()>;

    /// A descriptor registered with this token is ready.
    fn ready(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>);

    /// Runs last, on the worker's thread: returns when nothing is outstanding. Descriptors are forgotten by the worker.
    fn stop(&mut self) {}
}

/// A task's way to wait for descriptors.
pub struct Watch<'a> {
    epoll: &'a Epoll,
    slot: u32,
    fds: &'a mut Vec<RawFd>,
}

impl Watch<'_> {
    /// Waits for `events` on `fd`, and reports them with `token`.
    ///
    /// # Errors
    /// What epoll answered.
    pub fn add(&mut self, fd: RawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, self.data(token)))?;
        self.fds.push(fd);
        Ok(())
    }

    /// Changes what is waited for; the empty set pauses.
    ///
    /// # Errors
    /// What epoll answered.
    pub fn modify(&mut self, fd: RawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, self.data(token)))
    }

    /// Waits for it no longer.
    ///
    /// # Errors
    /// What epoll answered.
    pub fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        self.fds.retain(|f| *f != fd);
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }

    /// Waits for `events` on `fd` from now on or no longer, as `wanted`; whether it is waited for is kept in `waits`, and nothing is done where that
    /// stays so.
    ///
    /// # Errors
    /// What epoll answered; it is as it was then.
    pub fn want(
        &mut self,
        waits: &mut bool,
        wanted: bool,
        (fd, token, events): (RawFd, u32, EventSet),
    ) -> io::Result<()> {
        if wanted == *waits {
            return Ok(());
        }
        if wanted { self.add(fd, token, events) } else { self.remove(fd) }?;
        *waits = wanted;
        Ok(())
    }

    fn data(&self, token: u32) -> u64 {
        u64::from(self.slot) << 32 | u64::from(token)
    }
}

trait AnyTask: Task {
    fn as_any(&mut self) -> &mut dyn Any;
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl<T: Task> AnyTask for T {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

struct Running {
    task: Box<dyn AnyTask>,
    fds: Vec<RawFd>,
}

struct Loop {
    epoll: Epoll,
    tasks: HashMap<u32, Running>,
    /// What the thread is for, until it is confined to that.
    open: Option<Use>,
}

type Command = Box<dyn FnOnce(&mut Loop) + Send>;

const WAKE: u64 = u64::MAX;

/// A thread that runs tasks. It ends when the last handle to it goes.
pub struct Worker {
    commands: Mutex<Sender<Command>>,
    wake: EventFd,
    thread: Mutex<Option<Starting>>,
    threads: Threads,
    next_slot: AtomicU32,
}

impl Worker {
    /// Has a thread of this name started (at most 15 bytes are shown by the kernel), allowed on these CPUs if any are given. Whether there
    /// is one shows when it is asked for something.
    fn spawn(name: &str, cpus: &[usize], source: &Workers, use_of: &Use) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        epoll.ctl(ControlOperation::Add, wake_fd(&wake), EpollEvent::new(EventSet::IN, WAKE))?;
        let (commands, inbox) = channel::<Command>();
        let waker = wake.try_clone()?;
        let (label, cpus) = (name.to_owned(), cpus.to_vec());
        let (events, use_of) = (source.events.clone(), use_of.clone());
        let thread = source.threads.start(name, move || {
            if let Err(e) = set_affinity(&cpus) {
                log::warn!("cannot bind thread {label} to CPUs {cpus:?}: {e}");
            }
            sandbox::note(&use_of.asked_by);
            let mut state = Loop { epoll, tasks: HashMap::new(), open: Some(use_of) };
            let run = AssertUnwindSafe(|| state.run(&inbox, &waker));
            let ended = catch_unwind(run);
            match ended {
                Ok(Ok(())) => return,
                Ok(Err(e)) => log::error!("thread {label} ended: {e}"),
                Err(_) => log::error!("thread {label} panicked"),
            }
            events.request(Request::Fault);
        });
        let (commands, thread) = (Mutex::new(commands), Mutex::new(Some(thread)));
        Ok(Worker { commands, wake, thread, threads: source.threads.clone(), next_slot: AtomicU32::new(0) })
    }

    /// Moves a task into the worker and starts it.
    ///
    /// # Errors
    /// The task's own, or that the thread has ended.
    pub fn attach<T: Task>(self: &Arc<Self>, task: T) -> io::Result<Attached<T>> {
        self.attach_made(move || task)
    }

    /// The same with a task that is made on the worker's thread. The first one on a thread is made before the thread is confined, and
    /// may do then what it will not do once it serves a guest.
    ///
    /// # Errors
    /// As for [`Worker::attach`].
    pub fn attach_made<T: Task>(
        self: &Arc<Self>,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Attached<T>> {
        let attached = self.begin_made(make)?;
        attached.settle().map(|()| attached)
    }

    /// As [`Worker::attach`], without waiting for the thread: [`Attached::settle`] tells what came of it.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn begin<T: Task>(self: &Arc<Self>, task: T) -> io::Result<Attached<T>> {
        self.begin_made(move || task)
    }

    fn begin_made<T: Task>(
        self: &Arc<Self>,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Attached<T>> {
        let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
        let begun = self.send(move |state| {
            let task = make();
            state.confine()?;
            let mut running = Running { task: Box::new(task), fds: Vec::new() };
            let mut watch = Watch { epoll: &state.epoll, slot, fds: &mut running.fds };
            let started = running.task.start(&mut watch);
            match started {
                Ok(()) => drop(state.tasks.insert(slot, running)),
                Err(_) => state.forget(&running.fds),
            }
            started
        })?;
        let begun = Mutex::new(Some(begun));
        Ok(Attached { worker: self.clone(), slot, live: true, begun, kind: PhantomData })
    }

    /// Runs a closure on the worker's thread and waits for its answer.
    fn call<R: Send + 'static>(&self, work: impl FnOnce(&mut Loop) -> R + Send + 'static) -> io::Result<R> {
        self.answer(self.send(work)?)
    }

    /// Waits for an answer.
    fn answer<R>(&self, wait: Receiver<R>) -> io::Result<R> {
        self.threads.begin()?;
        wait.recv().map_err(|_| self.gone())
    }

    /// Runs a closure on the worker's thread, whose answer comes later.
    fn send<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Loop) -> R + Send + 'static,
    ) -> io::Result<Receiver<R>> {
        let (answer, wait) = channel();
        let command: Command = Box::new(move |state| {
            // Who asked may have gone.
            let _ = answer.send(work(state));
        });
        let sent = self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command);
        sent.map_err(|_| self.gone())?;
        self.wake.write(1)?;
        Ok(wait)
    }

    /// Why nothing comes of what it is asked.
    fn gone(&self) -> io::Error {
        let started = self.thread().as_mut().map(|thread| thread.wait().map(drop));
        started.and_then(Result::err).unwrap_or_else(|| io::Error::other("the worker thread has ended"))
    }

    fn thread(&self) -> MutexGuard<'_, Option<Starting>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is known that the thread could not be had.
    fn failed(&self) -> bool {
        matches!(*self.thread(), Some(Starting::Failed(_)))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Dropping the sender is the signal to end; the wake-up lets the thread see it.
        *self.commands.lock().unwrap_or_else(PoisonError::into_inner) = channel().0;
        if let Err(e) = self.wake.write(1) {
            log::error!("cannot wake a worker: {e}");
        }
        // The thread may not have been started yet; if it cannot be any more, there is nothing to wait for.
        let _ = self.threads.begin();
        let thread = self.thread().take();
        if thread.is_some_and(|thread| !thread.join()) {
            log::error!("a worker thread panicked");
        }
    }
}

impl Loop {
    fn run(&mut self, inbox: &Receiver<Command>, wake: &EventFd) -> io::Result<()> {
        let mut ready = [EpollEvent::default(); 32];
        loop {
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            for event in &ready[..count] {
                if event.data() == WAKE {
                    match wake.read() {
                        Ok(_) => {}
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(e) => return Err(e),
                    }
                    loop {
                        match inbox.try_recv() {
                            Ok(command) => command(self),
                            Err(std::sync::mpsc::TryRecvError::Empty) => break,
                            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                                for running in self.tasks.values_mut() {
                                    running.task.stop();
                                }
                                return Ok(());
                            }
                        }
                    }
                    continue;
                }
                let (slot, token) = ((event.data() >> 32) as u32, event.data() as u32);
                // A task that stopped earlier in this batch is no longer there.
                if let Some(running) = self.tasks.get_mut(&slot) {
                    let mut watch = Watch { epoll: &self.epoll, slot, fds: &mut running.fds };
                    running.task.ready(token, event.event_set(), &mut watch);
                }
            }
        }
    }

    /// From now on the thread does only what it is for.
    fn confine(&mut self) -> io::Result<()> {
        self.open.take().map_or(Ok(()), |use_of| use_of.role().enter()).map_err(io::Error::other)
    }

    fn forget(&self, fds: &[RawFd]) {
        for fd in fds {
            if let Err(e) = self.epoll.ctl(ControlOperation::Delete, *fd, EpollEvent::default()) {
                log::debug!("epoll: cannot forget {fd}: {e}");
            }
        }
    }

    fn take(&mut self, slot: u32) -> Option<Box<dyn AnyTask>> {
        let mut running = self.tasks.remove(&slot)?;
        running.task.stop();
        self.forget(&running.fds);
        Some(running.task)
    }
}

/// A handle to a task that runs on a worker; dropping it stops the task and drops it on the worker's thread.
pub struct Attached<T: Task> {
    worker: Arc<Worker>,
    slot: u32,
    live: bool,
    /// What comes of its start, until somebody has waited for that.
    begun: Mutex<Option<Receiver<io::Result<()>>>>,
    kind: PhantomData<fn() -> T>,
}

impl<T: Task> Attached<T> {
    /// Waits until the task runs. Whoever began it does this once; afterwards it says nothing new.
    ///
    /// # Errors
    /// The task's own, or that there is no thread; the task is gone then.
    pub fn settle(&self) -> io::Result<()> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        begun.map_or(Ok(()), |begun| self.worker.answer(begun)?)
    }

    /// Stops the task and takes it back; `None` if the worker's thread ended before.
    pub fn stop(mut self) -> Option<T> {
        self.live = false;
        let slot = self.slot;
        let task = self.worker.call(move |state| state.take(slot).map(AnyTask::into_any)).ok()??;
        task.downcast().ok().map(|t| *t)
    }

    /// Runs a closure on the task, on the worker's thread, and waits for its answer.
    ///
    /// # Errors
    /// The worker's thread has ended.
    pub fn with<R: Send + 'static>(&self, work: impl FnOnce(&mut T) -> R + Send + 'static) -> io::Result<R> {
        let slot = self.slot;
        self.worker
            .call(move |state| state.tasks.get_mut(&slot)?.task.as_any().downcast_mut().map(work))?
            .ok_or_else(|| io::Error::other("the task has ended"))
    }
}

impl<T: Task> Drop for Attached<T> {
    fn drop(&mut self) {
        if self.live {
            let slot = self.slot;
            // A worker that has ended has dropped the task already.
            let _ = self.worker.call(move |state| drop(state.take(slot)));
        }
    }
}

/// What a thread is for.
#[derive(Clone)]
struct Use {
    asked_by: Arc<str>,
    sets: Arc<[Set]>,
}

impl Use {
    fn new(asked_by: String, mut sets: Vec<Set>) -> Self {
        sets.push(common::EVERYWHERE);
        Use { asked_by: asked_by.into(), sets: sets.into() }
    }

    fn role(&self) -> Role<'_> {
        Role { asked_by: &self.asked_by, sets: &self.sets }
    }
}

/// Where a device gets threads from.
#[derive(Clone)]
pub struct Workers {
    events: Arc<dyn Events>,
    threads: Threads,
    /// The thread that is shared, while there is one.
    shared: Arc<Mutex<Weak<Worker>>>,
    /// What that one is for.
    quiet: Use,
    /// What the others are for.
    own: Use,
}

impl Workers {
    /// A source whose threads report to `events`, are started by whoever asks, and make no system calls but those that every thread
    /// makes: see [`Workers::of`].
    pub fn new(events: Arc<dyn Events>) -> Self {
        Workers::with(events, Threads::direct(), Vec::new())
    }

    /// The same where threads are started otherwise, and the one that quiet devices share makes the calls `shared` as well.
    pub fn with(events: Arc<dyn Events>, threads: Threads, shared: Vec<Set>) -> Self {
        let quiet = Use::new("quiet devices".into(), shared);
        let own = Use::new("a device".into(), Vec::new());
        Workers { events, threads, shared: Arc::default(), quiet, own }
    }

    /// The same for the device of this name, whose own threads make these calls as well.
    pub fn of(&self, id: &str, calls: Vec<Set>) -> Self {
        Workers { own: Use::new(format!("device {id}"), calls), ..self.clone() }
    }

    /// A thread of one's own.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn own(&self, name: &str, cpus: &[usize]) -> Result<Arc<Worker>, DeviceError> {
        self.spawn(name, cpus, &self.own)
    }

    /// Has the thread started that starts others, which the guest did not wait for: see [`Threads::begin`].
    ///
    /// # Errors
    /// No thread could be had.
    pub fn settle(&self) -> io::Result<()> {
        self.threads.begin()
    }

    fn spawn(&self, name: &str, cpus: &[usize], use_of: &Use) -> Result<Arc<Worker>, DeviceError> {
        Worker::spawn(name, cpus, self, use_of)
            .map(Arc::new)
            .map_err(|e| DeviceError::new(format!("cannot start thread {name}"), e))
    }

    /// The thread that quiet devices share; started when first asked for, ended when nobody holds it.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn shared(&self) -> Result<Arc<Worker>, DeviceError> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = shared.upgrade().filter(|worker| !worker.failed()) {
            return Ok(worker);
        }
        let worker = self.spawn("devices", &[], &self.quiet)?;
        *shared = Arc::downgrade(&worker);
        Ok(worker)
    }
}

fn wake_fd(event: &EventFd) -> RawFd {
    use std::os::fd::AsRawFd;
    event.as_raw_fd()
}

/// Binds the calling thread to these CPUs; an empty list binds nothing.
///
/// # Errors
/// A CPU number beyond what the kernel's set holds, or what the kernel answered.
pub fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        if *cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: the number was checked against the size of the set.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the set is valid for its size, and 0 names the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
