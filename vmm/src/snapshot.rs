//! Writing a snapshot, on a thread of its own: the control thread goes on answering, and can end it early.
//!
//! The machine stands still until it is done; who lets it run meanwhile is the control thread's to refuse.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::JoinHandle;

use device::{Node, Ram};
use migration::{Backing, Directory, Memory, Progress};
use spec::{Kind, Refusal};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::machine::SNAPSHOT_MARK;
use crate::ram_restore::unwritable;

/// What is to be written.
pub struct Job {
    /// Where to.
    pub directory: Directory,
    /// Guest memory.
    pub ram: Ram,
    /// Where memory is still being paged in from, if it is.
    pub behind: Option<Backing>,
    /// The machine's description as JSON.
    pub config: String,
    /// The machine's state.
    pub machine: Node,
}

/// A snapshot being written; dropping it ends the writing and removes what was written.
pub struct Writing {
    progress: Arc<Progress>,
    done: Receiver<Result<(), Refusal>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Writing {
    /// Begins.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn start(job: Job) -> Result<Self, Refusal> {
        let failed = |e| Refusal::host("Cannot start the thread that writes snapshots", e);
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed)?);
        let progress = Arc::new(Progress::new());
        let (answer, done) = channel();
        let (theirs, waker) = (progress.clone(), wake.clone());
        let thread = std::thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                let confined =
                    migration::calls::WRITER.enter().map_err(|e| Refusal::host("Cannot write a snapshot", e));
                let result = confined.and_then(|()| write(job, &theirs));
                // Nobody waits for it any more if it was ended early.
                let _ = answer.send(result);
                if let Err(e) = waker.write(1) {
                    log::error!("cannot wake the control thread: {e}");
                }
            })
            .map_err(failed)?;
        Ok(Writing { progress, done, wake, thread: Some(thread) })
    }

    /// Readable when it is done.
    pub fn fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The result, once it is there.
    pub fn result(&self) -> Option<Result<(), Refusal>> {
        match self.done.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(Refusal::new(
                Kind::Bug,
                "The thread that wrote the snapshot has ended without a word",
            ))),
        }
    }
}

impl Writing {
    /// Ends the writing and removes what was written; tells whether it was complete nevertheless, and stays.
    pub fn cancel(mut self) -> bool {
        self.end();
        matches!(self.result(), Some(Ok(())))
    }

    fn end(&mut self) {
        self.progress.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that wrote a snapshot panicked");
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.end();
    }
}

fn write(job: Job, progress: &Progress) -> Result<(), Refusal> {
    let Job { mut directory, ram, behind, config, machine } = job;
    let map = ram.map();
    let marks = [GuestAddress(SNAPSHOT_MARK)];
    let memory = Memory { ram: &map, behind: behind.as_ref(), marks: &marks };
    let written = directory.write_memory(&memory, progress).map_err(unwritable)?;
    directory.finish(&config, &machine).map_err(unwritable)?;
    log::info!(
        "snapshot: {} bytes of memory, {} of them data, {} bytes a second",
        written.length,
        written.data,
        progress.rate()
    );
    Ok(())
}
