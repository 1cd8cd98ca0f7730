//! The system calls of this crate, for those who confine the threads that use it.

use sandbox::{Call, Set, When, call, common};

use crate::geometry::{BLKGETSIZE64, BLKIOMIN, BLKIOOPT, BLKPBSZGET, BLKSSZGET};

/// Opening an image, looking at it, locking it, changing its size. It takes those of [`TRANSFER`] as well.
pub const OPEN: Set = &[
    call::ioctl(&[
        BLKGETSIZE64 as u32,
        BLKSSZGET as u32,
        BLKPBSZGET as u32,
        BLKIOMIN as u32,
        BLKIOOPT as u32,
    ]),
    call::fcntl(&[
        libc::F_GETFL as u32,
        libc::F_SETFL as u32,
        libc::F_OFD_SETLK as u32,
        libc::F_OFD_GETLK as u32,
    ]),
    // Files get the time of their last change back after a trial of what they can do.
    Call::any(libc::SYS_utimensat),
];

/// What all engines and formats do on the thread of a queue: moving bytes at once, making room, giving it back.
pub const TRANSFER: Set = &[
    Call::any(libc::SYS_preadv),
    Call::any(libc::SYS_pwritev),
    Call::any(libc::SYS_pread64),
    Call::any(libc::SYS_pwrite64),
    Call::any(libc::SYS_fdatasync),
    Call::any(libc::SYS_fallocate),
    Call::any(libc::SYS_ftruncate),
    Call::any(libc::SYS_lseek),
    // The length of an open file.
    Call::new(libc::SYS_statx, When::With(2, libc::AT_EMPTY_PATH as u32)),
    Call::any(libc::SYS_fstat),
];

/// What the io_uring engine does besides, once it is made. Of the ways to change a ring there is only the one that switches it on.
pub const IO_URING: Set = &[
    Call::any(libc::SYS_io_uring_enter),
    Call::one_of(libc::SYS_io_uring_register, 1, &[IORING_REGISTER_ENABLE_RINGS]),
    // Whether a file takes writes without waiting is found out by one.
    Call::any(libc::SYS_pwritev2),
];

/// From `linux/io_uring.h`.
const IORING_REGISTER_ENABLE_RINGS: u32 = 12;

/// What the AIO engine does besides.
pub const AIO: Set = &[Call::any(libc::SYS_io_submit), Call::any(libc::SYS_io_getevents)];

/// Making an engine, before its thread is confined.
pub const MAKE_ENGINE: Set = &[
    Call::any(libc::SYS_io_uring_setup),
    Call::any(libc::SYS_io_uring_register),
    call::madvise(&[libc::MADV_DONTFORK as u32]),
    Call::any(libc::SYS_io_setup),
    // How much of what the kernel has for AIO is used.
    common::OPEN,
    Call::any(libc::SYS_statx),
    DROP_ENGINE[0],
];

/// Dropping one.
pub const DROP_ENGINE: Set = &[Call::any(libc::SYS_io_destroy)];
