//! Makes passt's connections in its place, those that are allowed (`seccomp_unotify(2)`).
//!
//! The kernel stops passt at each `connect` and each `sendto` with an address and tells us. We read address and bytes once, take passt's
//! socket to ourselves, decide, and make the call on it: what passt's memory holds afterwards does not matter. Where we cannot, the answer
//! is no.

use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::policy::Policy;

/// Longest address that is looked at: `struct sockaddr_in6`.
const ADDRESS: usize = 28;

/// Longest datagram.
const DATAGRAM: usize = 65_535;

/// See the module.
pub(super) struct Supervisor {
    listener: OwnedFd,
    policy: Policy,
}

/// Enters a user namespace in which the caller is who it is, so that its parent may look at it when it is passt.
///
/// # Errors
/// The host does not let users have such namespaces.
pub(super) fn own_user_namespace() -> io::Result<()> {
    // SAFETY: plain system calls.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    if user == 0 {
        // Who may look at all processes needs none, and passt takes itself to another user.
        return Ok(());
    }
    let told = |e: io::Error| {
        io::Error::new(e.kind(), format!("host_access=none and deny need a user namespace: {e}"))
    };
    // SAFETY: a plain number; the process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } < 0 {
        return Err(told(io::Error::last_os_error()));
    }
    fs::write("/proc/self/setgroups", "deny").map_err(told)?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1")).map_err(told)?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1")).map_err(told)
}

impl Supervisor {
    pub(super) fn new(listener: OwnedFd, policy: Policy) -> io::Result<Self> {
        // SAFETY: all zeroes are valid sizes, and the kernel writes them.
        let sizes = unsafe {
            let mut sizes: libc::seccomp_notif_sizes = zeroed();
            let op = libc::SECCOMP_GET_NOTIF_SIZES;
            if libc::syscall(libc::SYS_seccomp, op, 0, &raw mut sizes) < 0 {
                return Err(io::Error::last_os_error());
            }
            sizes
        };
        let known = [size_of::<libc::seccomp_notif>(), size_of::<libc::seccomp_notif_resp>()];
        if [sizes.seccomp_notif, sizes.seccomp_notif_resp].map(usize::from) != known {
            return Err(io::Error::other("this kernel asks about system calls in another way"));
        }
        Ok(Supervisor { listener, policy })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Takes care of one call; `false` if there will be no more.
    pub(super) fn answer(&self) -> bool {
        // SAFETY: all zeroes are what the kernel wants to find, and it writes the structure whose size we compared.
        let asked = unsafe {
            let mut asked: libc::seccomp_notif = zeroed();
            match libc::ioctl(self.fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) {
                0 => asked,
                // Whoever asked was interrupted, or nobody is left to ask.
                _ => return !self.is_over(),
            }
        };
        let mut answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error: 0, flags: 0 };
        match self.make(&asked) {
            Ok(value) => answer.val = value,
            Err(e) => answer.error = -e.raw_os_error().unwrap_or(libc::EPERM),
        }
        // SAFETY: the kernel reads the structure. It fails only if nobody waits for the answer any more.
        unsafe { libc::ioctl(self.fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
        true
    }

    /// Whether nobody is left who could ask.
    fn is_over(&self) -> bool {
        let events = device::ready(self.fd(), libc::POLLIN, Duration::ZERO).unwrap_or(libc::POLLERR);
        events & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0
    }

    /// Makes the call in the place of who asked.
    fn make(&self, asked: &libc::seccomp_notif) -> io::Result<i64> {
        let call = libc::c_long::from(asked.data.nr);
        let [fd, first, second, flags, fifth, sixth] = asked.data.args;
        let (at, length) = if call == libc::SYS_connect { (first, second) } else { (fifth, sixth) };
        let length = usize::try_from(length).ok().filter(|length| (2..=128).contains(length));
        let length = length.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut bytes = [0; ADDRESS];
        let address = &mut bytes[..length.min(ADDRESS)];
        let pid = asked.pid.cast_signed();
        read(pid, at, address)?;
        let to = parsed(address)?;
        let data = if call == libc::SYS_connect {
            None
        } else {
            let size = usize::try_from(second).ok().filter(|size| *size <= DATAGRAM);
            let mut data = vec![0; size.ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?];
            read(pid, first, &mut data)?;
            Some(data)
        };
        let socket = socket_of(pid, fd as RawFd)?;
        // What was read is that process' only if it still waits.
        let id = asked.id;
        // SAFETY: the kernel reads a number.
        if unsafe { libc::ioctl(self.fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if !self.policy.allows(to, own_address(&socket)) {
            return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
        }
        let (address, size) = (address.as_ptr().cast(), address.len() as libc::socklen_t);
        // SAFETY: address and data are valid for their lengths.
        let made = unsafe {
            match data {
                None => libc::connect(socket.as_raw_fd(), address, size) as isize,
                Some(data) => libc::sendto(
                    socket.as_raw_fd(),
                    data.as_ptr().cast(),
                    data.len(),
                    flags as libc::c_int | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                    address,
                    size,
                ),
            }
        };
        if made < 0 { Err(io::Error::last_os_error()) } else { Ok(made as i64) }
    }
}

/// Reads from another process' memory.
fn read(pid: libc::pid_t, at: u64, into: &mut [u8]) -> io::Result<()> {
    let ours = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let theirs = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: the kernel writes into our buffer, and checks the other's addresses.
    let got = unsafe { libc::process_vm_readv(pid, &raw const ours, 1, &raw const theirs, 1, 0) };
    match usize::try_from(got) {
        Ok(got) if got == into.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// An address of the Internet; others are not for passt.
fn parsed(bytes: &[u8]) -> io::Result<SocketAddr> {
    let not_ours = || io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
    let part = |at: usize| bytes.get(at..at + 4).and_then(|part| <[u8; 4]>::try_from(part).ok());
    let family = bytes.first_chunk().map(|family| i32::from(u16::from_ne_bytes(*family)));
    let port = bytes.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let address = match (family, port) {
        (Some(libc::AF_INET), Some(port)) => part(4).map(|ip| SocketAddr::from((Ipv4Addr::from(ip), port))),
        (Some(libc::AF_INET6), Some(port)) => {
            let ip = bytes.get(8..24).and_then(|ip| <[u8; 16]>::try_from(ip).ok());
            let scope = part(24).map(u32::from_ne_bytes);
            ip.zip(scope).map(|(ip, scope)| SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
        }
        _ => None,
    };
    address.ok_or_else(not_ours)
}

/// A socket of another process, which must not keep us waiting.
fn socket_of(pid: libc::pid_t, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the descriptors are new and ours.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if process < 0 {
            return Err(io::Error::last_os_error());
        }
        let process = OwnedFd::from_raw_fd(process as RawFd);
        let socket = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket as RawFd);
        let (mut kind, mut size) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        let option = (libc::SOL_SOCKET, libc::SO_TYPE);
        let asked =
            libc::getsockopt(socket.as_raw_fd(), option.0, option.1, (&raw mut kind).cast(), &raw mut size);
        if asked < 0 {
            return Err(io::Error::last_os_error());
        }
        let waits = libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK == 0;
        if kind == libc::SOCK_STREAM && waits {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(socket)
    }
}

/// What a socket is bound to.
fn own_address(socket: &OwnedFd) -> Option<SocketAddr> {
    let mut bytes = [0; ADDRESS];
    let mut size = ADDRESS as libc::socklen_t;
    // SAFETY: the kernel writes no more than the size says.
    let asked = unsafe { libc::getsockname(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut size) };
    if asked == 0 { parsed(bytes.get(..size as usize)?).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_whole_or_not_at_all() {
        let v4 = [2, 0, 0, 80, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parsed(&v4).unwrap(), "192.0.2.1:80".parse().unwrap());
        let mut v6 = [0; 28];
        (v6[0], v6[3], v6[23], v6[24]) = (10, 53, 1, 7);
        assert_eq!(parsed(&v6).unwrap(), "[::1%7]:53".parse().unwrap());
        for length in 0..8 {
            assert!(parsed(&v4[..length]).is_err(), "{length}");
        }
        for length in 0..28 {
            assert!(parsed(&v6[..length]).is_err(), "{length}");
        }
        assert!(parsed(&[1, 0, b'/', b'x', 0, 0, 0, 0]).is_err());
    }
}
