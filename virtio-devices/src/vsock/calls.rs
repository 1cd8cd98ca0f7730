//! What socket devices ask of the kernel.

use device::Calls;
use sandbox::{Call, Set, call, common};
use terminal::calls as terminal;

/// Programs that come, are asked for, and go. No sockets but UNIX ones.
const SOCKETS: Set = &[
    call::socket(&[libc::AF_UNIX as u32]),
    Call::any(libc::SYS_connect),
    Call::any(libc::SYS_accept4),
    call::ioctl(&[libc::FIONBIO as u32]),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_sendto),
    Call::any(libc::SYS_readv),
    Call::any(libc::SYS_shutdown),
    Call::any(libc::SYS_timerfd_settime),
];

pub(super) const CALLS: Calls = Calls {
    own: &[SOCKETS],
    shared: &[],
    registers: &[&[Call::any(libc::SYS_timerfd_create), Call::any(libc::SYS_shutdown)]],
    upkeep: &[],
    host: &[common::FILES, terminal::OPEN],
};
