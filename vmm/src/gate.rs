//! A gate that a thread passes while it may run.
//!
//! ```text
//!   Parked ⇄ Running, and from either to Ended for good
//! ```
//!
//! The owner says what should be; the thread says what is. [`Gate::park`] returns only when the thread stands still.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Park,
    Run,
    End,
}

#[derive(Debug)]
struct State {
    wish: Wish,
    parked: bool,
    gone: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            state: Mutex::new(State { wish: Wish::Park, parked: false, gone: false }),
            changed: Condvar::new(),
        }
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
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

    /// For the thread: waits while the gate is closed; `false` when it should end.
    pub fn pass(&self) -> bool {
        let mut state = self.lock();
        while state.wish == Wish::Park {
            if !state.parked {
                state.parked = true;
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
        state.wish == Wish::Run
    }

    /// For the thread: it will not pass again.
    pub fn leave(&self) {
        self.lock().gone = true;
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
        let gate = Arc::new(Gate::default());
        let count = Arc::new(AtomicU64::new(0));
        let thread = std::thread::Builder::new().name("counter".into());
        let (g, c) = (gate.clone(), count.clone());
        let thread = thread
            .spawn(move || {
                while g.pass() {
                    c.fetch_add(1, Ordering::SeqCst);
                }
                g.leave();
            })
            .unwrap();
        for _ in 0..100 {
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
        }
        gate.end();
        gate.wait_parked();
        thread.join().unwrap();
    }
}
