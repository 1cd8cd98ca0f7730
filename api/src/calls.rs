//! The queue between whoever asks and the control thread that answers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use spec::{Kind, Refusal};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::Action;

/// An answer that is no refusal.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done; nothing to tell (204).
    Done,
    /// Done; an empty body is told (200), as `vmm.shutdown` does.
    Empty,
    /// A JSON document (200).
    Json(String),
}

/// A question and the way back.
pub struct Call {
    /// What is asked.
    pub action: Action,
    /// Where the answer goes.
    pub answer: SyncSender<Result<Reply, Refusal>>,
}

/// The asking end; cheap to clone.
#[derive(Clone)]
pub struct Caller {
    queue: Arc<Mutex<Sender<Call>>>,
    wake: Arc<EventFd>,
}

/// The answering end.
pub struct Inbox {
    queue: Receiver<Call>,
    wake: Arc<EventFd>,
}

/// Makes a queue.
///
/// # Errors
/// No descriptor could be had.
pub fn queue() -> io::Result<(Caller, Inbox)> {
    let (sender, queue) = channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    Ok((Caller { queue: Arc::new(Mutex::new(sender)), wake: wake.clone() }, Inbox { queue, wake }))
}

impl Caller {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The refusal, or that the VMM is ending.
    pub fn ask(&self, action: Action) -> Result<Reply, Refusal> {
        let gone = || Refusal::new(Kind::Conflict, "The VMM is shutting down");
        let (answer, wait) = sync_channel(1);
        let sent = self.queue.lock().unwrap_or_else(PoisonError::into_inner).send(Call { action, answer });
        sent.map_err(|_| gone())?;
        self.wake
            .write(1)
            .map_err(|e| Refusal::new(Kind::Bug, "cannot wake the control thread").because(e))?;
        wait.recv().map_err(|_| gone())?
    }
}

impl Inbox {
    /// Readable when something was asked.
    pub fn fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// The questions that wait.
    pub fn drain(&self) -> impl Iterator<Item = Call> + '_ {
        // Nothing to read means that a question came without waking us yet; it is answered all the same.
        let _ = self.wake.read();
        self.queue.try_iter()
    }
}
