//! One queue pair of a tap: an open `/dev/net/tun` that was attached to an interface.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use bitflags::bitflags;

use crate::sys::{self, Control, IfReq};
use crate::{Error, IfName, MacAddr};

/// Bytes in front of each frame: `struct virtio_net_hdr_v1`, with its `num_buffers`.
///
/// The kernel neither reads nor writes the last two of them.
pub const VNET_HDR_LEN: usize = 12;

/// The device by which taps are made and opened.
pub const TUN_PATH: &str = "/dev/net/tun";

/// Its major and minor number (`TUN_MINOR` of the misc devices).
const TUN_DEVICE: (u32, u32) = (10, 200);

bitflags! {
    /// What the reader of a tap can take: the kernel leaves this work undone in the frames that it hands over.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Frames whose checksum is not filled in.
        const CSUM = libc::TUN_F_CSUM;
        /// TCP segments over IPv4 that are larger than the MTU.
        const TSO4 = libc::TUN_F_TSO4;
        /// TCP segments over IPv6 that are larger than the MTU.
        const TSO6 = libc::TUN_F_TSO6;
        /// Large TCP segments with ECN bits.
        const TSO_ECN = libc::TUN_F_TSO_ECN;
        /// UDP datagrams that are to be fragmented.
        const UFO = libc::TUN_F_UFO;
        /// Several UDP datagrams over IPv4 in one frame.
        const USO4 = libc::TUN_F_USO4;
        /// Several UDP datagrams over IPv6 in one frame.
        const USO6 = libc::TUN_F_USO6;
    }
}

impl Offloads {
    /// What kernels before 6.2 do not know.
    pub const USO: Offloads = Offloads::USO4.union(Offloads::USO6);

    /// The set without what makes no sense in it: nothing goes without checksums, ECN not without large segments. The kernel packs UDP
    /// datagrams over both versions of IP or over none.
    pub fn consistent(self) -> Self {
        if !self.contains(Offloads::CSUM) {
            return Offloads::empty();
        }
        let mut kept = self;
        if !self.intersects(Offloads::TSO4 | Offloads::TSO6) {
            kept -= Offloads::TSO_ECN;
        }
        if !self.contains(Offloads::USO) {
            kept -= Offloads::USO;
        }
        kept
    }
}

/// Whether taps can be had on this host: `/dev/net/tun` is there and may be opened.
pub fn check_tun() -> Result<(), Error> {
    open_tun().map(drop)
}

fn open_tun() -> Result<File, Error> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN_PATH);
    opened.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::NoDriver(e),
        _ => Error::OpenTun(e),
    })
}

/// One queue pair of a tap. Closing the last one of a tap that is not persistent removes the interface.
///
/// Reads and writes never block. One call carries one frame with its header.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: IfName,
}

impl Tap {
    /// Opens the tun device and attaches it to the interface `name`, with `flags` of `TUNSETIFF`.
    ///
    /// The inner error is that of the attachment, for the caller to interpret.
    pub(crate) fn attach(name: &IfName, flags: i32) -> Result<io::Result<Self>, Error> {
        let file = open_tun()?;
        let mut request =
            IfReq::named(name).with_flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags);
        if let Err(error) = sys::tun_request(&file, libc::TUNSETIFF, &mut request) {
            return Ok(Err(error));
        }
        let tap = Tap { file, name: IfName::new(&request.name())? };
        tap.set_header_len()?;
        tap.set_offloads(Offloads::empty())?;
        Ok(Ok(tap))
    }

    /// Opens another queue pair of the macvtap `name`, whose device file has the interface's number in its name. `None` if the
    /// interface is no macvtap, or that of another network namespace has the file.
    pub(crate) fn macvtap(name: &IfName) -> Result<Option<Self>, Error> {
        let failed = |source| Error::Attach { name: name.to_string(), source };
        let index = Control::v4().and_then(|control| control.index(name)).map_err(failed)?;
        let path = format!("/dev/tap{index}");
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::Permission { name: name.to_string(), operation: "open its device file" });
            }
            opened => opened.map_err(failed)?,
        };
        let tap = Tap::from_fd(file.as_raw_fd())?;
        Ok(Some(tap).filter(|tap| tap.name == *name))
    }

    /// The address of a macvtap's link, which is that of whoever reads the tap; `None` for other taps, where it is the host's.
    pub fn own_mac(&self) -> Option<MacAddr> {
        let device = self.file.metadata().ok()?.rdev();
        if device == libc::makedev(TUN_DEVICE.0, TUN_DEVICE.1) {
            return None;
        }
        sys::mac(&self.file, &self.name).ok()
    }

    /// Duplicates the descriptor `fd`, after making sure that it is a tap whose frames have our shape.
    ///
    /// The interface may live in another network namespace: nothing but the descriptor itself is used.
    pub(crate) fn from_fd(fd: RawFd) -> Result<Self, Error> {
        // SAFETY: no pointer is passed; a number that is not open gives EBADF.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(Error::BadFd { fd, source: io::Error::last_os_error() });
        }
        // SAFETY: the call succeeded, so `copy` is open and nobody else's.
        let file = unsafe { File::from_raw_fd(copy) };
        let is_device = file.metadata().is_ok_and(|m| m.file_type().is_char_device());
        let mut request = IfReq::empty();
        if !is_device || sys::tun_request(&file, libc::TUNGETIFF, &mut request).is_err() {
            return Err(Error::FdNotATap(fd));
        }
        let (flags, name) = (request.flags(), request.name());
        if flags & libc::IFF_TAP == 0 {
            return Err(Error::FdNotATap(fd));
        }
        for (bit, flag) in [(libc::IFF_NO_PI, "IFF_NO_PI"), (libc::IFF_VNET_HDR, "IFF_VNET_HDR")] {
            if flags & bit == 0 {
                return Err(Error::FdFlags { fd, name, flag });
            }
        }
        let tap = Tap { file, name: IfName::new(&name)? };
        tap.set_nonblocking()?;
        tap.set_header_len()?;
        tap.set_offloads(Offloads::empty())?;
        Ok(tap)
    }

    /// Another descriptor of the same queue pair, to be waited for apart from this one.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let file = self.file.try_clone().map_err(|e| self.error("duplicate the descriptor", e))?;
        Ok(Tap { file, name: self.name.clone() })
    }

    /// The interface.
    pub fn name(&self) -> &IfName {
        &self.name
    }

    fn error(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Tap { name: self.name.to_string(), operation, source }
    }

    fn set_nonblocking(&self) -> Result<(), Error> {
        let fd = self.file.as_raw_fd();
        // SAFETY: no pointer is passed.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        // SAFETY: as above.
        if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
            return Err(self.error("set the non-blocking mode", io::Error::last_os_error()));
        }
        Ok(())
    }

    fn set_header_len(&self) -> Result<(), Error> {
        let mut len = VNET_HDR_LEN as libc::c_int;
        // SAFETY: this request takes a `c_int`.
        unsafe { sys::ioctl(&self.file, libc::TUNSETVNETHDRSZ as libc::c_ulong, &mut len) }
            .map_err(|e| self.error("set the header size", e))
    }

    /// Tells the kernel which frames the reader can take. It holds for the whole interface; frames in the queue stay as they are.
    ///
    /// `offloads` is made [consistent](Offloads::consistent) first. Fails on a detached queue.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), Error> {
        let bits = libc::c_ulong::from(offloads.consistent().bits());
        // SAFETY: this request takes its argument by value.
        unsafe { sys::ioctl_value(&self.file, libc::TUNSETOFFLOAD as libc::c_ulong, bits) }
            .map_err(|e| self.error("set the offloads", e))
    }

    /// Whether the kernel packs UDP datagrams, which those before 6.2 do not. Leaves the tap without offloads.
    pub fn packs_datagrams(&self) -> Result<bool, Error> {
        let packs = self.set_offloads(Offloads::CSUM | Offloads::USO).is_ok();
        self.set_offloads(Offloads::empty())?;
        Ok(packs)
    }

    /// Takes this queue out of those among which the kernel spreads frames, or puts it back.
    ///
    /// Only on a tap of several queues. While it is out, `poll` reports an error on it at once and reads fail:
    /// nobody should wait for it.
    pub fn set_attached(&self, attached: bool) -> Result<(), Error> {
        let (flag, operation) = if attached {
            (libc::IFF_ATTACH_QUEUE, "attach a queue")
        } else {
            (libc::IFF_DETACH_QUEUE, "detach a queue")
        };
        sys::tun_request(&self.file, libc::TUNSETQUEUE, &mut IfReq::empty().with_flags(flag))
            .map_err(|e| self.error(operation, e))
    }

    /// Reads one frame with its header. A frame that does not fit is cut off; `WouldBlock` if there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.file).read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// The same into several buffers, which takes the kernel longer.
    ///
    /// # Safety
    ///
    /// Each of `buffers` is writable memory that stays mapped for the call.
    pub unsafe fn readv(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: the caller vouches for the buffers, the slice for itself; `cap` keeps the count in range.
        retry(|| unsafe { libc::readv(self.file.as_raw_fd(), buffers.as_ptr(), cap(buffers)) })
    }

    /// Writes one frame with its header. `InvalidInput` if the kernel finds the header or the frame wanting.
    ///
    /// # Safety
    ///
    /// Each of `buffers` is readable memory that stays mapped for the call.
    pub unsafe fn writev(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: as in `readv`.
        retry(|| unsafe { libc::writev(self.file.as_raw_fd(), buffers.as_ptr(), cap(buffers)) })
    }
}

/// The number of buffers, for a system call. More than `IOV_MAX` is for the kernel to refuse.
fn cap(buffers: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(buffers.len()).unwrap_or(libc::c_int::MAX)
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(n) => return Ok(n),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_depend_on_checksums() {
        let all = Offloads::all();
        assert_eq!(all.consistent(), all);
        assert_eq!((all - Offloads::CSUM).consistent(), Offloads::empty());
        assert_eq!((Offloads::CSUM | Offloads::TSO_ECN).consistent(), Offloads::CSUM);
        assert_eq!(
            (Offloads::CSUM | Offloads::TSO_ECN | Offloads::TSO6).consistent(),
            Offloads::CSUM | Offloads::TSO_ECN | Offloads::TSO6
        );
        assert_eq!((Offloads::CSUM | Offloads::USO4).consistent(), Offloads::CSUM);
        assert_eq!((Offloads::CSUM | Offloads::USO).consistent(), Offloads::CSUM | Offloads::USO);
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        assert!(matches!(Tap::from_fd(-1), Err(Error::BadFd { fd: -1, .. })));
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(Tap::from_fd(null.as_raw_fd()), Err(Error::FdNotATap(_))));
        let file = File::open("/proc/self/exe").unwrap();
        let error = Tap::from_fd(file.as_raw_fd()).unwrap_err();
        assert_eq!(error.to_string(), format!("fd {} is not a tap", file.as_raw_fd()));
    }
}
