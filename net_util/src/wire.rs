//! For tests: the host's end of a tap, frame by frame, as `struct virtio_net_hdr` and bytes.
//!
//! What the kernel would say to the frames it says too: see `/proc/sys` or use types of frames that it does not know.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::IfName;
use crate::sys::Control;
use crate::tap::Tap;

/// A type of frames that nobody answers.
pub const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// Bytes of the header: without `num_buffers`.
pub const HEADER: usize = 10;

/// Option of packet sockets: frames have the header (linux/if_packet.h).
const PACKET_VNET_HDR: libc::c_int = 15;

/// See the module.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Sits down at the host's end of the tap `name`.
    ///
    /// # Errors
    /// There is no such link, or no permission.
    pub fn new(name: &str) -> io::Result<Wire> {
        let name = IfName::new(name).map_err(io::Error::other)?;
        let index = Control::v4()?.index(&name)?;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: all zeros are an address.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index;
        let (on, room): (libc::c_int, libc::c_int) = (1, 8 << 20);
        // SAFETY: integers, and values of ours by pointer and length; the descriptor is new.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let fd = libc::socket(libc::AF_PACKET, kind, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let wire = Wire(OwnedFd::from_raw_fd(fd));
            for (level, option, value) in
                [(libc::SOL_PACKET, PACKET_VNET_HDR, &on), (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &room)]
            {
                let value: *const libc::c_int = value;
                let length = size_of::<libc::c_int>() as libc::socklen_t;
                if libc::setsockopt(fd, level, option, value.cast(), length) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            if libc::bind(fd, (&raw const address).cast(), length) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(wire)
        }
    }

    /// Sends header and frame to whoever reads the tap.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the frame is valid for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next header and frame that came out of the tap, if one did.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 70_000];
        loop {
            // SAFETY: all zeros are an address.
            let mut from: libc::sockaddr_ll = unsafe { zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: buffer and address are valid for their lengths.
            let got = unsafe {
                let (buffer, address) = (bytes.as_mut_ptr().cast(), (&raw mut from).cast());
                libc::recvfrom(self.0.as_raw_fd(), buffer, bytes.len(), 0, address, &mut length)
            };
            let got = usize::try_from(got).ok()?;
            // What goes the other way comes by here too.
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                bytes.truncate(got);
                return Some(bytes);
            }
        }
    }

    /// Waits for a header and frame that is `wanted`.
    ///
    /// # Panics
    /// If none comes within ten seconds.
    #[track_caller]
    pub fn expect(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let begun = Instant::now();
        loop {
            match self.next() {
                Some(frame) if wanted(&frame[HEADER..]) => return frame,
                Some(_) => {}
                None => std::thread::sleep(Duration::from_micros(100)),
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "no such frame comes out of the tap");
        }
    }
}

/// Makes a tap that outlives its descriptors, as `ip tuntap add` does: down, not configured.
///
/// # Panics
/// If it cannot be made.
pub fn persistent(name: &str, multi_queue: bool) {
    let flags = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let name = IfName::new(name).expect("a name");
    let tap = Tap::attach(&name, flags)
        .and_then(|tap| tap.map_err(|source| crate::Error::Attach { name: name.to_string(), source }));
    let tap = tap.expect("a new tap");
    // SAFETY: this request takes its argument by value.
    unsafe { crate::sys::ioctl_value(&tap, libc::TUNSETPERSIST as libc::c_ulong, 1) }
        .expect("a persistent tap");
}

/// Makes a macvtap `above` with this address, whose frames come out at the link `far`. Its number, which its device file has in its name;
/// `None` where there is nobody to make that file (devtmpfs), which is said.
///
/// # Panics
/// If `ip` does not make it.
pub fn macvtap(mac: &str) -> Option<u32> {
    // Device files are for all namespaces: each process takes numbers of its own.
    let index = 1_000_000 + std::process::id() % 1_000_000;
    for args in [
        "link add below type veth peer name far",
        "link set below up",
        "link set far up",
        &format!("link add link below name above index {index} address {mac} type macvtap mode bridge"),
    ] {
        let done = std::process::Command::new("ip").args(args.split(' ')).status();
        assert!(done.is_ok_and(|status| status.success()), "ip {args}");
    }
    let there = std::path::Path::new(&format!("/dev/tap{index}")).exists();
    if !there {
        println!("SKIPPED: no device file comes with a macvtap");
    }
    there.then_some(index)
}

/// What the kernel cuts into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Large {
    /// A segment of TCP.
    Tcp,
    /// Datagrams of UDP, one behind the other.
    Udp,
}

impl Large {
    /// Protocol number, bytes of its header, where the checksum is in that, and its kind in `struct virtio_net_hdr`.
    fn numbers(self) -> (u8, usize, u16, u8) {
        match self {
            Large::Tcp => (6, 20, 16, 1),
            Large::Udp => (17, 8, 6, 5),
        }
    }

    /// The frame of one with this payload over IPv4, its checksum left undone, behind the header that says so; `mss` bytes go into each piece.
    pub fn frame(self, payload: &[u8], mss: u16) -> Vec<u8> {
        let (protocol, own, sum_at, kind) = self.numbers();
        let length = ((own + payload.len()) as u16).to_be_bytes();
        let mut frame = vec![1, kind];
        for field in [14 + 20 + own as u16, mss, 14 + 20, sum_at] {
            frame.extend(field.to_le_bytes());
        }
        frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        let mut ip = vec![0x45, 0];
        ip.extend((20 + own as u16 + payload.len() as u16).to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 9, 8, 7, 10, 9, 8, 6]);
        let sum = !checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        // The pseudo header's part of the checksum, as whoever leaves the rest undone writes it.
        let pseudo = checksum(&[&ip[12..20], &[0, protocol], &length]);
        frame.extend(&ip);
        let mut header = vec![0; own];
        header[..4].copy_from_slice(&PORTS);
        match self {
            Large::Tcp => header[12..15].copy_from_slice(&[0x50, 0x10, 0x10]),
            Large::Udp => header[4..6].copy_from_slice(&length),
        }
        header[usize::from(sum_at)..][..2].copy_from_slice(&pseudo.to_be_bytes());
        frame.extend(header);
        frame.extend(payload);
        frame
    }

    /// Whether a frame is one of these, or a piece of one.
    pub fn is(self, frame: &[u8]) -> bool {
        frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == self.numbers().0 && frame[34..38] == PORTS
    }

    /// The payload of a piece.
    ///
    /// # Panics
    /// If its checksum is wrong.
    #[track_caller]
    pub fn payload(self, piece: &[u8]) -> &[u8] {
        let segment = segment(piece);
        let length = (segment.len() as u16).to_be_bytes();
        let pseudo = [&piece[26..34], &[0, self.numbers().0], &length[..]].concat();
        assert_eq!(checksum(&[&pseudo, segment]), 0xffff, "the checksum of a piece");
        self.bytes(piece)
    }

    /// The payload of a piece whose checksum is not looked at.
    pub fn bytes(self, piece: &[u8]) -> &[u8] {
        &segment(piece)[self.numbers().1..]
    }
}

/// What an IP packet holds.
fn segment(frame: &[u8]) -> &[u8] {
    &frame[34..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))]
}

/// The ports of large frames.
const PORTS: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// The sum of the Internet checksum (RFC 1071), not inverted. All parts but the last have an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
