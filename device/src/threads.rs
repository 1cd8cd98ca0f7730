//! Where new threads come from.
//!
//! A thread inherits the filter of the thread that starts it. Queues are started by vCPUs, whose filter is to hold nothing that only the
//! devices' threads need. So in a confined program one thread does nothing but start those of devices: the guest's data never reach it.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use sandbox::{Mode, Role, Set, common};

type Body = Box<dyn FnOnce() + Send>;

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
            Some(spawner) => spawner.order(name, Box::new(body)),
        }
    }
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
            for Order { name, body, answer } in inbox {
                // Whoever asked waits for the answer.
                let _ = answer.send(Builder::new().name(name).spawn(body));
            }
        })?;
        Ok(Spawner { orders: Mutex::new(Some(orders)), thread: Some(thread) })
    }

    fn order(&self, name: &str, body: Body) -> io::Result<JoinHandle<()>> {
        let gone = || io::Error::other("the thread that starts threads has ended");
        let (answer, wait) = channel();
        let order = Order { name: name.to_owned(), body, answer };
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.as_ref().and_then(|orders| orders.send(order).ok()).ok_or_else(gone)?;
        drop(orders);
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
}
