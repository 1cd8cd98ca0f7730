//! The system calls of this side, for those who confine the threads that use it.

use sandbox::{Call, Set, When, call};

/// Saying something to a back end, hearing what it says, and letting go of it.
pub const TALK: Set = &[
    Call::any(libc::SYS_sendmsg),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_shutdown),
    call::ioctl(&[libc::FIONBIO as u32]),
    // The length of a file that came with an answer.
    Call::new(libc::SYS_statx, When::With(2, libc::AT_EMPTY_PATH as u32)),
    Call::any(libc::SYS_fstat),
];

/// Taking what a back end knows of its driver, and giving it to the next, besides [`TALK`].
pub const HAND_OVER: Set = &[Call::any(libc::SYS_pipe2)];

/// Finding a back end, besides [`TALK`].
pub const DIAL: Set = &[
    call::socket(&[libc::AF_UNIX as u32]),
    Call::one_of(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u32]),
    Call::any(libc::SYS_connect),
    // Whether there is a socket, or something else.
    Call::any(libc::SYS_statx),
    // Whether the program is to end before somebody answers.
    Call::any(libc::SYS_rt_sigpending),
];

/// Finding one that connects to us.
pub const ACCEPT: Set = &[Call::any(libc::SYS_accept4)];

/// Looking for one again and again, and beginning to.
pub const SEARCH: Set = &[Call::any(libc::SYS_timerfd_create), Call::any(libc::SYS_timerfd_settime)];
