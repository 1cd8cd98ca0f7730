//! Questions whose answer comes later: when the guest has done something, or has not done it in time.
//!
//! Nothing is held up meanwhile. A question waits here with the way back to whoever asked; it is looked at again whenever
//! something happened to a machine, and when its time is over.

use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use api::Reply;
use api::bodies::{MAX_WAIT_MS, Until, WaitDevice};
use spec::{Kind, Refusal};

use super::{Control, no_vm};

/// A question that waits.
pub(super) struct Waiting {
    what: WaitDevice,
    deadline: Instant,
    answer: SyncSender<Result<Reply, Refusal>>,
}

impl Control {
    /// Takes a question to be answered later.
    pub(super) fn wait_for(&mut self, what: WaitDevice, answer: SyncSender<Result<Reply, Refusal>>) {
        let deadline = Instant::now() + Duration::from_millis(what.timeout_ms.min(MAX_WAIT_MS));
        // From now on everything that happens to a device wakes this thread.
        self.reports.watch(true);
        self.waiting.push(Waiting { what, deadline, answer });
    }

    /// Answers the questions that can be answered now.
    pub(super) fn answer_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            match self.outcome(&waiting, now) {
                Some(outcome) => {
                    let outcome = outcome
                        .map_err(|e| e.within("The device could not be waited for").within("Error from API"));
                    if waiting.answer.send(outcome).is_err() {
                        log::debug!("whoever asked did not wait for the answer");
                    }
                }
                None => self.waiting.push(waiting),
            }
        }
        if self.waiting.is_empty() {
            self.reports.watch(false);
        }
    }

    /// How long until a question's time is over.
    pub(super) fn patience(&self) -> Option<Duration> {
        let next = self.waiting.iter().map(|waiting| waiting.deadline).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// What there is to answer; `None` if that is not known yet.
    fn outcome(&self, waiting: &Waiting, now: Instant) -> Option<Result<Reply, Refusal>> {
        let WaitDevice { id, until, timeout_ms } = &waiting.what;
        if *timeout_ms > MAX_WAIT_MS {
            let text = format!("A wait of {timeout_ms} ms is longer than {MAX_WAIT_MS} ms");
            return Some(Err(Refusal::invalid(text)));
        }
        if self.spec.is_none() {
            return Some(Err(no_vm()));
        }
        let Some(running) = &self.running else { return Some(Err(self.not_running())) };
        let late =
            |text: &str| Refusal::new(Kind::Late, format!("Device {id:?} {text} after {timeout_ms} ms"));
        let late = match (until, running.machine.in_use(id)) {
            (Until::Ready, None) => {
                return Some(Err(Refusal::new(Kind::Absent, format!("No device with id {id:?}"))));
            }
            (Until::Ready, Some(true)) | (Until::Removed, None) => return Some(Ok(Reply::Done)),
            (Until::Ready, Some(false)) => late("is not used by the guest"),
            (Until::Removed, Some(_)) => late("was not let go of by the guest"),
        };
        (now >= waiting.deadline).then_some(Err(late))
    }
}
