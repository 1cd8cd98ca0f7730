use std::net::Ipv4Addr;

use super::*;
use crate::frame::{ADDRESS, ETHERNET, tests::arp_request};
use crate::http::MAX_HEAD;
use crate::testing::{Guest, STATION, body, framed, get};
use crate::wire::MAX_WAITING;
use crate::{Document, Patch, TokenUse};

mod hostile;

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

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
    let mut guest = Guest::new(GUEST, now);
    for _ in 0..500 {
        assert_eq!(part(&mut guest, &mut service, now, "/latest/meta-data/hostname"), "h");
    }
    assert!(service.station.connections.len() <= 1, "{}", service.station.connections.len());
    assert_eq!(service.station.sockets.iter().count(), service.station.connections.len());
    assert_eq!(service.poll(now), None, "nothing is due");
}

#[test]
fn a_whole_document_goes_through_the_small_buffers_and_changes_are_seen_whole() {
    let text = |c: &str| format!(r#"{{"a":"{}"}}"#, c.repeat(crate::document::MAX_DOCUMENT - 8));
    let (mut service, now) = (endpoint(&text("x")), Instant::now());
    let mut guest = Guest::new(GUEST, now);
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
        let mut guest = Guest::new(Ipv4Addr::new(10, 0, 0, last), now);
        assert_eq!(part(&mut guest, &mut service, now, "/a"), "b");
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
    let mut guest = Guest::new(GUEST, now);
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
    let mut guest = Guest::new(GUEST, begin);
    assert_eq!(part(&mut guest, &mut service, begin, "/a"), "b");
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
