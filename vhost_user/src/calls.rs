//! The system calls of this crate, for those who confine the threads that use it.

use sandbox::{Call, Set, call};

/// A server's thread: connections, messages with descriptors, memory that front ends share and memory that they keep for us. No file is
/// opened.
pub const SERVE: Set = &[
    Call::any(libc::SYS_accept4),
    // Of a front end that listens.
    call::socket(&[libc::AF_UNIX as u32]),
    Call::any(libc::SYS_connect),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_sendmsg),
    Call::any(libc::SYS_sendto),
    Call::any(libc::SYS_shutdown),
    call::ioctl(&[libc::FIONBIO as u32]),
    // Descriptors that came, and how long the memory behind them is.
    call::fcntl(&[libc::F_GETFL as u32, libc::F_SETFL as u32, libc::F_ADD_SEALS as u32]),
    Call::any(libc::SYS_lseek),
    Call::any(libc::SYS_fstat),
    Call::any(libc::SYS_memfd_create),
    Call::any(libc::SYS_ftruncate),
];
