//! A guest's side of the service, for tests: its network stack, and what carries its frames is the test's.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time as wire_time;
use smoltcp::wire::{HardwareAddress, Icmpv6Packet, IpCidr};

use crate::endpoint::PORT;
use crate::frame::neighbour;
use crate::frame::{ADDRESS, ADDRESS6, ETHERNET, MAC, header_of, is_for_service};

/// The address of the guest's card.
pub const STATION: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// Kinds of message: one that asks for a station by IPv6, and one that answers.
pub const SOLICITATION: u8 = neighbour::SOLICITATION;
/// See [`SOLICITATION`].
pub const ADVERTISEMENT: u8 = neighbour::ADVERTISEMENT;
/// The group where the service's station is asked for.
pub const ASKED: Ipv6Addr = neighbour::ASKED;

/// A guest's frame to the service, around a packet.
///
/// # Panics
/// It would not be taken for one.
pub fn framed(packet: &[u8]) -> Vec<u8> {
    let mut frame = header_of(packet, MAC).to_vec();
    frame[6..12].copy_from_slice(&STATION);
    frame.extend(packet);
    assert!(is_for_service(&frame));
    frame
}

/// An IP packet with a TCP segment for the service.
///
/// # Panics
/// The segment does not fit.
pub fn packet(source: IpAddr, segment: &[u8]) -> Vec<u8> {
    const TCP: u8 = 6;
    match source {
        IpAddr::V4(source) => {
            let length = u16::try_from(20 + segment.len()).expect("it fits");
            let mut packet = vec![0x45, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
            packet.extend([source.octets(), ADDRESS.octets()].concat());
            packet.extend(segment);
            packet
        }
        IpAddr::V6(source) => packet6(source, ADDRESS6, [TCP, 64], segment),
    }
}

/// An IPv6 packet, with what is in it and its hop limit.
fn packet6(from: Ipv6Addr, to: Ipv6Addr, kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).expect("it fits").to_be_bytes());
    packet.extend(kind);
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend(payload);
    packet
}

/// A frame with an ICMPv6 message about an address (RFC 4861), its checksum right.
pub fn neighbour(kind: u8, from: Ipv6Addr, to: Ipv6Addr, about: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &about.octets(), options].concat();
    Icmpv6Packet::new_unchecked(&mut message).fill_checksum(&from, &to);
    framed(&packet6(from, to, [58, 255], &message))
}

/// See the module.
pub struct Guest {
    interface: Interface,
    link: Link,
    pub(crate) sockets: SocketSet<'static>,
    service: IpAddr,
    port: u16,
    begin: Instant,
}

#[derive(Default)]
struct Link {
    to_guest: VecDeque<Vec<u8>>,
    to_service: VecDeque<Vec<u8>>,
}

struct Packet(Vec<u8>);
struct Room<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl phy::Device for Link {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: wire_time::Instant) -> Option<(Packet, Room<'_>)> {
        Some((Packet(self.to_guest.pop_front()?), Room(&mut self.to_service)))
    }

    fn transmit(&mut self, _: wire_time::Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.to_service))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

impl Guest {
    /// One with this address, which asks the service at that of the same kind; its time begins at `begin`.
    ///
    /// # Panics
    /// The address is a group's.
    pub fn new(address: impl Into<IpAddr>, begin: Instant) -> Guest {
        let address = address.into();
        let (seed, prefix, service) = match address {
            IpAddr::V4(own) => (own.to_bits().into(), 24, ADDRESS.into()),
            IpAddr::V6(own) => (own.to_bits() as u64, 64, ADDRESS6.into()),
        };
        let mut link = Link::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut link, wire_time::Instant::ZERO);
        interface
            .update_ip_addrs(|all| all.push(IpCidr::new(address.into(), prefix)).expect("there is room"));
        Guest { interface, link, sockets: SocketSet::new(Vec::new()), service, port: 40_000, begin }
    }

    /// Begins to open a connection.
    ///
    /// # Panics
    /// There can be no more.
    pub fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 16_384]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        self.port += 1;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        let connected = socket.connect(self.interface.context(), (self.service, PORT), self.port);
        connected.expect("ports are free");
        handle
    }

    /// Does what can be done by now, and returns the frames that go out.
    pub fn turn(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let since = now.saturating_duration_since(self.begin).as_micros();
        let ticks = wire_time::Instant::from_micros(since as i64);
        self.interface.poll(ticks, &mut self.link, &mut self.sockets);
        self.link.to_service.drain(..).map(|packet| framed(&packet)).collect()
    }

    /// Takes a frame from the service.
    ///
    /// # Panics
    /// It is to somebody else.
    pub fn take(&mut self, frame: &[u8]) {
        assert_eq!(frame[..ETHERNET], header_of(&frame[ETHERNET..], STATION));
        self.link.to_guest.push_back(frame[ETHERNET..].to_vec());
    }

    /// The state of a connection.
    pub fn state(&self, connection: SocketHandle) -> State {
        self.sockets.get::<Socket<'_>>(connection).state()
    }

    /// Sends what there is room for.
    ///
    /// # Panics
    /// The connection is not open.
    pub fn send(&mut self, connection: SocketHandle, bytes: &[u8]) {
        let sent = self.sockets.get_mut::<Socket<'_>>(connection).send_slice(bytes);
        assert_eq!(sent.expect("the connection is open"), bytes.len());
    }

    /// Adds what came to `answer`; tells whether more can come.
    pub fn receive(&mut self, connection: SocketHandle, answer: &mut Vec<u8>) -> bool {
        let socket = self.sockets.get_mut::<Socket<'_>>(connection);
        while socket.can_recv() {
            // There is something.
            let _ = socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes)));
        }
        socket.may_recv()
    }

    /// Asks, and returns the answer when the service has closed the connection. `carry` takes frames to the service, brings those from there,
    /// and knows what time it is; where it says that there was nothing to be carried, the waiting ends.
    ///
    /// # Panics
    /// The service says nothing more, or no text.
    pub fn ask(&mut self, request: &str, mut carry: impl FnMut(&mut Guest) -> bool) -> String {
        let connection = self.connect();
        while self.state(connection) == State::SynSent {
            let carried = carry(self);
            assert!(
                carried || self.state(connection) != State::SynSent,
                "the service does not open the connection"
            );
        }
        self.send(connection, request.as_bytes());
        let mut answer = Vec::new();
        while self.receive(connection, &mut answer) {
            let before = answer.len();
            // What came may need no answer at once.
            if !carry(self) && self.receive(connection, &mut answer) {
                assert!(answer.len() > before, "the service says nothing more after {before} bytes");
            }
        }
        self.sockets.get_mut::<Socket<'_>>(connection).close();
        carry(self);
        self.sockets.remove(connection);
        String::from_utf8(answer).expect("a text")
    }
}

/// A request for a part of the document.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")
}

/// What follows the head of an answer.
///
/// # Panics
/// There is no head.
pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}
