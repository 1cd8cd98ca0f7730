//! What files as memory ask of the kernel.

use block::calls as image;
use device::Calls;
use sandbox::{Call, Set, common};

/// Making it durable.
const FLUSH: Set = &[Call::any(libc::SYS_fdatasync), Call::any(libc::SYS_fsync)];

pub(super) const CALLS: Calls = Calls {
    own: &[FLUSH],
    shared: &[],
    registers: &[],
    upkeep: &[],
    host: &[common::FILES, image::OPEN, image::TRANSFER],
};
