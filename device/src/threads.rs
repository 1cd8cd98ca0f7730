//! Where new threads come from.
//!
//! A thread inherits the filter of the thread that starts it. Queues are started by vCPUs, whose filter is to hold nothing that only the
//! devices' threads need. So in a confined program one thread does little but start those of devices: the guest's data never reach it.
//!
//! That thread is started late, so that a guest need not wait for it: [`Threads::begin`]. What is asked of it before waits.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, ThreadId};

use sandbox::{Mode, Role, Set, common};

type Body = Box<dyn FnOnce() + Send>;

/// A thread to be started, and who is told what came of it.
struct Order {
    name: String,
    body: Body,
    answer: Sender<io::Result<JoinHandle<()>>>,
}

/// A way to start threads.
#[derive(Clone, Default)]
pub struct Threads(Option<Arc<Spawner>>);

impl Threads {
    /// Whoever asks for a thread starts it.
    pub fn direct() -> Self {
        Threads(None)
    }

    /// A thread starts them which may do what they do: `sets`. Without filters whoever asks does it. It is started by the calling thread,
    /// when that asks for it or has to wait for it.
    pub fn by_spawner(sets: Vec<Set>) -> Self {
        match sandbox::mode() {
            Mode::Off => Threads::direct(),
            _ => Threads(Some(Arc::new(Spawner::new(sets)))),
        }
    }

    /// Starts the thread that starts others, unless it was started before. Without effect on any thread but that which made this one:
    /// another may not have such a thread inherit what it may do.
    ///
    /// # Errors
    /// No thread could be had; whoever has asked for one is told.
    pub fn begin(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |spawner| spawner.begin())
    }

    /// Has a thread started. Whether there is one will be known later: see [`Starting`].
    pub(crate) fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Starting {
        let name = name.to_owned();
        let Some(spawner) = &self.0 else {
            return Builder::new().name(name).spawn(body).map_or_else(Starting::Failed, Starting::Runs);
        };
        let (answer, wait) = channel();
        spawner.order(Order { name, body: Box::new(body), answer });
        Starting::Asked(wait)
    }

    /// No thread can be had.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        let spawner = Spawner::new(Vec::new());
        spawner.state().inbox = None;
        Threads(Some(Arc::new(spawner)))
    }

    /// A thread starts them although there are no filters.
    #[cfg(test)]
    pub(crate) fn apart() -> Self {
        Threads(Some(Arc::new(Spawner::new(Vec::new()))))
    }
}

/// A thread that is being started.
pub(crate) enum Starting {
    /// Whoever starts it has not said yet.
    Asked(Receiver<io::Result<JoinHandle<()>>>),
    /// It runs, or has ended since.
    Runs(JoinHandle<()>),
    /// It could not be had.
    Failed(io::Error),
}

impl Starting {
    /// Waits until it runs.
    ///
    /// # Errors
    /// It could not be had.
    pub(crate) fn wait(&mut self) -> io::Result<&JoinHandle<()>> {
        if let Starting::Asked(answer) = self {
            let answer = answer.recv().unwrap_or_else(|_| Err(gone()));
            *self = answer.map_or_else(Starting::Failed, Starting::Runs);
        }
        match self {
            Starting::Runs(thread) => Ok(thread),
            Starting::Failed(e) => Err(io::Error::new(e.kind(), format!("no thread can be had: {e}"))),
            Starting::Asked(_) => Err(gone()),
        }
    }

    /// Waits until it has ended; false if it ended by a panic. The thread itself does not wait, nor does anybody for one that never was.
    pub(crate) fn join(mut self) -> bool {
        let _ = self.wait();
        match self {
            Starting::Runs(thread) if thread.thread().id() != std::thread::current().id() => {
                thread.join().is_ok()
            }
            _ => true,
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that starts threads is not there")
}

/// The thread. It ends when nobody can ask it for threads any more.
struct Spawner {
    /// Who starts it.
    owner: ThreadId,
    sets: Vec<Set>,
    orders: Mutex<Option<Sender<Order>>>,
    state: Mutex<State>,
}

/// How far it is. Neither is there when it could not be started, or has ended.
struct State {
    /// Its orders until it begins.
    inbox: Option<Receiver<Order>>,
    /// From then on, if it could be started.
    thread: Option<JoinHandle<()>>,
}

/// It keeps little on its stack.
const STACK: usize = 64 << 10;

impl Spawner {
    fn new(mut sets: Vec<Set>) -> Spawner {
        sets.extend([common::EVERYWHERE, common::STARTS_THREADS]);
        let (orders, inbox) = channel();
        let state = State { inbox: Some(inbox), thread: None };
        let (orders, state) = (Mutex::new(Some(orders)), Mutex::new(state));
        Spawner { owner: std::thread::current().id(), sets, orders, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> io::Result<()> {
        if std::thread::current().id() != self.owner {
            return Ok(());
        }
        let mut state = self.state();
        let Some(inbox) = state.inbox.take() else { return Ok(()) };
        let sets = self.sets.clone();
        let thread = Builder::new().name("spawner".into()).stack_size(STACK).spawn(move || {
            if let Err(e) = (Role { asked_by: "the starter of threads", sets: &sets }).enter() {
                return log::error!("{e}: {:?}", std::error::Error::source(&e));
            }
            for Order { name, body, answer } in inbox {
                // Whoever asked may want to know no more.
                let _ = answer.send(Builder::new().name(name).spawn(body));
            }
        })?;
        state.thread = Some(thread);
        Ok(())
    }

    /// Gives an order. If there is no thread any more, it is dropped, and whoever waits for an answer learns that.
    fn order(&self, order: Order) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(thread) = self.state().thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that starts threads panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_started_by_whoever_asks_or_by_the_spawner() {
        let name = || std::thread::current().name().map(str::to_owned);
        for threads in [Threads::direct(), Threads::apart()] {
            let (said, wait) = channel();
            let mut thread = threads.start("worker", move || said.send(name()).unwrap());
            threads.begin().unwrap();
            assert_eq!(wait.recv().unwrap().as_deref(), Some("worker"));
            assert!(thread.wait().is_ok() && thread.join());
            threads.begin().unwrap();
            assert!(threads.0.is_none_or(|spawner| spawner.state().thread.is_some()));
        }
    }

    /// Does something on another thread.
    fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        Builder::new().name("elsewhere".into()).spawn(work).unwrap().join().unwrap()
    }

    #[test]
    fn only_whoever_made_it_begins_and_orders_from_before_are_kept() {
        let threads = Threads::apart();
        let (other, (said, wait)) = (threads.clone(), channel());
        let mut asked = elsewhere(move || {
            other.begin().unwrap();
            other.start("worker", move || said.send(()).unwrap())
        });
        assert!(wait.try_recv().is_err());
        threads.begin().unwrap();
        wait.recv().unwrap();
        assert!(asked.wait().is_ok() && asked.join());
        let mut never = elsewhere(|| Threads::apart().start("never", || panic!("nobody starts it")));
        let error = never.wait().map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("no thread can be had: "), "{error}");
    }
}
