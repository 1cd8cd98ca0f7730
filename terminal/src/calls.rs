//! The system calls of this crate, for those who confine the threads that use it.

use device::Calls;
use sandbox::{Call, Set, call, common};

/// Of a device that is a console: clients come and write by the thread of quiet devices, and the guest writes by its own.
pub const CONSOLE: Calls =
    Calls { own: &[], shared: &[SERVE], registers: &[WRITE], upkeep: &[], host: &[common::FILES, OPEN] };

/// Opening the other end of a console, and letting go of it. It takes those of [`SERVE`] and [`WRITE`] as well.
pub const OPEN: Set = &[
    call::ioctl(&[libc::TIOCSPTLCK as u32, libc::TIOCGPTN as u32, libc::FIONBIO as u32]),
    call::socket(&[libc::AF_UNIX as u32]),
    Call::any(libc::SYS_bind),
    Call::any(libc::SYS_listen),
    Call::any(libc::SYS_connect),
    common::CHANGE_MODE,
    Call::any(libc::SYS_timerfd_create),
];

/// Waiting for input, for clients, and for room.
pub const SERVE: Set = &[
    WRITE[0],
    WRITE[1],
    call::ioctl(&[libc::FIONBIO as u32]),
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_shutdown),
    Call::any(libc::SYS_timerfd_settime),
];

/// Writing, and looking at a terminal's size.
pub const WRITE: Set = &[call::ioctl(&[libc::TIOCGWINSZ as u32]), Call::any(libc::SYS_sendto)];
