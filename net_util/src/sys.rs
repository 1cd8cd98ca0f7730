//! The ioctls, each behind a safe function: interface requests on a socket and tap requests on a tap.

use std::ffi::c_short;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::{IfName, MacAddr};

/// `SIOCSIFADDR` and its kin are not `ioctl`-encoded numbers, whence the plain type.
type Request = libc::c_ulong;

/// Argument of the interface requests; always NUL-terminated.
pub(crate) struct IfReq(libc::ifreq);

impl IfReq {
    pub(crate) fn empty() -> Self {
        // SAFETY: `ifreq` is plain data (bytes and a union of integers, structures of integers and a pointer), for all of
        // which zero is a value.
        IfReq(unsafe { mem::zeroed() })
    }

    pub(crate) fn named(name: &IfName) -> Self {
        let mut request = Self::empty();
        // An `IfName` is at most one byte shorter than the field: the last byte stays NUL.
        for (to, from) in request.0.ifr_name.iter_mut().zip(name.as_str().bytes()) {
            *to = from as libc::c_char;
        }
        request
    }

    pub(crate) fn with_flags(mut self, flags: i32) -> Self {
        // The kernel's field is a short in which `IFF_TUN_EXCL` is the sign bit.
        self.0.ifr_ifru.ifru_flags = flags as c_short;
        self
    }

    pub(crate) fn flags(&self) -> i32 {
        // SAFETY: every bit pattern is a `c_short`.
        i32::from(unsafe { self.0.ifr_ifru.ifru_flags } as u16)
    }

    /// The name, as the kernel left it.
    pub(crate) fn name(&self) -> String {
        let bytes: Vec<u8> = self.0.ifr_name.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Whether two descriptors lead to one open file: a descriptor that was sent twice arrives under two numbers. A kernel that cannot
/// compare them is taken to say no.
pub(crate) fn same_file(a: RawFd, b: RawFd) -> bool {
    /// From linux/kcmp.h.
    const KCMP_FILE: libc::c_long = 0;
    // SAFETY: the call takes numbers only.
    a == b
        || unsafe {
            let this = libc::c_long::from(libc::getpid());
            libc::syscall(libc::SYS_kcmp, this, this, KCMP_FILE, libc::c_long::from(a), libc::c_long::from(b))
                == 0
        }
}

/// Issues a request whose argument is a `T`.
///
/// # Safety
///
/// The kernel reads and writes at most a `T` for `request`.
pub(crate) unsafe fn ioctl<T>(fd: &impl AsFd, request: Request, argument: &mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the size; the reference is valid and exclusive for the call.
    match unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as libc::Ioctl, argument) } {
        r if r < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Issues a request whose argument is a number.
///
/// # Safety
///
/// The kernel takes the argument of `request` by value.
pub(crate) unsafe fn ioctl_value(fd: &impl AsFd, request: Request, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the caller vouches that nothing is dereferenced.
    match unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as libc::Ioctl, value) } {
        r if r < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A socket on which interface requests are made. Nothing is ever sent through it.
pub(crate) struct Control(OwnedFd);

impl Control {
    fn open(family: libc::c_int) -> io::Result<Self> {
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so `fd` is open and nobody else's.
        Ok(Control(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn v4() -> io::Result<Self> {
        Self::open(libc::AF_INET)
    }

    pub(crate) fn v6() -> io::Result<Self> {
        Self::open(libc::AF_INET6)
    }

    fn request(&self, number: Request, request: &mut IfReq) -> io::Result<()> {
        // SAFETY: used below with `SIOC[GS]IF…` numbers only, whose argument is an `ifreq`.
        unsafe { ioctl(&self.0, number, &mut request.0) }
    }

    pub(crate) fn flags(&self, name: &IfName) -> io::Result<i32> {
        let mut request = IfReq::named(name);
        self.request(libc::SIOCGIFFLAGS as Request, &mut request)?;
        Ok(request.flags())
    }

    pub(crate) fn set_flags(&self, name: &IfName, flags: i32) -> io::Result<()> {
        self.request(libc::SIOCSIFFLAGS as Request, &mut IfReq::named(name).with_flags(flags))
    }

    pub(crate) fn mtu(&self, name: &IfName) -> io::Result<i32> {
        let mut request = IfReq::named(name);
        self.request(libc::SIOCGIFMTU as Request, &mut request)?;
        // SAFETY: every bit pattern is a `c_int`, and the request filled this member.
        Ok(unsafe { request.0.ifr_ifru.ifru_mtu })
    }

    pub(crate) fn set_mtu(&self, name: &IfName, mtu: i32) -> io::Result<()> {
        let mut request = IfReq::named(name);
        request.0.ifr_ifru.ifru_mtu = mtu;
        self.request(libc::SIOCSIFMTU as Request, &mut request)
    }

    pub(crate) fn mac(&self, name: &IfName) -> io::Result<MacAddr> {
        mac(&self.0, name)
    }

    /// The interface's number.
    pub(crate) fn index(&self, name: &IfName) -> io::Result<i32> {
        let mut request = IfReq::named(name);
        self.request(libc::SIOCGIFINDEX as Request, &mut request)?;
        // SAFETY: every bit pattern is a `c_int`, and the request filled this member.
        Ok(unsafe { request.0.ifr_ifru.ifru_ifindex })
    }

    pub(crate) fn set_mac(&self, name: &IfName, mac: MacAddr) -> io::Result<()> {
        let mut request = IfReq::named(name);
        // SAFETY: zero is a `sockaddr`.
        let mut address: libc::sockaddr = unsafe { mem::zeroed() };
        address.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in address.sa_data.iter_mut().zip(mac.bytes()) {
            *to = from as libc::c_char;
        }
        request.0.ifr_ifru.ifru_hwaddr = address;
        self.request(libc::SIOCSIFHWADDR as Request, &mut request)
    }

    /// The first IPv4 address and its mask, if there is one.
    pub(crate) fn address_v4(&self, name: &IfName) -> io::Result<Option<(Ipv4Addr, Ipv4Addr)>> {
        let mut request = IfReq::named(name);
        match self.request(libc::SIOCGIFADDR as Request, &mut request) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(None),
            other => other?,
        }
        let address = ipv4_of(&request);
        self.request(libc::SIOCGIFNETMASK as Request, &mut request)?;
        Ok(Some((address, ipv4_of(&request))))
    }

    /// Replaces the IPv4 address; 0.0.0.0 takes it away.
    pub(crate) fn set_address_v4(&self, name: &IfName, ip: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
        let mut request = IfReq::named(name);
        request.0.ifr_ifru.ifru_addr = sockaddr_v4(ip);
        self.request(libc::SIOCSIFADDR as Request, &mut request)?;
        if ip.is_unspecified() {
            return Ok(());
        }
        let mut request = IfReq::named(name);
        request.0.ifr_ifru.ifru_netmask = sockaddr_v4(mask);
        self.request(libc::SIOCSIFNETMASK as Request, &mut request)
    }

    fn request_v6(&self, number: Request, name: &IfName, ip: Ipv6Addr, prefix: u8) -> io::Result<()> {
        let mut argument = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr { s6_addr: ip.octets() },
            ifr6_prefixlen: u32::from(prefix),
            ifr6_ifindex: self.index(name)?,
        };
        // SAFETY: on an AF_INET6 socket the argument of the two numbers used below is an `in6_ifreq`.
        unsafe { ioctl(&self.0, number, &mut argument) }
    }

    /// Adds an IPv6 address; `AlreadyExists` if the interface has it. Only on a [`Control::v6`].
    pub(crate) fn add_address_v6(&self, name: &IfName, ip: Ipv6Addr, prefix: u8) -> io::Result<()> {
        self.request_v6(libc::SIOCSIFADDR as Request, name, ip, prefix)
    }

    /// Takes an IPv6 address away. Only on a [`Control::v6`].
    pub(crate) fn remove_address_v6(&self, name: &IfName, ip: Ipv6Addr, prefix: u8) -> io::Result<()> {
        self.request_v6(libc::SIOCDIFADDR as Request, name, ip, prefix)
    }
}

/// The address of a link, asked on a socket, or on a tap, which tells its own whatever the name.
pub(crate) fn mac(fd: &impl AsFd, name: &IfName) -> io::Result<MacAddr> {
    let mut request = IfReq::named(name);
    // SAFETY: the argument is an `ifreq`.
    unsafe { ioctl(fd, libc::SIOCGIFHWADDR as Request, &mut request.0) }?;
    // SAFETY: a `sockaddr` is plain data, and the request filled this member.
    let data = unsafe { request.0.ifr_ifru.ifru_hwaddr.sa_data };
    let mut bytes = [0u8; 6];
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = from as u8;
    }
    Ok(MacAddr::new(bytes))
}

/// `TUNSETIFF`, `TUNGETIFF` or `TUNSETQUEUE`.
pub(crate) fn tun_request(fd: &impl AsFd, number: libc::Ioctl, request: &mut IfReq) -> io::Result<()> {
    // SAFETY: these requests take an `ifreq`.
    unsafe { ioctl(fd, number as Request, &mut request.0) }
}

fn sockaddr_v4(ip: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain data; the kernel reads the one as the other.
    unsafe { mem::transmute(address) }
}

fn ipv4_of(request: &IfReq) -> Ipv4Addr {
    // SAFETY: plain data of 16 bytes either way; the request filled this member with a `sockaddr_in`.
    let address: libc::sockaddr_in = unsafe { mem::transmute(request.0.ifr_ifru.ifru_addr) };
    Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes())
}
