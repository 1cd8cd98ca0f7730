//! What devices and vCPUs report: records for the event monitor, and requests that only the control thread can decide.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use api::Monitor;
use device::{Events, Request};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Requests of one machine carry its number, so that those of a machine that is gone are recognised.
pub type Generation = u64;

/// The receiving end, owned by the control thread.
pub struct Reports {
    monitor: Arc<Monitor>,
    requests: Receiver<(Generation, Request)>,
    sender: Sender<(Generation, Request)>,
    wake: Arc<EventFd>,
    watched: Arc<AtomicBool>,
}

impl Reports {
    /// An empty queue.
    ///
    /// # Errors
    /// No descriptor could be had.
    pub fn new(monitor: Arc<Monitor>) -> io::Result<Self> {
        let (sender, requests) = channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Reports { monitor, requests, sender, wake, watched: Arc::default() })
    }

    /// What one machine's devices and vCPUs report to.
    pub fn reporter(&self, generation: Generation) -> Arc<dyn Events> {
        Arc::new(Reporter {
            generation,
            monitor: self.monitor.clone(),
            sender: Mutex::new(self.sender.clone()),
            wake: self.wake.clone(),
            watched: self.watched.clone(),
        })
    }

    /// Whether records wake the control thread as well: they tell of what somebody waits for.
    pub fn watch(&self, watch: bool) {
        self.watched.store(watch, Ordering::SeqCst);
    }

    /// Readable when something was requested.
    pub fn fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Takes note of having been woken; to be followed by [`Reports::next`] until there is nothing left.
    pub fn woken(&self) {
        // Nothing to read only means that nothing new came since.
        let _ = self.wake.read();
    }

    /// The next request of this machine; those of earlier ones are dropped.
    pub fn next(&self, generation: Generation) -> Option<Request> {
        self.requests.try_iter().find(|(of, _)| *of == generation).map(|(_, request)| request)
    }
}

struct Reporter {
    generation: Generation,
    monitor: Arc<Monitor>,
    sender: Mutex<Sender<(Generation, Request)>>,
    wake: Arc<EventFd>,
    watched: Arc<AtomicBool>,
}

impl Reporter {
    fn wake(&self) {
        if let Err(e) = self.wake.write(1) {
            log::error!("cannot wake the control thread: {e}");
        }
    }
}

impl Events for Reporter {
    fn record(&self, source: &str, event: &str, properties: &[(&str, &str)]) {
        self.monitor.record(source, event, properties);
        if self.watched.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    fn request(&self, request: Request) {
        let sent =
            self.sender.lock().unwrap_or_else(PoisonError::into_inner).send((self.generation, request));
        if sent.is_err() {
            log::debug!("{request:?} after the control thread ended");
        } else {
            self.wake();
        }
    }
}
