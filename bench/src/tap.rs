//! A tap in a network namespace of our own: both are gone when the bench is.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const EXPERIMENTAL_ETHERTYPE: u16 = 0x88b5;

fn checked(result: libc::c_int) -> Result<libc::c_int, Error> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// Moves the calling thread, and what it starts, to a new network namespace, which goes with the last of them.
pub(crate) fn enter_private_network() -> Result<(), Error> {
    // SAFETY: plain system call; it changes only where this thread's sockets and taps are made.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// A persistent tap with its link up, which VMMs open by name. Removed on drop.
#[derive(Debug)]
pub(crate) struct Tap {
    name: &'static str,
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // The kernel wants a NUL at the end.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn persist(name: &str, on: bool) -> Result<(), Error> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the ioctls take an ifreq and an integer.
    unsafe {
        checked(libc::ioctl(file.as_raw_fd(), TUNSETIFF, &request))?;
        checked(libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(on)))?;
    }
    Ok(())
}

fn packet_socket() -> Result<OwnedFd, Error> {
    // Protocol 0: nothing is received.
    // SAFETY: plain system call; the descriptor is new and ours.
    unsafe {
        let fd = checked(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

impl Tap {
    /// Makes it.
    pub(crate) fn new(name: &'static str) -> Result<Tap, Error> {
        persist(name, true)?;
        let tap = Tap { name };
        let socket = packet_socket()?;
        let mut request = request(name);
        // SAFETY: both ioctls take an ifreq; the flags are valid after the first.
        unsafe {
            checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request))?;
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
            checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request))?;
        }
        Ok(tap)
    }

    /// Sends frames of `size` bytes to whoever has the tap open, as fast as they go.
    pub(crate) fn flood(&self, size: usize, time: Duration) -> Result<(), Error> {
        let socket = packet_socket()?;
        let mut request = request(self.name);
        // SAFETY: the ioctl fills in the index of the interface that the request names.
        let index = unsafe {
            checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &mut request))?;
            request.ifr_ifru.ifru_ifindex
        };
        // SAFETY: all zeroes are a valid address.
        let mut to: libc::sockaddr_ll = unsafe { zeroed() };
        to.sll_family = libc::AF_PACKET as libc::c_ushort;
        to.sll_ifindex = index;
        to.sll_protocol = EXPERIMENTAL_ETHERTYPE.to_be();
        let mut frame = vec![0; size];
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        frame[12..14].copy_from_slice(&EXPERIMENTAL_ETHERTYPE.to_be_bytes());
        let begun = Instant::now();
        while begun.elapsed() < time {
            for _ in 0..64 {
                // SAFETY: frame and address are valid for their lengths.
                let sent = unsafe {
                    libc::sendto(
                        socket.as_raw_fd(),
                        frame.as_ptr().cast(),
                        frame.len(),
                        0,
                        (&raw const to).cast(),
                        size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                    )
                };
                if sent < 0 {
                    let e = Error::last_os_error();
                    // A full queue is what we want; a VMM that ends takes the carrier with it.
                    if !matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::ENETDOWN))
                        && e.kind() != ErrorKind::Interrupted
                    {
                        return Err(e);
                    }
                    std::thread::yield_now();
                }
            }
        }
        Ok(())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(e) = persist(self.name, false) {
            eprintln!("bench: cannot remove the tap {}: {e}", self.name);
        }
    }
}
