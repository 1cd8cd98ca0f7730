//! Questions that must be refused, floods of them, and questioners that hang half way.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::ask;

use crate::walk::Walk;

/// Connections that a VMM serves at once.
const CONNECTIONS: usize = 10;
/// Connections of a flood.
const FLOOD: usize = 40;

impl Walk<'_> {
    /// Something that is not possible now, or never is.
    pub(crate) fn ask_wrongly(&mut self) {
        let disk = self.site.disk.clone();
        let (verb, name, body, status): (_, _, Value, u16) = match self.random.below(16) {
            0 => ("PUT", "vm.boot", Value::Null, 405),
            1 => ("PUT", "vm.resume", Value::Null, 405),
            2 => ("PUT", "vm.create", json!({"payload": {"kernel": "/none"}}), 405),
            3 => ("PUT", "vm.snapshot", json!({"destination_url": "file:///none"}), 405),
            4 => ("PUT", "vm.restore", json!({"source_url": "file:///none"}), 405),
            5 => ("PUT", "vm.remove-device", json!({"id": "nobody"}), 404),
            6 => ("PUT", "vm.resize-disk", json!({"id": "nobody", "desired_size": 512}), 404),
            7 => ("PUT", "vm.wait-device", json!({"id": "nobody", "until": "ready"}), 404),
            8 => ("PUT", "vm.wait-device", json!({"id": "disk0", "until": "removed", "timeout_ms": 1}), 504),
            9 => ("PUT", "vm.add-disk", json!({"id": "disk0", "path": disk}), 409),
            10 => ("PUT", "vm.add-disk", json!({"path": "/none/of/this"}), 400),
            11 => ("PUT", "vm.add-net", json!({"num_queues": 7}), 400),
            12 => ("PUT", "vm.add-pmem", json!({"file": "/none", "size": 1}), 400),
            13 => ("PUT", "vm.nonsense", Value::Null, 404),
            14 => ("GET", "vm.pause", Value::Null, 400),
            _ => ("PUT", "vm.add-disk", json!({"path": 7}), 400),
        };
        self.must_refuse(verb, name, &body, status, &[]);
    }

    /// Asks as fast as it goes, on more connections than are served at once: each is answered or sent away, and others are answered again
    /// at once.
    pub(crate) fn flood(&mut self) {
        const WHAT: &str = "flood of questions";
        self.course.step(WHAT);
        let socket = self.life().living.api_socket().to_path_buf();
        let begun = Instant::now();
        let question = ask::request("GET", "vm.info", &[]);
        let mut answers = [0; 2];
        for _ in 0..3 {
            let streams = (0..FLOOD).map(|_| UnixStream::connect(&socket).expect("the VMM listens"));
            let mut streams: Vec<UnixStream> = streams.collect();
            for stream in &mut streams {
                // The server may have sent it away already.
                let _ = stream.write_all(&question);
            }
            for mut stream in streams {
                stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket has a time limit");
                match ask::exchange_on(&mut stream, &[]) {
                    Some((200, _)) => answers[0] += 1,
                    Some((503, _)) => answers[1] += 1,
                    // Its words were not read before the connection was closed, which takes the answer with it.
                    None => answers[1] += 1,
                    other => panic!("a question of a flood is answered with {other:?}"),
                }
            }
            assert!(answers[0] > 0, "no question of a flood is answered");
        }
        self.course.tally.done(WHAT, begun.elapsed());
        self.course.tally.trouble("flood of questions", answers[1], true);
        self.answers_again();
    }

    /// The places of connections that are gone are free again.
    fn answers_again(&mut self) {
        let begun = Instant::now();
        let socket = self.life().living.api_socket().to_path_buf();
        while !matches!(ask::ask(&socket, "GET", "vmm.ping", &[]), Some((200, _))) {
            assert!(begun.elapsed() < Duration::from_secs(60), "no place is free after a flood");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Connections that begin to ask and then say nothing more; not as many as would keep others out.
    pub(crate) fn hung_questioners(&mut self) -> Vec<UnixStream> {
        let question = ask::request("PUT", "vm.add-disk", br#"{"path": "/none"}"#);
        (0..1 + self.random.below(CONNECTIONS as u64 - 3))
            .map(|_| {
                let mut stream =
                    UnixStream::connect(self.life().living.api_socket()).expect("the VMM listens");
                let cut = self.random.below(question.len() as u64) as usize;
                stream.write_all(&question[..cut]).expect("the VMM listens");
                stream
            })
            .collect()
    }
}
