//! What network cards ask of the kernel.

use device::Calls;
use net_util::calls as tap;
use sandbox::common;
use terminal::calls as terminal;
use vhost_user::front::calls as remote;

use crate::rate;

pub(super) const CALLS: Calls = Calls {
    own: &[tap::MOVE, rate::WAIT, remote::TALK, remote::DIAL, remote::ACCEPT, remote::SEARCH],
    // The control queue.
    shared: &[tap::SET, remote::TALK, remote::SEARCH],
    // Activation and reset.
    registers: &[tap::SET, rate::MAKE, remote::TALK],
    upkeep: &[],
    host: &[common::FILES, tap::OPEN, remote::TALK, remote::DIAL, remote::ACCEPT, terminal::OPEN],
};

/// Of the queues of a tap.
pub(super) const PAIRS: &[sandbox::Set] = &[tap::MOVE, rate::WAIT];
