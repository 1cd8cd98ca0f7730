//! What a machine is built with: what the process has for it.

use std::sync::Arc;

use device::{Events, Kept, Threads};
use hypervisor::Hypervisor;

use crate::confined;

/// See the module.
pub struct Site<'a> {
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) threads: Threads,
    pub(super) events: Arc<dyn Events>,
    pub(super) kept: &'a Kept,
}

impl<'a> Site<'a> {
    /// For one machine, whose devices report to `events`. The process is kept to the machine's paths already.
    pub fn new(hypervisor: &Arc<dyn Hypervisor>, events: Arc<dyn Events>, kept: &'a Kept) -> Self {
        Site { hypervisor: hypervisor.clone(), threads: confined::threads(), events, kept }
    }
}
