//! System calls that the C library has no functions for, as far as they are needed here.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// The answer of a call as the C library has it.
pub(super) fn check(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// A call that answers with a new descriptor.
fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(answer)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers; there is one thread.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

pub(super) fn join_users(namespace: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER) }.into()).map(drop)
}

/// `openat(2)`, with `O_CLOEXEC`. `mode` counts if a file is made.
pub(super) fn open_at(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: libc::c_int,
    mode: u32,
) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the name ends in NUL, and the descriptor is open.
    descriptor(unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags, mode) }.into())
}

/// The descriptor that stands for the working directory, or for nothing where a path is absolute.
pub(super) fn here() -> BorrowedFd<'static> {
    // SAFETY: it is not closed by anybody, and not -1.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

pub(super) fn make_directory(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: the name ends in NUL, and the descriptor is open.
    check(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), 0o755) }.into()).map(drop)
}

pub(super) fn make_node(
    directory: BorrowedFd<'_>,
    name: &CStr,
    mode: libc::mode_t,
    device: libc::dev_t,
) -> io::Result<()> {
    // SAFETY: the name ends in NUL, and the descriptor is open.
    check(unsafe { libc::mknodat(directory.as_raw_fd(), name.as_ptr(), mode, device) }.into()).map(drop)
}

pub(super) fn give(
    directory: BorrowedFd<'_>,
    name: &CStr,
    uid: libc::uid_t,
    gid: libc::gid_t,
) -> io::Result<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name ends in NUL, and the descriptor is open.
    check(unsafe { libc::fchownat(directory.as_raw_fd(), name.as_ptr(), uid, gid, flags) }.into()).map(drop)
}

pub(super) fn stat(file: &OwnedFd) -> io::Result<libc::stat> {
    // SAFETY: zeros are a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which lives during the call.
    check(unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) }.into())?;
    Ok(stat)
}

/// As [`stat`], of a name in a directory; of a link itself.
pub(super) fn stat_at(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<libc::stat> {
    // SAFETY: zeros are a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name ends in NUL, and the kernel fills the structure, which lives during the call.
    check(unsafe { libc::fstatat(directory.as_raw_fd(), name.as_ptr(), &raw mut stat, flags) }.into())?;
    Ok(stat)
}

/// The kind of the file system that holds this (`linux/magic.h`).
pub(super) fn file_system(file: &OwnedFd) -> io::Result<libc::c_long> {
    // SAFETY: zeros are a valid value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which lives during the call.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) }.into())?;
    Ok(stat.f_type)
}

/// A copy of the mount that holds this, from here on, attached nowhere (`open_tree(2)`).
pub(super) fn copy_tree(of: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC as libc::c_uint
        | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE).cast_unsigned();
    // SAFETY: the path ends in NUL, and the descriptor is open.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, of.as_raw_fd(), c"".as_ptr(), flags) })
}

/// What is changed of a mount.
#[derive(Default)]
pub(super) struct Change<'a> {
    pub(super) set: u64,
    /// The user namespace that says whose file looks like whose.
    pub(super) map: Option<&'a OwnedFd>,
    /// Those below it too.
    pub(super) recursive: bool,
}

/// `mount_setattr(2)` of a mount (Linux 5.12).
pub(super) fn change_mount(mount: &OwnedFd, change: &Change<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: change.set | if change.map.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: 0,
        propagation: 0,
        userns_fd: change.map.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
    };
    let recursive = if change.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends in NUL, the descriptors are open, and the structure lives during the call and has this size.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(answer).map(drop)
}

/// Has mounts of this namespace know nothing of those of others, and others nothing of ours.
pub(super) fn part_mounts() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the path ends in NUL; the other pointers may be null.
    check(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()) }.into())
        .map(drop)
}

/// A new file system of this kind, mounted nowhere (`fsopen(2)`, `fsconfig(2)`, `fsmount(2)`).
pub(super) fn new_mount(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> io::Result<OwnedFd> {
    const SET_STRING: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    const CLOEXEC: libc::c_uint = 1;
    // SAFETY: the name ends in NUL.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    let fd = context.as_raw_fd();
    for (key, value) in options {
        // SAFETY: both end in NUL, and the descriptor is open.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, SET_STRING, key.as_ptr(), value.as_ptr(), 0) })?;
    }
    let none: *const libc::c_char = ptr::null();
    // SAFETY: this command takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, CREATE, none, none, 0) })?;
    // SAFETY: no pointers; the descriptor is open.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, fd, CLOEXEC, attributes) })
}

/// Mounts there what is attached nowhere (`move_mount(2)`).
pub(super) fn attach(mount: &OwnedFd, place: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    // SAFETY: the paths end in NUL, and the descriptors are open.
    let answer = unsafe {
        libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), empty, place.as_raw_fd(), empty, flags)
    };
    check(answer).map(drop)
}

/// Makes this mount, which is on the tree of the present root, the root, and lets go of the old one with all that is on it.
pub(super) fn replace_root(new: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    check(unsafe { libc::fchdir(new.as_raw_fd()) }.into())?;
    // The old root comes to lie on the new one (pivot_root(2), "pivot_root(".", ".")").
    // SAFETY: both paths end in NUL.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: the path ends in NUL.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into())?;
    // SAFETY: the path ends in NUL.
    check(unsafe { libc::chdir(c"/".as_ptr()) }.into()).map(drop)
}

/// `fork(2)`; nothing in the child. There is one thread.
pub(super) fn fork() -> io::Result<Option<libc::pid_t>> {
    // SAFETY: there is one thread, so that the child finds no lock taken.
    let child = check(unsafe { libc::fork() }.into())?;
    Ok(libc::pid_t::try_from(child).ok().filter(|child| *child != 0))
}

/// A descriptor of a process, readable when it has ended (`pidfd_open(2)`).
pub(super) fn process(id: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) })
}

pub(super) fn signal(process: &OwnedFd, signal: libc::c_int) -> io::Result<()> {
    let none: *const libc::siginfo_t = ptr::null();
    // SAFETY: the descriptor is open, and the pointer may be null.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, none, 0) })
        .map(drop)
}

/// Waits for the end of a child; its status as `wait(2)` has it.
pub(super) fn wait(child: libc::pid_t) -> io::Result<libc::c_int> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes a number.
        match check(unsafe { libc::waitpid(child, &raw mut status, 0) }.into()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|_| status),
        }
    }
}

/// `prctl(2)` with numbers.
pub(super) fn control(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers.
    check(unsafe { libc::prctl(option, first, second, none, none) }.into()).map(drop)
}

pub(super) fn set_dumpable(dumpable: bool) -> io::Result<()> {
    control(libc::PR_SET_DUMPABLE, dumpable.into(), 0)
}

/// Both ends of a pipe: that to read from, and that to write to.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two numbers.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
    // SAFETY: both are new and ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Closes everything but the standard streams and this, in a process that uses nothing else until its end.
pub(super) fn close_all_but(kept: &OwnedFd) -> io::Result<()> {
    let fd = kept.as_raw_fd().cast_unsigned();
    for (first, last) in [(libc::STDERR_FILENO.cast_unsigned() + 1, fd - 1), (fd + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: nothing that is closed is used any more.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}

/// Gives the heap back to the host: to a process that has nothing more to remember it is only a cost. The first of it stays, where a program that
/// is linked statically has the variables of its first thread (`pthread_self(3)` leads to them).
///
/// # Safety
/// Nothing on the heap is used any more, and nothing is allocated.
pub(super) unsafe fn forget_heap() {
    /// What the C library knows of a thread takes less.
    const THREAD: usize = 4096;
    // SAFETY: neither changes anything.
    let (thread, end) = unsafe { (libc::pthread_self() as usize, libc::sbrk(0) as usize) };
    // SAFETY: a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.unsigned_abs() as usize;
    let begin = (thread + THREAD).next_multiple_of(page);
    if begin < end {
        // SAFETY: the caller's promise. That it does not happen changes nothing but the cost.
        unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_DONTNEED) };
    }
}

/// Waits until one of these can be read or has no other end any more, or for no time if `now`; which can.
pub(super) fn readable<const N: usize>(fds: [&OwnedFd; N], now: bool) -> io::Result<[bool; N]> {
    let mut list =
        fds.map(|fd| libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: the list is valid for its length.
        let count = unsafe { libc::poll(list.as_mut_ptr(), N as libc::nfds_t, if now { 0 } else { -1 }) };
        match check(count.into()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|_| list.map(|entry| entry.revents != 0)),
        }
    }
}
