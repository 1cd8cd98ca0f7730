//! The guest's paravirtual clock over a pause and over a restore.
//!
//! In a pause it stands still, so that a guest does not find hours gone between two instructions. A guest that reads the
//! processor's own counter instead sees it run on; nothing stops that. After a restore the clock is right: it has gone on by the time
//! that passed since it was saved, as has the processor's counter ([`arch::x86_64::vcpu_state`]), for the guest may wake on another
//! day and has nobody else to tell it.

use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::{Capabilities, ClockState, Vm};
use spec::Refusal;

use super::saved;

/// See the module.
pub(super) struct Clock {
    /// None where the host can neither read nor set the clock: it runs on.
    vm: Option<Arc<dyn Vm>>,
    stopped: Mutex<Option<Stopped>>,
}

/// A clock that stands still.
#[derive(Clone, Copy)]
struct Stopped {
    nanoseconds: u64,
    /// The real time when it stopped.
    realtime: u64,
    /// It goes on with the time that has passed since.
    catches_up: bool,
}

impl Clock {
    pub(super) fn new(vm: Arc<dyn Vm>, capabilities: &Capabilities) -> Clock {
        Clock { vm: capabilities.clock.then_some(vm), stopped: Mutex::default() }
    }

    /// Stands at a saved time; it will go on at the time that is right by then.
    pub(super) fn load(&self, saved: Option<ClockState>) {
        let stopped = |clock: ClockState| {
            let realtime = clock.realtime?;
            Some(Stopped { nanoseconds: clock.nanoseconds, realtime, catches_up: true })
        };
        *self.lock() = saved.and_then(stopped);
    }

    /// The time at which it stands still, with the real time of that moment.
    pub(super) fn save(&self) -> Option<ClockState> {
        self.lock().map(|stopped| ClockState {
            nanoseconds: stopped.nanoseconds,
            realtime: Some(stopped.realtime),
            host_tsc: None,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Stopped>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the time. The vCPUs stand still.
    pub(super) fn stop(&self) -> Result<(), Refusal> {
        let Some(vm) = &self.vm else { return Ok(()) };
        let now = vm.clock().map_err(|e| Refusal::host("Cannot stop the guest's clock", e))?;
        let stopped = Stopped { nanoseconds: now.nanoseconds, realtime: saved::now(), catches_up: false };
        *self.lock() = Some(stopped);
        Ok(())
    }

    /// Goes on, if it stands still. So do the vCPUs.
    pub(super) fn go_on(&self) -> Result<(), Refusal> {
        let mut stopped = self.lock();
        if let (Some(vm), Some(then)) = (&self.vm, &*stopped) {
            let passed = if then.catches_up { saved::since(then.realtime) } else { 0 };
            // Without the real time the host does not add what passes until the clock is set.
            let nanoseconds = then.nanoseconds.saturating_add(passed);
            vm.set_clock(&ClockState { nanoseconds, realtime: None, host_tsc: None })
                .map_err(|e| Refusal::host("Cannot let the guest's clock go on", e))?;
        }
        *stopped = None;
        Ok(())
    }
}
