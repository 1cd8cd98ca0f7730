//! The way from the device to the driver: eventfds of the front end, and a channel for what else there is to say.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::DriverLink;
use device::guest_warn;
use device::limit::LogLimit;
use vmm_sys_util::eventfd::EventFd;

use crate::channel::send;
use crate::wire::{CONFIG_CHANGE, header};

static LIMIT: LogLimit = LogLimit::new();

/// What one ring rings.
#[derive(Default)]
struct Bells {
    call: Mutex<Option<EventFd>>,
    error: Mutex<Option<EventFd>>,
}

/// See the module. It outlives connections; without one, nobody is told.
pub(crate) struct Link {
    name: String,
    rings: Vec<Bells>,
    channel: Mutex<Option<UnixStream>>,
    /// The device has given up.
    broken: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An eventfd of the front end's, which must not make us wait: it is said to be one, and what it is cannot be known.
pub(crate) fn eventfd(fd: OwnedFd) -> EventFd {
    // SAFETY: fcntl with plain integers on an open descriptor. If it does not take the flag, writes to it fail or are taken.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    // SAFETY: the descriptor is open and ours.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

impl Link {
    pub(crate) fn new(name: &str, rings: usize) -> Self {
        Link {
            name: name.to_owned(),
            rings: (0..rings).map(|_| Bells::default()).collect(),
            channel: Mutex::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// What to ring when buffers were used; `index` is a ring's.
    pub(crate) fn set_call(&self, index: usize, call: Option<EventFd>) {
        *lock(&self.rings[index].call) = call;
    }

    /// What to ring when a ring is broken; `index` is a ring's.
    pub(crate) fn set_error(&self, index: usize, error: Option<EventFd>) {
        *lock(&self.rings[index].error) = error;
    }

    /// The channel for requests of ours.
    pub(crate) fn set_channel(&self, channel: Option<UnixStream>) {
        *lock(&self.channel) = channel;
    }

    /// Whether the device has given up since [`Link::set_whole`].
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Forgets that the device gave up.
    pub(crate) fn set_whole(&self) {
        self.broken.store(false, Ordering::SeqCst);
    }

    /// Forgets a front end.
    pub(crate) fn clear(&self) {
        for index in 0..self.rings.len() {
            self.set_call(index, None);
            self.set_error(index, None);
        }
        self.set_channel(None);
    }

    fn ring(&self, bell: &Mutex<Option<EventFd>>, what: &str) {
        // A counter that is full has been rung.
        if let Some(bell) = &*lock(bell)
            && let Err(e) = bell.write(1)
            && e.kind() != std::io::ErrorKind::WouldBlock
        {
            guest_warn!(LIMIT, "{}: cannot signal {what}: {e}", self.name);
        }
    }
}

impl DriverLink for Link {
    fn queue_used(&self, queue: u16) {
        if let Some(ring) = self.rings.get(usize::from(queue)) {
            self.ring(&ring.call, "a used buffer");
        }
    }

    fn config_changed(&self) {
        if let Some(channel) = &*lock(&self.channel)
            && let Err(e) = send(channel, &header(CONFIG_CHANGE, 0, 0), &[])
        {
            guest_warn!(LIMIT, "{}: cannot tell of a changed configuration: {e}", self.name);
        }
    }

    fn needs_reset(&self) {
        self.broken.store(true, Ordering::SeqCst);
        for ring in &self.rings {
            self.ring(&ring.error, "an error");
        }
    }
}
