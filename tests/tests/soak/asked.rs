//! Asking a VMM whose answers are looked at: what may be refused, and why, is agreed before.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::ask;

use crate::tally::kind_of;
use crate::walk::Walk;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection that is used again and again.
#[derive(Debug)]
pub(crate) struct Client(UnixStream);

impl Client {
    /// Waits for the socket of a VMM that has only just been started.
    pub(crate) fn connect(socket: &Path) -> Option<Client> {
        let begun = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_read_timeout(Some(PATIENCE)).ok()?;
                return Some(Client(stream));
            }
            if begun.elapsed() > PATIENCE {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn ask(&mut self, verb: &str, name: &str, body: &Value) -> Option<(u16, String)> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        ask::exchange_on(&mut self.0, &ask::request(verb, name, body.as_bytes()))
    }
}

/// What refusals there may be meanwhile: one of these texts is in it.
pub(crate) type Reasons = &'static [&'static str];

impl Walk<'_> {
    /// Asks and notes how long it took: the answer, or nothing if it is refused as it may be, or if the VMM ends.
    ///
    /// # Panics
    /// If it is refused otherwise, or not answered.
    #[track_caller]
    pub(crate) fn ask(&mut self, what: &'static str, verb: &str, name: &str, body: &Value) -> Option<String> {
        self.course.step(what);
        let begun = Instant::now();
        let answer = match &mut self.client {
            Some(client) => client.ask(verb, name, body),
            None => Client::connect(self.life().living.api_socket())
                .and_then(|mut client| client.ask(verb, name, body)),
        };
        match answer {
            Some((200 | 204, text)) => {
                self.course.tally.done(what, begun.elapsed());
                return Some(text);
            }
            Some((status, text)) => {
                let expected = self.reasons.iter().any(|reason| text.contains(reason));
                assert!(expected, "{what}: {name} {body}: {status} {text}\n{}", self.life().living.said());
                self.course.tally.refused(what, kind_of(status, &text));
                self.felt += 1;
            }
            None => {
                // Out of descriptors or memory it cannot begin to listen; or it has ended, which is looked at later.
                let expected = !self.reasons.is_empty();
                assert!(expected, "{what}: {name} {body}: no answer\n{}", self.life().living.said());
                self.course.tally.refused(what, "no answer".to_owned());
                self.felt += 1;
                // The connection is of no use any more; and a VMM that ends takes a moment.
                self.client = None;
                for _ in 0..100 {
                    if self.life_mut().living.has_ended() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        None
    }

    /// The same without a body, by PUT.
    #[track_caller]
    pub(crate) fn put(&mut self, what: &'static str, name: &str) -> Option<String> {
        self.ask(what, "PUT", name, &Value::Null)
    }

    /// What must be refused with this status, for one of these reasons.
    #[track_caller]
    pub(crate) fn must_refuse(
        &mut self,
        verb: &str,
        name: &str,
        body: &Value,
        status: u16,
        reasons: Reasons,
    ) {
        const WHAT: &str = "something that must be refused";
        self.course.step(WHAT);
        let mut client = Client::connect(self.life().living.api_socket()).expect("the VMM listens");
        let answer = client.ask(verb, name, body);
        let (got, text) = answer.unwrap_or_else(|| panic!("{name} {body}: no answer"));
        let good =
            got == status && (reasons.is_empty() || reasons.iter().any(|reason| text.contains(reason)));
        assert!(good, "{verb} {name} {body}: {got} {text}, not {status} {reasons:?}");
        self.course.tally.refused(WHAT, kind_of(got, &text));
    }
}
