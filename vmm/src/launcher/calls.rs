//! What the launcher and the programs it starts ask of the kernel.
//!
//! A program inherits the launcher's filter and gets a narrower one of its own; passt then puts its own on top. What is not listed fails
//! with EPERM rather than ending the program: other versions of passt and of the C library ask for things that they can do without.

use sandbox::call::all;
use sandbox::{Call, Mode, Set, When, call, common};

/// The mode of these filters, where the process has another.
pub(super) fn mode(of_process: Mode) -> Mode {
    match of_process {
        Mode::Kill | Mode::Errno => Mode::Errno,
        other => other,
    }
}

/// A program that begins: the linker, the C library, a script in its place. Memory may become executable.
const BEGIN: Set = &all([
    libc::SYS_execve,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prlimit64,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_getcwd,
    libc::SYS_uname,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getppid,
    libc::SYS_rt_sigaction,
    libc::SYS_dup2,
    libc::SYS_fcntl,
    libc::SYS_umask,
]);

/// Filters on top of those that are there.
const FILTERS: Set = &[
    common::CONFINES_ITSELF,
    Call::one_of(libc::SYS_seccomp, 0, &[libc::SECCOMP_GET_NOTIF_SIZES]),
    Call::any(libc::SYS_prctl),
];

/// passt as it confines itself: capabilities, another user, namespaces, an empty root (passt(1), "NOTES").
const CONFINE: Set = &all([
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chdir,
    libc::SYS_close_range,
    libc::SYS_getdents64,
    libc::SYS_setsid,
]);

/// passt at work: sockets, timers, the guest's memory.
const WORK: Set = &[
    call::socket(&[
        libc::AF_UNIX as u32,
        libc::AF_INET as u32,
        libc::AF_INET6 as u32,
        libc::AF_NETLINK as u32,
    ]),
    Call::any(libc::SYS_bind),
    Call::any(libc::SYS_listen),
    Call::any(libc::SYS_accept),
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_getsockname),
    Call::any(libc::SYS_getpeername),
    Call::any(libc::SYS_setsockopt),
    Call::any(libc::SYS_getsockopt),
    Call::any(libc::SYS_shutdown),
    Call::any(libc::SYS_sendmsg),
    Call::any(libc::SYS_sendmmsg),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_recvmmsg),
    Call::any(libc::SYS_timerfd_create),
    Call::any(libc::SYS_timerfd_settime),
    Call::any(libc::SYS_timerfd_gettime),
    Call::any(libc::SYS_clock_getres),
    Call::any(libc::SYS_fallocate),
    Call::any(libc::SYS_ftruncate),
    Call::any(libc::SYS_readv),
    Call::any(libc::SYS_memfd_create),
    call::ioctl(&[libc::FIONBIO as u32, libc::FIONREAD as u32, libc::TIOCGWINSZ as u32]),
];

/// Whom it connects to, as it likes.
const CONNECTS: Set = &[Call::any(libc::SYS_connect), Call::any(libc::SYS_sendto)];

/// The same, each looked at. What goes to a connected socket, or through `sendmsg`, is not.
const ASKS: Set = &[
    Call::new(libc::SYS_connect, When::Supervised),
    Call::one_of(libc::SYS_sendto, 4, &[0]),
    Call::new(libc::SYS_sendto, When::Supervised),
];

/// Only that is looked at, where there are no filters otherwise.
pub(super) const SUPERVISED: &[Set] = &[ASKS];

/// passt, from its first instruction.
pub(crate) const PASST: &[Set] = &[common::EVERYWHERE, BEGIN, FILTERS, CONFINE, WORK, CONNECTS];

/// passt whose connections are looked at.
pub(crate) const PASST_SUPERVISED: &[Set] = &[common::EVERYWHERE, BEGIN, FILTERS, CONFINE, WORK, ASKS];

/// What the launcher does besides.
const START: Set = &[
    // Its flags are in memory, where no filter sees them; the C library then takes the older call.
    Call::new(libc::SYS_clone3, When::Refused(libc::ENOSYS as u16)),
    // A process, not a thread.
    Call::new(libc::SYS_clone, When::With(0, libc::SIGCHLD as u32)),
    Call::any(libc::SYS_pipe2),
    Call::any(libc::SYS_socketpair),
    Call::any(libc::SYS_wait4),
    Call::any(libc::SYS_waitid),
    Call::any(libc::SYS_kill),
    // Those whom it started, whose connections it makes.
    Call::any(libc::SYS_process_vm_readv),
    Call::any(libc::SYS_pidfd_open),
    Call::any(libc::SYS_pidfd_getfd),
    call::ioctl(&[
        libc::SECCOMP_IOCTL_NOTIF_RECV as u32,
        libc::SECCOMP_IOCTL_NOTIF_SEND as u32,
        libc::SECCOMP_IOCTL_NOTIF_ID_VALID as u32,
    ]),
];

/// The launcher, with all that its programs do.
pub(crate) const LAUNCHER: &[Set] = &[common::EVERYWHERE, START, BEGIN, FILTERS, CONFINE, WORK, CONNECTS];
