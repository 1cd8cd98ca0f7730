//! The system calls of this crate, for those who confine the threads that use it.

use sandbox::{Call, Role, Set, When, call, common};

use crate::{presence, userfault};

/// Folders of snapshots: reading, locking, making, completing and removing what is in them.
pub const FOLDER: Set = &[
    Call::any(libc::SYS_faccessat2),
    Call::any(libc::SYS_faccessat),
    Call::any(libc::SYS_unlinkat),
    Call::any(libc::SYS_renameat2),
    call::fcntl(&[libc::F_OFD_SETLK as u32]),
];

/// Writing one, files and all.
pub const WRITE: Set = &[
    call::ioctl(&[presence::REQUEST]),
    call::madvise(&[libc::MADV_POPULATE_READ as u32]),
    Call::any(libc::SYS_sync_file_range),
    Call::any(libc::SYS_fadvise64),
];

/// Bringing memory back, and setting a pager up.
pub const RESTORE: Set = &[
    call::ioctl(userfault::SETUP),
    Call::any(libc::SYS_userfaultfd),
    call::madvise(&[libc::MADV_POPULATE_READ as u32]),
    Call::any(libc::SYS_fadvise64),
];

/// The thread of a pager.
pub const PAGER: Role<'static> = Role {
    asked_by: "the pager",
    sets: &[
        common::EVERYWHERE,
        &[
            call::ioctl(userfault::WORK),
            Call::any(libc::SYS_pread64),
            Call::any(libc::SYS_lseek),
            // How long the file is, which somebody may have made shorter.
            Call::new(libc::SYS_statx, When::With(2, libc::AT_EMPTY_PATH as u32)),
            Call::any(libc::SYS_fstat),
            Call::any(libc::SYS_fadvise64),
        ],
    ],
};

/// A thread that writes a snapshot.
pub const WRITER: Role<'static> =
    Role { asked_by: "the writer of a snapshot", sets: &[common::EVERYWHERE, common::FILES, FOLDER, WRITE] };
