//! What network cards ask of the kernel.

use device::Calls;
use net_util::calls as tap;
use sandbox::common;

use crate::rate;

pub(super) const CALLS: Calls = Calls {
    own: &[tap::MOVE, rate::WAIT],
    // The control queue.
    shared: &[tap::SET],
    // Activation and reset.
    registers: &[tap::SET, rate::MAKE],
    upkeep: &[],
    host: &[common::FILES, tap::OPEN],
};
