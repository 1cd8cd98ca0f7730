//! The kernel's interface for faults that a thread of ours resolves: `userfaultfd(2)`, `ioctl_userfaultfd(2)`, `linux/userfaultfd.h`.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::ioctl::{
    _IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

use crate::Error;
use crate::files::check;

const API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const EVENT_PAGEFAULT: u8 = 0x12;

#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RangeArg {
    start: u64,
    len: u64,
}

#[repr(C)]
struct RegisterArg {
    range: RangeArg,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArg {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct ZeroArg {
    range: RangeArg,
    mode: u64,
    zeropage: i64,
}

/// `struct uffd_msg`, for a page fault: event, then flags and address.
const MESSAGE: usize = 32;
const MESSAGE_ADDRESS: usize = 16;

ioctl_iowr_nr!(UFFDIO_API, 0xaa, 0x3f, ApiArg);
ioctl_iowr_nr!(UFFDIO_REGISTER, 0xaa, 0x00, RegisterArg);
ioctl_ior_nr!(UFFDIO_UNREGISTER, 0xaa, 0x01, RangeArg);
ioctl_ior_nr!(UFFDIO_WAKE, 0xaa, 0x02, RangeArg);
ioctl_iowr_nr!(UFFDIO_COPY, 0xaa, 0x03, CopyArg);
ioctl_iowr_nr!(UFFDIO_ZEROPAGE, 0xaa, 0x04, ZeroArg);
// Of /dev/userfaultfd.
ioctl_io_nr!(USERFAULTFD_IOC_NEW, 0xaa, 0x00);

const fn request(direction: u32, number: u32, size: usize) -> u32 {
    ioctl_expr(direction, 0xaa, number, size as u32) as u32
}

const BOTH: u32 = _IOC_READ | _IOC_WRITE;

/// The requests by which a userfaultfd is made and told what to watch.
pub(crate) const SETUP: &[u32] = &[
    request(_IOC_NONE, 0x00, 0),
    request(BOTH, 0x3f, size_of::<ApiArg>()),
    request(BOTH, 0x00, size_of::<RegisterArg>()),
    request(_IOC_READ, 0x01, size_of::<RangeArg>()),
];

/// The device that gives one to those who may open it.
pub const DEVICE: &str = "/dev/userfaultfd";

/// Those by which faults are served, and watching ends.
pub(crate) const WORK: &[u32] = &[
    request(_IOC_READ, 0x01, size_of::<RangeArg>()),
    request(_IOC_READ, 0x02, size_of::<RangeArg>()),
    request(BOTH, 0x03, size_of::<CopyArg>()),
    request(BOTH, 0x04, size_of::<ZeroArg>()),
];

/// How a request to fill pages ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// This many bytes from the start were filled; more than none.
    Bytes(u64),
    /// The first page was there already.
    Present,
    /// The kernel is busy changing mappings; ask again.
    Again,
    /// The memory is not there any more.
    Gone,
}

/// A descriptor for faults on missing pages. Closing it lets everybody who waits go on, with whatever memory is there then.
#[derive(Debug)]
pub(crate) struct Userfault(File);

impl Userfault {
    /// # Errors
    /// The host's kernel has no such thing, or does not allow it us.
    pub(crate) fn open() -> Result<Self, Error> {
        let fd = Self::descriptor().map_err(|source| {
            let hint = match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    "; it needs CAP_SYS_PTRACE, or access to /dev/userfaultfd, or the sysctl vm.unprivileged_userfaultfd=1"
                }
                Some(libc::ENOSYS) => "; the host's kernel was built without it",
                _ => "",
            };
            Error::Userfault { action: "open a userfaultfd", hint, source }
        })?;
        let mut arg = ApiArg { api: API, features: FEATURE_MISSING_SHMEM, ioctls: 0 };
        // SAFETY: the structure has the form that this call wants and lives during it.
        check(unsafe { ioctl_with_mut_ref(&fd, UFFDIO_API(), &mut arg) }).map_err(|source| {
            Error::Userfault { action: "agree with the kernel on userfaultfd", hint: "", source }
        })?;
        Ok(Userfault(fd))
    }

    /// The system call is asked first; without it the device may still be there. Faults in the kernel are wanted too: those of a virtual CPU are.
    fn descriptor() -> io::Result<File> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: a call without pointers.
        let called = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let refused = match RawFd::try_from(called) {
            // SAFETY: the descriptor is new and ours.
            Ok(fd) if fd >= 0 => return Ok(unsafe { File::from_raw_fd(fd) }),
            _ => io::Error::last_os_error(),
        };
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(|_| refused)?;
        // SAFETY: a request whose argument is a number.
        let fd = check(unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), flags as libc::c_ulong) })?;
        // SAFETY: the descriptor is new and ours.
        Ok(unsafe { File::from_raw_fd(fd) })
    }

    /// From now on who touches a missing page in this range of our addresses waits for us.
    pub(crate) fn register(&self, range: Range<u64>) -> io::Result<()> {
        let mut arg = RegisterArg { range: range_arg(range), mode: MODE_MISSING, ioctls: 0 };
        // SAFETY: the structure has the form that this call wants and lives during it; no memory is changed.
        check(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_REGISTER(), &mut arg) }).map(drop)
    }

    pub(crate) fn unregister(&self, range: Range<u64>) -> io::Result<()> {
        // SAFETY: the structure has the form that this call wants and lives during it; no memory is changed.
        check(unsafe { ioctl_with_ref(&self.0, UFFDIO_UNREGISTER(), &range_arg(range)) }).map(drop)
    }

    /// Lets those who wait in this range look again.
    pub(crate) fn wake(&self, range: Range<u64>) -> io::Result<()> {
        // SAFETY: the structure has the form that this call wants and lives during it; no memory is changed.
        check(unsafe { ioctl_with_ref(&self.0, UFFDIO_WAKE(), &range_arg(range)) }).map(drop)
    }

    /// Makes pages at `address`, if they are missing, with this content.
    pub(crate) fn copy(&self, address: u64, bytes: &[u8]) -> io::Result<Filled> {
        let mut arg =
            CopyArg { dst: address, src: bytes.as_ptr() as u64, len: bytes.len() as u64, mode: 0, copy: 0 };
        // SAFETY: the structure has the form that this call wants; it and the bytes live during the call. Only missing pages of registered memory are
        // filled, which nobody can have looked at.
        let result = check(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_COPY(), &mut arg) });
        filled(result, arg.copy, arg.len)
    }

    /// Makes pages of zeros, if they are missing.
    pub(crate) fn zero(&self, range: Range<u64>) -> io::Result<Filled> {
        let length = range.end - range.start;
        let mut arg = ZeroArg { range: range_arg(range), mode: 0, zeropage: 0 };
        // SAFETY: the structure has the form that this call wants and lives during it. Only missing pages of registered memory are filled.
        let result = check(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_ZEROPAGE(), &mut arg) });
        filled(result, arg.zeropage, length)
    }

    /// Addresses of faults that wait, as many as there are and fit.
    pub(crate) fn faults(&self, into: &mut Vec<u64>) -> io::Result<()> {
        let mut messages = [0; 16 * MESSAGE];
        let length = match (&self.0).read(&mut messages) {
            Ok(length) => length,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(e) => return Err(e),
        };
        for message in messages[..length].chunks_exact(MESSAGE) {
            let mut address = [0; 8];
            address.copy_from_slice(&message[MESSAGE_ADDRESS..MESSAGE_ADDRESS + 8]);
            if message[0] == EVENT_PAGEFAULT {
                into.push(u64::from_ne_bytes(address));
            }
        }
        Ok(())
    }
}

impl AsRawFd for Userfault {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn range_arg(range: Range<u64>) -> RangeArg {
    RangeArg { start: range.start, len: range.end - range.start }
}

/// What the kernel says it did: `done` is the bytes that it filled, or a negative error if there are none.
fn filled(result: io::Result<libc::c_int>, done: i64, wanted: u64) -> io::Result<Filled> {
    let error = match result {
        Ok(_) => return Ok(Filled::Bytes(wanted)),
        Err(e) => e,
    };
    match (u64::try_from(done), error.raw_os_error()) {
        (Ok(done), _) if done > 0 => Ok(Filled::Bytes(done)),
        (_, Some(libc::EEXIST)) => Ok(Filled::Present),
        (_, Some(libc::EAGAIN)) => Ok(Filled::Again),
        (_, Some(libc::ENOENT | libc::ESRCH)) => Ok(Filled::Gone),
        _ => Err(error),
    }
}
