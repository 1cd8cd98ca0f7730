//! The guest's paravirtual clock over a pause: it stands still, so that a guest does not find hours gone between two instructions.
//!
//! A guest that reads the processor's own counter instead sees it run on; nothing stops that.

use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::{Capabilities, ClockState, Vm};
use spec::Refusal;

/// See the module.
pub(super) struct Clock {
    /// None where the host can neither read nor set the clock: it runs on.
    vm: Option<Arc<dyn Vm>>,
    stopped: Mutex<Option<ClockState>>,
}

impl Clock {
    pub(super) fn new(vm: Arc<dyn Vm>, capabilities: &Capabilities) -> Clock {
        Clock { vm: capabilities.clock.then_some(vm), stopped: Mutex::default() }
    }

    /// Remembers the time. The vCPUs stand still.
    pub(super) fn stop(&self) -> Result<(), Refusal> {
        let Some(vm) = &self.vm else { return Ok(()) };
        let now = vm.clock().map_err(|e| Refusal::host("Cannot stop the guest's clock", e))?;
        // Without the real time the host does not add what passes until the clock is set.
        let now = ClockState { realtime: None, host_tsc: None, ..now };
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(())
    }

    /// Goes on at the time remembered, if one is. The vCPUs stand still.
    pub(super) fn go_on(&self) -> Result<(), Refusal> {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(vm), Some(then)) = (&self.vm, &*stopped) {
            vm.set_clock(then).map_err(|e| Refusal::host("Cannot let the guest's clock go on", e))?;
        }
        *stopped = None;
        Ok(())
    }
}
