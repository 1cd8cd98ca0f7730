//! What disks ask of the kernel.

use block::{Choice, calls as image};
use device::Calls;
use sandbox::{Set, common};
use vhost_user::front::calls as remote;

use crate::rate;

/// Of all disks.
pub(super) const CALLS: Calls = Calls {
    own: &[
        image::TRANSFER,
        image::IO_URING,
        image::AIO,
        image::MAKE_ENGINE,
        rate::WAIT,
        remote::TALK,
        remote::DIAL,
        remote::SEARCH,
    ],
    shared: &[remote::TALK, remote::SEARCH],
    registers: &[rate::MAKE, image::DROP_ENGINE, remote::TALK],
    upkeep: &[image::OPEN, image::TRANSFER],
    host: &[common::FILES, remote::TALK, remote::DIAL],
};

/// Of the queues of one disk, once their engines are made.
pub(super) fn of(choice: Choice) -> Vec<Set> {
    let mut calls = vec![image::TRANSFER, rate::WAIT];
    // Where the kernel has no io_uring, or no more of it, the next engine takes its place.
    calls.extend(choice.io_uring.then_some(image::IO_URING));
    calls.extend(choice.aio.then_some(image::AIO));
    calls
}
