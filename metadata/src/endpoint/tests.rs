use std::collections::VecDeque;
use std::net::Ipv4Addr;

use smoltcp::phy::{self, DeviceCapabilities, Medium};

use super::*;
use crate::frame::{ADDRESS, ETHERNET, MAC, header, is_for_service, tests::arp_request};
use crate::http::MAX_HEAD;
use crate::wire::MAX_WAITING;
use crate::{Document, Patch, TokenUse};

mod hostile;

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const STATION: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// No limit.
struct Free;

impl Pace for Free {
    fn pause(&self, _: Instant) -> Option<Duration> {
        None
    }

    fn count(&self, _: Instant, _: u64) {}
}

fn endpoint(text: &str) -> Endpoint {
    let store = Store::new(Document::parse(text.as_bytes()).unwrap(), TokenUse::Optional);
    Endpoint::new(Arc::new(store), Box::new(Free), None).unwrap()
}

/// A guest's frame around a packet.
fn framed(packet: &[u8]) -> Vec<u8> {
    let mut frame = header(MAC).to_vec();
    frame[6..12].copy_from_slice(&STATION);
    frame.extend(packet);
    assert!(is_for_service(&frame[..crate::HEAD]));
    frame
}

/// A guest's network stack.
struct Guest {
    interface: Interface,
    link: Link,
    sockets: SocketSet<'static>,
    port: u16,
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
    fn new(address: Ipv4Addr) -> Guest {
        let mut link = Link::default();
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ip), &mut link, wire_time::Instant::ZERO);
        interface.update_ip_addrs(|all| all.push(IpCidr::new(address.into(), 24)).unwrap());
        Guest { interface, link, sockets: SocketSet::new(Vec::new()), port: 40_000 }
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 16_384]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        self.port += 1;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(self.interface.context(), (wire::ADDRESS, PORT), self.port).unwrap();
        handle
    }

    /// Moves packets both ways until there are none.
    fn exchange(&mut self, endpoint: &mut Endpoint, now: Instant) {
        loop {
            self.interface.poll(endpoint.ticks(now), &mut self.link, &mut self.sockets);
            let packets: Vec<_> = self.link.to_service.drain(..).collect();
            for packet in &packets {
                endpoint.take(&framed(packet), now);
            }
            endpoint.poll(now);
            let mut idle = packets.is_empty();
            while let Some(frame) = endpoint.next_frame(now) {
                assert_eq!(frame[..ETHERNET], header(STATION));
                self.link.to_guest.push_back(frame[ETHERNET..].to_vec());
                idle = false;
            }
            if idle {
                return;
            }
        }
    }

    /// Asks, and returns the answer when the service has closed the connection.
    fn ask(&mut self, endpoint: &mut Endpoint, now: Instant, request: &str) -> String {
        let handle = self.connect();
        self.exchange(endpoint, now);
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        assert_eq!(socket.state(), State::Established, "the connection is there");
        socket.send_slice(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        loop {
            self.exchange(endpoint, now);
            let socket = self.sockets.get_mut::<Socket<'_>>(handle);
            if socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
            } else if socket.may_recv() {
                panic!("the service says nothing more after {} bytes", answer.len());
            } else {
                break;
            }
        }
        self.sockets.get_mut::<Socket<'_>>(handle).close();
        self.exchange(endpoint, now);
        self.sockets.remove(handle);
        String::from_utf8(answer).unwrap()
    }

    fn get(&mut self, endpoint: &mut Endpoint, now: Instant, path: &str) -> String {
        self.ask(endpoint, now, &format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"))
    }
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn hundreds_of_connections_one_after_another_are_answered_and_leave_nothing() {
    let (mut service, now) = (endpoint(r#"{"meta-data":{"hostname":"h"}}"#), Instant::now());
    let mut guest = Guest::new(GUEST);
    for _ in 0..500 {
        assert_eq!(body(&guest.get(&mut service, now, "/latest/meta-data/hostname")), "h");
    }
    assert!(service.station.connections.len() <= 1, "{}", service.station.connections.len());
    assert_eq!(service.station.sockets.iter().count(), service.station.connections.len());
    assert_eq!(service.poll(now), None, "nothing is due");
}

#[test]
fn a_whole_document_goes_through_the_small_buffers_and_changes_are_seen_whole() {
    let text = |c: &str| format!(r#"{{"a":"{}"}}"#, c.repeat(crate::document::MAX_DOCUMENT - 8));
    let (mut service, now) = (endpoint(&text("x")), Instant::now());
    let mut guest = Guest::new(GUEST);
    assert_eq!(body(&guest.get(&mut service, now, "/a")).len(), crate::document::MAX_DOCUMENT - 8);
    // A patch while an answer is under way.
    let handle = guest.connect();
    guest.exchange(&mut service, now);
    guest.sockets.get_mut::<Socket<'_>>(handle).send_slice(b"GET /a HTTP/1.1\r\n\r\n").unwrap();
    guest.exchange(&mut service, now);
    service.store.patch(&Patch::parse(br#"{"a":"new"}"#).unwrap()).unwrap();
    let mut answer = String::new();
    while guest.sockets.get::<Socket<'_>>(handle).may_recv() {
        let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
        socket.recv(|bytes| (bytes.len(), answer.push_str(std::str::from_utf8(bytes).unwrap()))).unwrap();
        guest.exchange(&mut service, now);
    }
    assert!(body(&answer).bytes().all(|b| b == b'x'), "the answer is of one document");
    assert_eq!(body(&guest.get(&mut service, now, "/a")), "new");
}

#[test]
fn two_guests_behind_one_card_are_told_apart() {
    let (mut service, now) = (endpoint(r#"{"a":"b"}"#), Instant::now());
    for last in 1..=100 {
        let mut guest = Guest::new(Ipv4Addr::new(10, 0, 0, last));
        assert_eq!(body(&guest.get(&mut service, now, "/a")), "b");
    }
}

#[test]
fn arp_is_answered() {
    let (mut service, now) = (endpoint("{}"), Instant::now());
    service.take(&arp_request(ADDRESS), now);
    assert!(service.has_frame());
    assert_eq!(service.next_frame(now).unwrap().len(), 42);
    service.take(&arp_request(GUEST), now);
    assert!(!service.has_frame());
}

#[test]
fn after_a_reset_of_the_driver_old_connections_and_tokens_are_unknown() {
    let (mut service, now) = (endpoint(r#"{"a":"b"}"#), Instant::now());
    let mut guest = Guest::new(GUEST);
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let token = guest.ask(&mut service, now, put);
    let get = format!("GET /a HTTP/1.1\r\nX-metadata-token: {}\r\n\r\n", body(&token));
    assert_eq!(body(&guest.ask(&mut service, now, &get)), "b");
    let handle = guest.connect();
    guest.exchange(&mut service, now);
    service.clear();
    guest.sockets.get_mut::<Socket<'_>>(handle).send_slice(b"GET").unwrap();
    guest.exchange(&mut service, now);
    assert_eq!(guest.sockets.get::<Socket<'_>>(handle).state(), State::Closed, "it is told so");
    assert!(guest.ask(&mut service, now, &get).starts_with("HTTP/1.1 401 "));
    assert_eq!(body(&guest.get(&mut service, now, "/a")), "b");
}

#[test]
fn requests_wait_for_their_turn() {
    struct Slow(Instant, std::sync::Mutex<u32>);
    impl Pace for Slow {
        fn pause(&self, now: Instant) -> Option<Duration> {
            // One a second.
            let next = self.0 + Duration::from_secs((*self.1.lock().unwrap()).into());
            (next > now).then(|| next - now)
        }

        fn count(&self, _: Instant, bytes: u64) {
            assert!(bytes > 0);
            *self.1.lock().unwrap() += 1;
        }
    }
    let (mut service, begin) = (endpoint(r#"{"a":"b"}"#), Instant::now());
    service.pace = Box::new(Slow(begin, std::sync::Mutex::new(0)));
    let mut guest = Guest::new(GUEST);
    assert_eq!(body(&guest.get(&mut service, begin, "/a")), "b");
    let handle = guest.connect();
    guest.exchange(&mut service, begin);
    guest.sockets.get_mut::<Socket<'_>>(handle).send_slice(b"GET /a HTTP/1.1\r\n\r\n").unwrap();
    guest.exchange(&mut service, begin);
    assert!(!guest.sockets.get::<Socket<'_>>(handle).can_recv());
    let wait = service.poll(begin).unwrap();
    assert_eq!(wait, Duration::from_secs(1));
    guest.exchange(&mut service, begin + wait);
    assert!(guest.sockets.get::<Socket<'_>>(handle).can_recv());
}
