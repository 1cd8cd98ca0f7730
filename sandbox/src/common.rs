//! What all code does, whatever it is for.

use crate::call::{self, Call, Set, When, ioctl, madvise, prctl};

/// What runs on every thread: memory, waiting, logging, eventfds, the end of the thread, a panic, a report of a violation.
///
/// No memory becomes executable, no thread is started, nothing is opened, and signals stay within the process.
pub const EVERYWHERE: Set = &[
    // Logs and eventfds.
    Call::any(libc::SYS_read),
    Call::any(libc::SYS_write),
    Call::any(libc::SYS_writev),
    Call::any(libc::SYS_close),
    // A full pipe or a slow terminal.
    Call::any(libc::SYS_poll),
    // The allocator; stacks of threads that were waited for.
    Call::new(libc::SYS_mmap, When::Without(2, libc::PROT_EXEC as u32)),
    Call::new(libc::SYS_mprotect, When::Without(2, libc::PROT_EXEC as u32)),
    Call::any(libc::SYS_munmap),
    Call::any(libc::SYS_mremap),
    Call::any(libc::SYS_brk),
    madvise(&[libc::MADV_DONTNEED as u32, libc::MADV_FREE as u32]),
    // Seeds of hash maps.
    Call::any(libc::SYS_getrandom),
    // Locks and channels.
    Call::any(libc::SYS_futex),
    Call::any(libc::SYS_sched_yield),
    // Descriptors that are waited for, and their copies.
    Call::any(libc::SYS_epoll_create1),
    Call::any(libc::SYS_epoll_ctl),
    Call::any(libc::SYS_epoll_wait),
    Call::any(libc::SYS_epoll_pwait),
    Call::any(libc::SYS_eventfd2),
    call::fcntl(&[libc::F_DUPFD_CLOEXEC as u32, libc::F_GETFD as u32]),
    // Clocks, where the kernel does not let us read them without a call, and sleep.
    Call::any(libc::SYS_clock_gettime),
    Call::any(libc::SYS_gettimeofday),
    Call::any(libc::SYS_clock_nanosleep),
    Call::any(libc::SYS_nanosleep),
    Call::any(libc::SYS_restart_syscall),
    // The end of a thread, or of the program by a panic, an abort or a violation; the terminal gets its settings back.
    Call::any(libc::SYS_gettid),
    Call::any(libc::SYS_getpid),
    Call::new(libc::SYS_tgkill, When::Ourselves(0)),
    Call::any(libc::SYS_rt_sigreturn),
    Call::any(libc::SYS_rt_sigprocmask),
    Call::one_of(
        libc::SYS_rt_sigaction,
        0,
        &[libc::SIGABRT as u32, libc::SIGSYS as u32, libc::SIGSEGV as u32, libc::SIGBUS as u32],
    ),
    Call::any(libc::SYS_sigaltstack),
    prctl(&[libc::PR_GET_NAME as u32]),
    ioctl(&[libc::TCGETS as u32, libc::TCSETS as u32]),
    Call::any(libc::SYS_exit),
    Call::any(libc::SYS_exit_group),
];

/// The process or thread itself, where a call takes the number of any other.
pub const OURS: u32 = 0;

/// What a thread does that starts others, and those do before they are confined themselves. A process is not started.
pub const STARTS_THREADS: Set = &[
    // Its flags are in memory, where no filter sees them; the C library then takes the older call.
    Call::new(libc::SYS_clone3, When::Refused(libc::ENOSYS as u16)),
    Call::new(libc::SYS_clone, When::With(0, (libc::CLONE_THREAD | libc::CLONE_VM) as u32)),
    Call::any(libc::SYS_set_robust_list),
    Call::any(libc::SYS_rseq),
    Call::any(libc::SYS_sched_getaffinity),
    Call::one_of(libc::SYS_sched_setaffinity, 0, &[OURS]),
    // Guard pages of stacks, as newer C libraries make them (MADV_GUARD_INSTALL, Linux 6.13).
    madvise(&[102]),
    prctl(&[libc::PR_SET_NAME as u32, libc::PR_SET_NO_NEW_PRIVS as u32]),
    // The C library's own signal for all threads at once.
    Call::one_of(libc::SYS_rt_sigaction, 0, &[33]),
    CONFINES_ITSELF,
];

/// Another filter on top of those that are there, which can only take more away.
pub const CONFINES_ITSELF: Call = Call::one_of(libc::SYS_seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER]);

/// Modes that no file gets from us: whoever runs it would become its owner, or its group's, and in a jail files of others are ours.
const FOR_OTHERS: u32 = libc::S_ISUID | libc::S_ISGID;

/// Opening a file, or making one.
pub const OPEN: Call = Call::new(libc::SYS_openat, When::Without(3, FOR_OTHERS));

/// Changing the mode of an open file.
pub const CHANGE_MODE: Call = Call::new(libc::SYS_fchmod, When::Without(1, FOR_OTHERS));

/// Files and their names: whoever opens what a user named.
pub const FILES: Set = &[
    OPEN,
    Call::any(libc::SYS_fstat),
    Call::any(libc::SYS_newfstatat),
    Call::any(libc::SYS_statx),
    Call::any(libc::SYS_lseek),
    Call::any(libc::SYS_pread64),
    Call::any(libc::SYS_pwrite64),
    Call::any(libc::SYS_readlink),
    Call::any(libc::SYS_unlink),
    Call::any(libc::SYS_ftruncate),
    Call::any(libc::SYS_getdents64),
    Call::any(libc::SYS_flock),
    Call::any(libc::SYS_fsync),
    Call::any(libc::SYS_fdatasync),
    Call::any(libc::SYS_umask),
    Call::any(libc::SYS_getcwd),
    Call::any(libc::SYS_readv),
];
