//! Ends guests that do not end by themselves: one thread for any number of runs, since a thread for each would cost more
//! than the runs do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::contract::Kick;
use crate::error::{Result, refused};

/// How often the thread looks.
const PERIOD: Duration = Duration::from_millis(10);

/// The thread and what it watches. Dropping it ends the thread.
pub(crate) struct Watchdog {
    watched: Arc<Mutex<Watched>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Watched {
    run: Option<(Instant, Arc<dyn Kick>)>,
    kicked: bool,
    over: bool,
}

impl Watchdog {
    /// Starts the thread.
    pub(crate) fn start() -> Result<Self> {
        let watched = Arc::new(Mutex::new(Watched::default()));
        let theirs = watched.clone();
        let thread = std::thread::Builder::new()
            .name("check-watchdog".into())
            .spawn(move || {
                loop {
                    {
                        let mut watched = lock(&theirs);
                        if watched.over {
                            return;
                        }
                        if watched.run.as_ref().is_some_and(|(deadline, _)| Instant::now() >= *deadline)
                            && let Some((_, kick)) = watched.run.take()
                        {
                            // Under the lock, so that the end of the run sees it as done or not done.
                            kick.kick();
                            watched.kicked = true;
                        }
                    }
                    std::thread::park_timeout(PERIOD);
                }
            })
            .map_err(refused("start a thread"))?;
        Ok(Watchdog { watched, thread: Some(thread) })
    }

    /// Watches one run from now on.
    pub(crate) fn guard(&self, kick: Arc<dyn Kick>, limit: Duration) -> Guard<'_> {
        let mut watched = lock(&self.watched);
        watched.kicked = false;
        watched.run = Some((Instant::now() + limit, kick));
        Guard(self)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.watched).over = true;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::warn!("the watchdog of the host check panicked");
            }
        }
    }
}

/// A run that is watched.
pub(crate) struct Guard<'a>(&'a Watchdog);

impl Guard<'_> {
    /// Ends the watch; says whether the vCPU was kicked.
    pub(crate) fn end(self) -> bool {
        let mut watched = lock(&self.0.watched);
        watched.run = None;
        watched.kicked
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}
