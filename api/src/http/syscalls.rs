//! The system calls of the server's threads.

use sandbox::paths::FOLLOW;
use sandbox::{Call, Role, Set, call, common};

/// Requests, the descriptors that come along, answers.
const TALK: Set = &[
    call::ioctl(&[libc::FIONBIO as u32]),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_sendto),
    Call::any(libc::SYS_shutdown),
];

/// The thread of one connection.
pub const CONNECTION: Role<'static> =
    Role { asked_by: "a connection of the API", sets: &[common::EVERYWHERE, TALK, FOLLOW] };

/// The thread that takes connections and starts a thread for each.
pub const SERVER: Role<'static> = Role {
    asked_by: "the API",
    sets: &[common::EVERYWHERE, common::STARTS_THREADS, TALK, FOLLOW, &[Call::any(libc::SYS_accept4)]],
};
