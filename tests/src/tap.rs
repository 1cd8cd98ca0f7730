//! A tap in a network namespace of our own, both gone when we are; and who sits at its host end.

use std::ffi::CString;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const EXPERIMENTAL_ETHERTYPE: u16 = 0x88b5;

fn checked(result: libc::c_int) -> Result<libc::c_int, Error> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// Moves the calling thread, and what it starts, to a new network namespace, which goes with the last of them.
///
/// # Errors
/// Needs root.
pub fn enter_private_network() -> Result<(), Error> {
    // SAFETY: plain system call; it changes only where this thread's sockets and taps are made.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// A persistent tap with its link up, which VMMs open by name. Removed on drop.
#[derive(Debug)]
pub struct Tap {
    name: String,
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

fn open(name: &str) -> Result<File, Error> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the ioctl takes an ifreq.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &request) })?;
    Ok(file)
}

fn persist(name: &str, on: bool) -> Result<(), Error> {
    let file = open(name)?;
    // SAFETY: the ioctl takes an integer.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(on)) })?;
    Ok(())
}

/// A socket for whole frames of type `protocol`; of type 0 none are received.
fn packet_socket(protocol: u16) -> Result<OwnedFd, Error> {
    let protocol = libc::c_int::from(protocol.to_be());
    // SAFETY: plain system call; the descriptor is new and ours.
    unsafe {
        let fd = checked(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The address of an interface's link.
fn link_address(name: &str, protocol: u16) -> Result<libc::sockaddr_ll, Error> {
    let name = CString::new(name)?;
    // SAFETY: the name ends with a NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_ifindex = index.cast_signed();
    address.sll_protocol = protocol.to_be();
    Ok(address)
}

const LINK_ADDRESS: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

impl Tap {
    /// Makes it.
    ///
    /// # Errors
    /// The host makes no tap of that name.
    pub fn new(name: &str) -> Result<Tap, Error> {
        persist(name, true)?;
        let tap = Tap { name: name.to_string() };
        let socket = packet_socket(0)?;
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
    ///
    /// # Errors
    /// The host takes none.
    pub fn flood(&self, size: usize, time: Duration) -> Result<(), Error> {
        let socket = packet_socket(0)?;
        let to = link_address(&self.name, EXPERIMENTAL_ETHERTYPE)?;
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
                        LINK_ADDRESS,
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

impl Tap {
    /// The tap, opened for programs that are started with the descriptor.
    ///
    /// # Errors
    /// The host does not open it.
    pub fn open_for_others(&self) -> Result<File, Error> {
        let file = open(&self.name)?;
        // SAFETY: plain numbers; it stays open in programs that are started.
        checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) })?;
        Ok(file)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(e) = persist(&self.name, false) {
            eprintln!("cannot remove the tap {}: {e}", self.name);
        }
    }
}

/// The partner of the probe's `load` at the host end of a tap, on a thread of its own: sends back every frame that it gets, addresses
/// exchanged. With an epoch above 0 it first tells the guest to start anew, as after a restore on another tap.
#[derive(Debug)]
pub struct Partner {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// What a partner is told while it works, and tells.
#[derive(Debug, Default)]
struct Orders {
    end: AtomicBool,
    returned: AtomicU64,
    lose: AtomicU64,
}

/// Where things are in a frame of the probe's; see its `tests/load/network.rs`.
mod frame {
    pub(super) const KIND: usize = 14;
    pub(super) const EPOCH: usize = 16;
    pub(super) const ANEW: u16 = 2;
    pub(super) const HEADER: usize = 32;
}

impl Partner {
    /// Sits down at the tap `name`, whose guest has the address `guest`.
    ///
    /// # Errors
    /// The tap is not in this thread's network namespace, or we are not root.
    pub fn new(name: &str, guest: [u8; 6], epoch: u32) -> Result<Partner, Error> {
        let socket = packet_socket(EXPERIMENTAL_ETHERTYPE)?;
        let address = link_address(name, EXPERIMENTAL_ETHERTYPE)?;
        let buffer: libc::c_int = 4 << 20;
        let on: libc::c_int = 1;
        // SAFETY: all three take values of ours by pointer and length.
        unsafe {
            checked(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LINK_ADDRESS))?;
            for (level, option, value) in [
                // Nothing may be dropped on the way through us.
                (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &buffer),
                (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &on),
            ] {
                let value: *const libc::c_int = value;
                let len = size_of::<libc::c_int>() as libc::socklen_t;
                checked(libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), len))?;
            }
        }
        let orders = Arc::<Orders>::default();
        let theirs = Arc::clone(&orders);
        let work = move || serve(&socket, guest, epoch, &theirs);
        let thread = std::thread::Builder::new().name("partner".to_string()).spawn(work)?;
        Ok(Partner { orders, thread: Some(thread) })
    }

    /// Frames sent back so far.
    pub fn returned(&self) -> u64 {
        self.orders.returned.load(Ordering::Relaxed)
    }

    /// Loses the next `frames`, to see whether the guest finds out.
    pub fn lose(&self, frames: u64) {
        self.orders.lose.store(frames, Ordering::Relaxed);
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.orders.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, it has said why.
            let _ = thread.join();
        }
    }
}

fn serve(socket: &OwnedFd, guest: [u8; 6], epoch: u32, orders: &Orders) {
    let mut anew = [0; 60];
    anew[..6].copy_from_slice(&guest);
    anew[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    anew[12..14].copy_from_slice(&EXPERIMENTAL_ETHERTYPE.to_be_bytes());
    anew[frame::KIND..frame::KIND + 2].copy_from_slice(&frame::ANEW.to_le_bytes());
    anew[frame::EPOCH..frame::EPOCH + 4].copy_from_slice(&epoch.to_le_bytes());
    let mut believed = epoch == 0;
    let mut bytes = [0; 2048];
    while !orders.end.load(Ordering::Relaxed) {
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&mut poll, 1, 20) } <= 0 {
            if !believed {
                send(socket, &anew);
            }
            continue;
        }
        // SAFETY: all zeroes are a valid address.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut len = LINK_ADDRESS;
        // SAFETY: buffer and address are valid for their lengths.
        let got = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                (&raw mut from).cast(),
                &mut len,
            )
        };
        // A VMM that ends takes the carrier with it, which is told as an error once; and our own frames come by here too.
        let Ok(got) = usize::try_from(got) else { continue };
        if from.sll_pkttype == libc::PACKET_OUTGOING || got < frame::HEADER {
            continue;
        }
        let mut came = [0; 4];
        came.copy_from_slice(&bytes[frame::EPOCH..frame::EPOCH + 4]);
        if u32::from_le_bytes(came) < epoch {
            send(socket, &anew);
            continue;
        }
        believed = true;
        let lose = orders.lose.load(Ordering::Relaxed);
        if lose > 0 {
            orders.lose.store(lose - 1, Ordering::Relaxed);
            continue;
        }
        let (to, rest) = bytes.split_at_mut(6);
        to.swap_with_slice(&mut rest[..6]);
        if send(socket, &bytes[..got]) {
            orders.returned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends a frame; `false` if the host does not take it, which the guest will find out.
fn send(socket: &OwnedFd, frame: &[u8]) -> bool {
    // SAFETY: the frame is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    sent >= 0
}
