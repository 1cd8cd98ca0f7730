//! A gate that a thread passes while it may run.
//!
//! ```text
//!   Parked ⇄ Running, and from either to Ended for good
//! ```
//!
//! The owner says what should be; the thread says what is. [`Gate::wait_parked`] returns only when the thread stands still. While it
//! does, it can be given an [`Errand`]: what it owns is touched by no other thread.

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Park,
    Run,
    End,
}

/// Work on what the thread owns.
pub type Errand<T> = Box<dyn FnOnce(&mut T) + Send>;

/// What a thread shall do that has passed.
pub enum Pass<T: ?Sized> {
    /// Run.
    Run,
    /// Do this, and come again.
    Do(Errand<T>),
    /// End.
    End,
}

struct State<T: ?Sized> {
    wish: Wish,
    parked: bool,
    gone: bool,
    errand: Option<Errand<T>>,
}

/// See the module.
pub struct Gate<T: ?Sized> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T: ?Sized> Default for Gate<T> {
    fn default() -> Self {
        Gate {
            state: Mutex::new(State { wish: Wish::Park, parked: false, gone: false, errand: None }),
            changed: Condvar::new(),
        }
    }
}

impl<T: ?Sized> Gate<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wish(&self, wish: Wish) {
        let mut state = self.lock();
        // Ending is for good: a thread that closes its own gate must not undo it.
        if state.wish != Wish::End {
            state.wish = wish;
            self.changed.notify_all();
        }
    }

    /// Lets the thread run.
    pub fn open(&self) {
        self.wish(Wish::Run);
    }

    /// Asks the thread to end at its next pass.
    pub fn end(&self) {
        self.wish(Wish::End);
    }

    /// Asks the thread to stand still at its next pass; follow with a kick, then [`Gate::wait_parked`].
    pub fn close(&self) {
        self.wish(Wish::Park);
    }

    /// Waits until the thread stands still or has ended.
    pub fn wait_parked(&self) {
        let mut state = self.lock();
        while !state.parked && !state.gone {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives the thread, which stands still or has ended, something to do; one errand at a time. A thread that has ended drops it.
    pub fn send(&self, errand: Errand<T>) {
        let mut state = self.lock();
        if !state.gone {
            state.errand = Some(errand);
            self.changed.notify_all();
        }
    }

    /// For the thread: waits while the gate is closed and there is nothing to do.
    pub fn pass(&self) -> Pass<T> {
        let mut state = self.lock();
        while state.wish == Wish::Park {
            if let Some(errand) = state.errand.take() {
                return Pass::Do(errand);
            }
            if !state.parked {
                state.parked = true;
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
        if state.wish == Wish::Run { Pass::Run } else { Pass::End }
    }

    /// For the thread: it will not pass again.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.gone = true;
        // Whoever waits for its answer learns that there will be none.
        state.errand = None;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_parked_thread_stands_still_and_an_opened_one_goes_on() {
        let gate = Arc::new(Gate::<u64>::default());
        let count = Arc::new(AtomicU64::new(0));
        let thread = std::thread::Builder::new().name("counter".into());
        let (g, c) = (gate.clone(), count.clone());
        let thread = thread
            .spawn(move || {
                let mut own = 7;
                loop {
                    match g.pass() {
                        Pass::Run => drop(c.fetch_add(1, Ordering::SeqCst)),
                        Pass::Do(errand) => errand(&mut own),
                        Pass::End => break,
                    }
                }
                g.leave();
            })
            .unwrap();
        for round in 0..100 {
            gate.open();
            while count.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            gate.close();
            gate.wait_parked();
            let seen = count.swap(0, Ordering::SeqCst);
            std::thread::yield_now();
            assert!(seen > 0);
            assert_eq!(count.load(Ordering::SeqCst), 0);
            let (answer, wait) = std::sync::mpsc::channel();
            gate.send(Box::new(move |own: &mut u64| {
                *own += 1;
                answer.send(*own).unwrap();
            }));
            assert_eq!(wait.recv().unwrap(), 8 + round);
            assert_eq!(count.load(Ordering::SeqCst), 0);
        }
        gate.end();
        gate.wait_parked();
        thread.join().unwrap();
        let (answer, wait) = std::sync::mpsc::channel();
        gate.send(Box::new(move |own: &mut u64| answer.send(*own).unwrap()));
        assert!(wait.recv().is_err(), "a thread that has ended does nothing");
    }
}
