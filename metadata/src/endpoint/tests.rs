use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use crate::frame::tests::{arp_request, solicitation};
use crate::frame::{ADDRESS, ADDRESS6, ETHERNET};
use crate::http::MAX_HEAD;
use crate::testing::{ADVERTISEMENT, Guest, STATION, body, framed, get, neighbour, packet};
use crate::wire::MAX_WAITING;
use crate::{Document, Patch, TokenUse};

mod hostile;

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// A guest by each of its addresses.
const BOTH: [IpAddr; 2] = [IpAddr::V4(GUEST), IpAddr::V6(GUEST6)];

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
    Endpoint::new(Arc::new(store), Arc::new(Free), None).unwrap()
}

/// Moves what there is both ways; tells whether there was anything.
fn exchange(guest: &mut Guest, service: &mut Endpoint, now: Instant) -> bool {
    let frames = guest.turn(now);
    for frame in &frames {
        service.take(frame, now);
    }
    service.poll(now);
    let mut moved = !frames.is_empty();
    while let Some(frame) = service.next_frame(now) {
        guest.take(&frame);
        moved = true;
    }
    moved
}

/// Moves packets both ways until there are none.
fn settle(guest: &mut Guest, service: &mut Endpoint, now: Instant) {
    while exchange(guest, service, now) {}
}

fn ask(guest: &mut Guest, service: &mut Endpoint, now: Instant, request: &str) -> String {
    guest.ask(request, |guest| exchange(guest, service, now))
}

/// The part of the document at a path.
fn part(guest: &mut Guest, service: &mut Endpoint, now: Instant, path: &str) -> String {
    body(&ask(guest, service, now, &get(path))).to_owned()
}

#[test]
fn hundreds_of_connections_one_after_another_are_answered_and_leave_nothing() {
    let (mut service, now) = (endpoint(r#"{"meta-data":{"hostname":"h"}}"#), Instant::now());
    let mut guests = BOTH.map(|address| Guest::new(address, now));
    for _ in 0..250 {
        for guest in &mut guests {
            assert_eq!(part(guest, &mut service, now, "/latest/meta-data/hostname"), "h");
        }
    }
    assert!(service.station.connections.len() <= 1, "{}", service.station.connections.len());
    assert_eq!(service.station.sockets.iter().count(), service.station.connections.len());
    assert_eq!(service.poll(now), None, "nothing is due");
}

#[test]
fn a_whole_document_goes_through_the_small_buffers_and_changes_are_seen_whole() {
    let text = |c: &str| format!(r#"{{"a":"{}"}}"#, c.repeat(crate::document::MAX_DOCUMENT - 8));
    for address in BOTH {
        whole_and_changed(address, text);
    }
}

fn whole_and_changed(address: IpAddr, text: impl Fn(&str) -> String) {
    let (mut service, now) = (endpoint(&text("x")), Instant::now());
    let mut guest = Guest::new(address, now);
    assert_eq!(part(&mut guest, &mut service, now, "/a").len(), crate::document::MAX_DOCUMENT - 8);
    // A patch while an answer is under way.
    let handle = guest.connect();
    settle(&mut guest, &mut service, now);
    guest.send(handle, b"GET /a HTTP/1.1\r\n\r\n");
    settle(&mut guest, &mut service, now);
    service.store.patch(&Patch::parse(br#"{"a":"new"}"#).unwrap()).unwrap();
    let mut answer = Vec::new();
    while guest.receive(handle, &mut answer) {
        settle(&mut guest, &mut service, now);
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(body(&answer).bytes().all(|b| b == b'x'), "the answer is of one document");
    assert_eq!(part(&mut guest, &mut service, now, "/a"), "new");
}

#[test]
fn two_guests_behind_one_card_are_told_apart() {
    let (mut service, now) = (endpoint(r#"{"a":"b"}"#), Instant::now());
    for last in 1..=100 {
        let own: [IpAddr; 2] = [[10, 0, 0, last].into(), [0xfe80, 0, 0, 0, 0, 0, 0, last.into()].into()];
        for address in own {
            assert_eq!(part(&mut Guest::new(address, now), &mut service, now, "/a"), "b", "{address}");
        }
    }
}

#[test]
fn questions_for_the_station_are_answered() {
    let (mut service, now) = (endpoint("{}"), Instant::now());
    service.take(&arp_request(ADDRESS), now);
    assert!(service.has_frame());
    assert_eq!(service.next_frame(now).unwrap().len(), 42);
    service.take(&arp_request(GUEST), now);
    assert!(!service.has_frame());
    service.take(&solicitation(GUEST6, ADDRESS6), now);
    assert_eq!(service.next_frame(now).unwrap().len(), 86);
    service.take(&solicitation(GUEST6, GUEST6), now);
    // Somebody who says to be the service, and who listens to what: nothing is learnt of it.
    service.take(&neighbour(ADVERTISEMENT, GUEST6, ADDRESS6, ADDRESS6, &[2, 1, 2, 0, 0, 0, 0, 9]), now);
    service.take(&neighbour(143, GUEST6, [0xff02, 0, 0, 0, 0, 0, 0, 0x16].into(), ADDRESS6, &[]), now);
    assert!(!service.has_frame());
    assert_eq!(part(&mut Guest::new(GUEST6, now), &mut service, now, "/"), "");
}

#[test]
fn a_token_had_by_one_address_is_good_at_the_other() {
    let (mut service, now) = (endpoint(r#"{"a":"b"}"#), Instant::now());
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let token = ask(&mut Guest::new(GUEST6, now), &mut service, now, put);
    for address in BOTH {
        let get = format!("GET /a HTTP/1.1\r\nX-metadata-token: {}\r\n\r\n", body(&token));
        assert_eq!(body(&ask(&mut Guest::new(address, now), &mut service, now, &get)), "b");
    }
}

#[test]
fn packets_by_ipv6_go_as_far_as_those_by_ipv4_and_carry_as_much_as_the_card_lets_them() {
    for (mtu, least) in [(None, 1500), (Some(9000), 1500), (Some(1280), 1280), (Some(0), 1280)] {
        let document = format!(r#"{{"a":"{}"}}"#, "x".repeat(5000));
        let store = Store::new(Document::parse(document.as_bytes()).unwrap(), TokenUse::Optional);
        let mut service = Endpoint::new(Arc::new(store), Arc::new(Free), mtu).unwrap();
        let (mut guests, now) = (BOTH.map(|address| Guest::new(address, Instant::now())), Instant::now());
        // Where the hop limit is.
        for (guest, at) in guests.iter_mut().zip([8, 7]) {
            let mut longest = 0;
            let answer = guest.ask(&get("/a"), |guest| {
                let frames = guest.turn(now);
                frames.iter().for_each(|frame| service.take(frame, now));
                let mut moved = !frames.is_empty();
                while let Some(frame) = service.next_frame(now) {
                    assert_eq!(frame[ETHERNET + at], 64);
                    longest = longest.max(frame.len() - ETHERNET);
                    guest.take(&frame);
                    moved = true;
                }
                moved
            });
            assert_eq!((body(&answer).len(), longest), (5000, least), "{mtu:?}");
        }
    }
}

#[test]
fn after_a_reset_of_the_driver_old_connections_and_tokens_are_unknown() {
    for address in BOTH {
        unknown_after_a_reset(address);
    }
}

fn unknown_after_a_reset(address: IpAddr) {
    let (mut service, now) = (endpoint(r#"{"a":"b"}"#), Instant::now());
    let mut guest = Guest::new(address, now);
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let token = ask(&mut guest, &mut service, now, put);
    let get = format!("GET /a HTTP/1.1\r\nX-metadata-token: {}\r\n\r\n", body(&token));
    assert_eq!(body(&ask(&mut guest, &mut service, now, &get)), "b");
    let handle = guest.connect();
    settle(&mut guest, &mut service, now);
    service.clear();
    guest.send(handle, b"GET");
    settle(&mut guest, &mut service, now);
    assert_eq!(guest.state(handle), State::Closed, "it is told so");
    assert!(ask(&mut guest, &mut service, now, &get).starts_with("HTTP/1.1 401 "));
    assert_eq!(part(&mut guest, &mut service, now, "/a"), "b");
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
    service.pace = Arc::new(Slow(begin, std::sync::Mutex::new(0)));
    // By whichever address.
    let mut guest = Guest::new(GUEST, begin);
    assert_eq!(part(&mut guest, &mut service, begin, "/a"), "b");
    let mut guest = Guest::new(GUEST6, begin);
    let handle = guest.connect();
    settle(&mut guest, &mut service, begin);
    guest.send(handle, b"GET /a HTTP/1.1\r\n\r\n");
    settle(&mut guest, &mut service, begin);
    assert!(!guest.sockets.get::<Socket<'_>>(handle).can_recv());
    let wait = service.poll(begin).unwrap();
    assert_eq!(wait, Duration::from_secs(1));
    settle(&mut guest, &mut service, begin + wait);
    assert!(guest.sockets.get::<Socket<'_>>(handle).can_recv());
}
