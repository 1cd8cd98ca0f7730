//! Where new threads come from.
//!
//! A thread inherits the filter of the thread that starts it. Queues are started by vCPUs, whose filter is to hold nothing that only the
//! devices' threads need. So in a confined program one thread does little but start those of devices: the guest's data never reach it.
//! While a machine is put together it has nothing to start, and does what can be done beside the rest.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use sandbox::{Mode, Role, Set, common};

type Body = Box<dyn FnOnce() + Send>;

enum Order {
    Start { name: String, body: Body, answer: Sender<io::Result<JoinHandle<()>>> },
    Do(Body),
}

/// A way to start threads.
#[derive(Clone, Default)]
pub struct Threads(Option<Arc<Spawner>>);

impl Threads {
    /// Whoever asks for a thread starts it.
    pub fn direct() -> Self {
        Threads(None)
    }

    /// A thread starts them which may do what they do: `sets`. Without filters whoever asks does it.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn by_spawner(sets: Vec<Set>) -> io::Result<Self> {
        match sandbox::mode() {
            Mode::Off => Ok(Threads::direct()),
            _ => Ok(Threads(Some(Arc::new(Spawner::start(sets)?)))),
        }
    }

    /// Starts a thread.
    ///
    /// # Errors
    /// No thread could be had.
    pub(crate) fn start(
        &self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        match &self.0 {
            None => Builder::new().name(name.to_owned()).spawn(body),
            Some(spawner) => spawner.start_thread(name, Box::new(body)),
        }
    }

    /// Has something done meanwhile by the thread that starts others, which must be allowed to do it; where there is none, at once.
    pub fn meanwhile<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Meanwhile<T> {
        let Some(spawner) = &self.0 else { return Meanwhile(State::Done(work())) };
        let (sender, receiver) = channel();
        let body = Box::new(move || {
            // Whoever asked may want to know no more.
            let _ = sender.send(work());
        });
        // If the thread has ended, the work is dropped with its order, and whoever waits for it learns that.
        let _ = spawner.order(Order::Do(body));
        Meanwhile(State::UnderWay(receiver))
    }
}

/// What comes of something that is done meanwhile. Dropping it waits for that.
pub struct Meanwhile<T>(State<T>);

enum State<T> {
    Done(T),
    UnderWay(Receiver<T>),
    Taken,
}

impl<T> Meanwhile<T> {
    /// Waits until it is done, and takes what came of it.
    ///
    /// # Errors
    /// The thread that was to do it has ended, or it was taken before.
    pub fn get(&mut self) -> io::Result<T> {
        match std::mem::replace(&mut self.0, State::Taken) {
            State::Done(result) => Ok(result),
            State::UnderWay(receiver) => receiver.recv().map_err(|_| gone()),
            State::Taken => Err(gone()),
        }
    }
}

impl<T> Drop for Meanwhile<T> {
    fn drop(&mut self) {
        if let State::UnderWay(receiver) = &self.0 {
            drop(receiver.recv());
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that starts threads has ended")
}

/// The thread. It ends when nobody can ask it for threads any more.
struct Spawner {
    orders: Mutex<Option<Sender<Order>>>,
    thread: Option<JoinHandle<()>>,
}

/// It keeps little on its stack.
const STACK: usize = 64 << 10;

impl Spawner {
    fn start(mut sets: Vec<Set>) -> io::Result<Spawner> {
        let (orders, inbox) = channel::<Order>();
        sets.extend([common::EVERYWHERE, common::STARTS_THREADS]);
        let thread = Builder::new().name("spawner".into()).stack_size(STACK).spawn(move || {
            if let Err(e) = (Role { asked_by: "the starter of threads", sets: &sets }).enter() {
                return log::error!("{e}: {:?}", std::error::Error::source(&e));
            }
            for order in inbox {
                match order {
                    // Whoever asked waits for the answer.
                    Order::Start { name, body, answer } => {
                        let _ = answer.send(Builder::new().name(name).spawn(body));
                    }
                    Order::Do(body) => body(),
                }
            }
        })?;
        Ok(Spawner { orders: Mutex::new(Some(orders)), thread: Some(thread) })
    }

    fn order(&self, order: Order) -> io::Result<()> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.as_ref().and_then(|orders| orders.send(order).ok()).ok_or_else(gone)
    }

    fn start_thread(&self, name: &str, body: Body) -> io::Result<JoinHandle<()>> {
        let (answer, wait) = channel();
        self.order(Order::Start { name: name.to_owned(), body, answer })?;
        wait.recv().map_err(|_| gone())?
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that starts threads panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_is_started_by_whoever_asks_or_by_the_spawner() {
        let name = || std::thread::current().name().map(str::to_owned);
        for threads in [Threads::direct(), Threads(Some(Arc::new(Spawner::start(Vec::new()).unwrap())))] {
            let (said, wait) = channel();
            let thread = threads.start("worker", move || said.send(name()).unwrap()).unwrap();
            assert_eq!(wait.recv().unwrap().as_deref(), Some("worker"));
            thread.join().unwrap();
        }
    }

    #[test]
    fn something_is_done_meanwhile_and_waited_for() {
        for threads in [Threads::direct(), Threads(Some(Arc::new(Spawner::start(Vec::new()).unwrap())))] {
            let (mut first, mut second) = (threads.meanwhile(|| 6), threads.meanwhile(|| 7));
            assert_eq!((second.get().unwrap(), first.get().unwrap()), (7, 6));
            assert!(first.get().is_err());
            // Whoever gives up before it is done waits all the same.
            let done = Arc::new(AtomicBool::new(false));
            let (told, begun) = (done.clone(), channel::<()>());
            let work = threads.meanwhile(move || {
                let _ = begun.1.recv_timeout(Duration::from_millis(20));
                told.store(true, Ordering::SeqCst);
            });
            drop(work);
            assert!(done.load(Ordering::SeqCst));
        }
    }
}
