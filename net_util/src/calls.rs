//! The system calls of this crate, for those who confine the threads that use it.

use sandbox::{Call, Set, When, call};

/// Opening taps and setting their links up. It takes those of [`SET`] as well.
pub const OPEN: Set = &[
    call::ioctl(&[
        libc::TUNSETIFF as u32,
        libc::TUNGETIFF as u32,
        libc::TUNSETVNETHDRSZ as u32,
        libc::SIOCGIFFLAGS as u32,
        libc::SIOCSIFFLAGS as u32,
        libc::SIOCGIFMTU as u32,
        libc::SIOCSIFMTU as u32,
        libc::SIOCGIFHWADDR as u32,
        libc::SIOCSIFHWADDR as u32,
        libc::SIOCGIFADDR as u32,
        libc::SIOCSIFADDR as u32,
        libc::SIOCGIFNETMASK as u32,
        libc::SIOCSIFNETMASK as u32,
        libc::SIOCGIFINDEX as u32,
        libc::SIOCDIFADDR as u32,
    ]),
    call::socket(&[libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_UNIX as u32]),
    call::fcntl(&[libc::F_GETFL as u32, libc::F_SETFL as u32]),
    // Whether two descriptors are the same tap; of this process only, which the kernel checks.
    Call::new(libc::SYS_kcmp, When::Ourselves(0)),
];

/// Changing what the kernel does to frames, and which queues it uses.
pub const SET: Set = &[call::ioctl(&[libc::TUNSETOFFLOAD as u32, libc::TUNSETQUEUE as u32]), MOVE[0]];

/// Moving frames.
pub const MOVE: Set = &[Call::any(libc::SYS_readv), Call::any(libc::SYS_read)];
