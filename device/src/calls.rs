//! What a kind of device asks of the kernel, and on which threads.
//!
//! It is stated beside the device ([`crate::Build::CALLS`]); the filters of all threads are computed from it. What every thread does
//! ([`sandbox::common`]) need not be said.

use sandbox::Set;

/// System calls by the threads on which they are made.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// On threads of the device's own, at most; [`crate::Needs::calls`] says what one device does.
    pub own: &'static [Set],
    /// On the thread that quiet devices share.
    pub shared: &'static [Set],
    /// Where registers are accessed and queues start and stop: on vCPUs' threads.
    pub registers: &'static [Set],
    /// While the device is resized or saved: on the control thread, which does all of the above as well.
    pub upkeep: &'static [Set],
    /// While it is built and dropped: there as well.
    pub host: &'static [Set],
}

impl Calls {
    /// Nothing beyond what every thread does.
    pub const NONE: Calls = Calls { own: &[], shared: &[], registers: &[], upkeep: &[], host: &[] };
}
