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
const IPV4: u16 = 0x0800;
/// Bytes of the largest frame that nobody has to cut, and of a TCP segment's data in one.
const WHOLE: usize = 1514;
const SEGMENT: u16 = 1448;
/// How long a program that has ended may keep a tap.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections that a flood seems to belong to.
const FLOWS: u16 = 16;

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
    pairs: usize,
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

/// Opens a tap, which is made if there is none of this name.
fn open(name: &str, pairs: usize) -> Result<File, Error> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(name);
    let many = if pairs > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the ioctl takes an ifreq.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &request) })?;
    Ok(file)
}

fn persist(name: &str, pairs: usize, on: bool) -> Result<(), Error> {
    let file = open(name, pairs)?;
    // SAFETY: the ioctl takes an integer.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(on)) }).map(drop)
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

/// A socket that is good for nothing but to ask about interfaces.
fn datagram_socket() -> Result<OwnedFd, Error> {
    // SAFETY: plain system call; the descriptor is new and ours.
    unsafe {
        let fd = checked(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sets an option that is a number.
fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<(), Error> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: takes a value of ours by pointer and length.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) })
        .map(drop)
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
        Tap::with_pairs(name, 1)
    }

    /// Makes one that is opened once for each of that many queue pairs.
    ///
    /// # Errors
    /// The host makes no such tap of that name.
    pub fn with_pairs(name: &str, pairs: usize) -> Result<Tap, Error> {
        persist(name, pairs, true)?;
        let tap = Tap { name: name.to_string(), pairs };
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

    /// Opens it, to be handed to a VMM.
    ///
    /// # Errors
    /// Somebody else has it.
    pub fn open(&self) -> Result<File, Error> {
        open(&self.name, self.pairs)
    }

    /// Gives the host's end an IPv4 address, with a network of 256.
    ///
    /// # Errors
    /// The host takes none.
    pub fn give_address(&self, address: [u8; 4]) -> Result<(), Error> {
        let socket = datagram_socket()?;
        for (what, bytes) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, [255, 255, 255, 0])] {
            let mut request = request(&self.name);
            // SAFETY: all zeroes are a valid address; an address of IPv4 is as long as the one that the request has room for.
            unsafe {
                let mut inet: libc::sockaddr_in = zeroed();
                inet.sin_family = libc::AF_INET as libc::sa_family_t;
                inet.sin_addr.s_addr = u32::from_ne_bytes(bytes);
                (&raw mut request.ifr_ifru.ifru_addr).cast::<libc::sockaddr_in>().write(inet);
                checked(libc::ioctl(socket.as_raw_fd(), what, &request))?;
            }
        }
        Ok(())
    }

    /// Bytes that the host's end has received.
    ///
    /// # Errors
    /// The tap is not in this thread's network namespace.
    pub fn received(&self) -> Result<u64, Error> {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        // The first of many numbers behind the name.
        let line =
            text.lines().find_map(|line| line.trim_start().strip_prefix(&self.name)?.strip_prefix(':'));
        let bytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        bytes.ok_or_else(|| Error::other(format!("nothing is known of the tap {}", self.name)))
    }

    /// Sends frames of `size` bytes to whoever has the tap open, as fast as they go: datagrams, or above 1514 bytes TCP segments that are to
    /// be cut. They belong to several connections, so that all queues get some.
    ///
    /// # Errors
    /// The host takes none.
    pub fn flood(&self, size: usize, time: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        self.flood_while(size, || begun.elapsed() < time)
    }

    /// The same as long as this says so.
    ///
    /// # Errors
    /// The host takes none.
    pub fn flood_while(&self, size: usize, wanted: impl Fn() -> bool) -> Result<(), Error> {
        let socket = packet_socket(0)?;
        set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        let to = link_address(&self.name, IPV4)?;
        let mut frame = vec![0; NET_HEADER + size];
        let (header, whole) = frame.split_at_mut(NET_HEADER);
        fill(header, whole);
        while wanted() {
            for flow in 0..4 * FLOWS {
                let port = 1000 + flow % FLOWS;
                frame[SENDER_PORT..SENDER_PORT + 2].copy_from_slice(&port.to_be_bytes());
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
        let file = open(&self.name, self.pairs)?;
        // SAFETY: plain numbers; it stays open in programs that are started.
        checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) })?;
        Ok(file)
    }
}

/// Bytes of the `virtio_net_hdr` in front of a frame (virtio 1.3 §5.1.6), as sockets have it: in the host's byte order.
const NET_HEADER: usize = 10;
/// Where the port of the sender is behind such a header.
const SENDER_PORT: usize = NET_HEADER + 34;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

/// Fills in a frame, to everybody, and the `virtio_net_hdr` in front of it: a datagram, or above 1514 bytes TCP segments that are to be cut.
///
/// # Panics
/// The header has less than 10 bytes, or the frame less than 54.
pub fn fill(header: &mut [u8], frame: &mut [u8]) {
    let size = frame.len();
    let cut = size > WHOLE;
    if cut {
        header[0] = NEEDS_CSUM;
        header[1] = GSO_TCPV4;
        // Headers, data of a segment, where the sum begins, and where it goes.
        for (at, value) in [(2, 54), (4, SEGMENT), (6, 34), (8, 16)] {
            header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
    }
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
    put(12, &IPV4.to_be_bytes());
    put(14, &[0x45]);
    put(16, &((size - 14) as u16).to_be_bytes());
    // Time to live, and TCP or UDP.
    put(22, &[64, if cut { 6 } else { 17 }]);
    put(26, &[10, 0, 0, 1, 10, 0, 0, 2]);
    put(36, &2000_u16.to_be_bytes());
    if cut {
        // Twenty bytes of TCP's header, and an acknowledgement.
        put(46, &[0x50, 0x10]);
    } else {
        put(38, &((size - 34) as u16).to_be_bytes());
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let begun = Instant::now();
        while let Err(e) = persist(&self.name, self.pairs, false) {
            // A program that was killed may have a ring of requests on it, which the kernel ends after the program.
            if e.raw_os_error() != Some(libc::EBUSY) || begun.elapsed() > PATIENCE {
                eprintln!("cannot remove the tap {}: {e}", self.name);
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
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
        // SAFETY: takes a value of ours by pointer and length.
        checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LINK_ADDRESS) })?;
        // Nothing may be dropped on the way through us.
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 4 << 20)?;
        set(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
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
