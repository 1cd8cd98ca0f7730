//! What clients meet on the socket, byte for byte; the machine behind it is a thread that answers as told.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use spec::{Kind, Refusal};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::client::{self, ClientError};
use super::server::{MAX_BODY, MAX_CONNECTIONS, Server};
use crate::action::{Action, Route, routes};
use crate::{Inbox, Reply};

/// A server on a socket of its own, with somebody to answer.
struct Fixture {
    directory: PathBuf,
    server: Server,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

const PATIENCE: Duration = Duration::from_millis(300);

fn reply(action: Action) -> Result<Reply, Refusal> {
    match action {
        Action::VmmPing => Ok(Reply::Json("{\"version\":\"1\"}".into())),
        Action::VmmShutdown => Ok(Reply::Empty),
        Action::VmCreate(_) | Action::VmDelete => Ok(Reply::Done),
        Action::VmInfo => Err(Refusal::new(Kind::Absent, "VM is not created").within("Error from API")),
        Action::VmBoot => Err(Refusal::invalid("bad").within("outer")),
        Action::VmPause => Err(Refusal::new(Kind::State, "VM is not running")),
        Action::VmResume => Err(Refusal::new(Kind::Conflict, "Identifier a is not unique")),
        Action::VmReboot => Err(Refusal::new(Kind::Busy, "later")),
        Action::VmNmi => Err(Refusal::host("no file", io::Error::from_raw_os_error(2))),
        Action::VmPowerButton => Err(Refusal::unsupported("--x")),
        Action::VmAdd(device) => Ok(Reply::Json(format!("\"{device:?}\"").replace('\\', ""))),
        Action::VmMetadata | Action::VmmConfinement => Ok(Reply::Json("{}".into())),
        Action::VmSetMetadata(document) => Ok(Reply::Json(document.to_json())),
        Action::VmPatchMetadata(_) => Ok(Reply::Done),
        Action::VmRemoveDevice(_) | Action::VmResizeDisk(_) | Action::VmSnapshot(_) => Ok(Reply::Done),
        Action::VmRestore(request) => Ok(Reply::Json(serde_json::to_string(&request).unwrap())),
        Action::VmWaitDevice(wait) => {
            Err(Refusal::new(Kind::Late, format!("{} ms", wait.timeout_ms)).within(wait.id))
        }
        Action::VmShutdown => Err(Refusal::new(Kind::Bug, "broken")),
        Action::VmCounters => Ok(Reply::Json(format!("\"{}\"", "x".repeat(1 << 20)))),
    }
}

fn answer_all(inbox: Inbox) {
    loop {
        device::ready(inbox.fd(), libc::POLLIN, Duration::MAX).unwrap();
        for call in inbox.drain() {
            let _ = call.answer.send(reply(call.action));
        }
    }
}

fn start() -> Fixture {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("virga-api-{}-{number}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let listener = UnixListener::bind(directory.join("s")).unwrap();
    let (caller, inbox) = crate::calls::queue().unwrap();
    std::thread::Builder::new().name("answers".into()).spawn(move || answer_all(inbox)).unwrap();
    let server = Server::start_with(listener, caller, Default::default(), PATIENCE).unwrap();
    Fixture { directory, server }
}

impl Fixture {
    fn socket(&self) -> PathBuf {
        self.directory.join("s")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends `text` on a new connection and returns one answer.
    fn exchange(&self, text: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        response(&mut stream)
    }
}

/// Reads one answer: head and as much body as it announces.
fn response(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&text)));
        text.push(byte[0]);
    }
    let head = String::from_utf8(text.clone()).unwrap();
    let length =
        head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn get(path: &str) -> String {
    format!("GET /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")
}

fn put(path: &str, body: &str) -> String {
    format!(
        "PUT /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

const HEAD: &str = "Server: Cloud Hypervisor API\r\nConnection: keep-alive\r\n";

fn with_body(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} \r\n{HEAD}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn answers_have_no_reason_phrase_and_these_headers_in_this_order() {
    let s = start();
    assert_eq!(s.exchange(&get("vmm.ping")), with_body(200, "{\"version\":\"1\"}"));
    assert_eq!(s.exchange(&put("vm.delete", "")), format!("HTTP/1.1 204 \r\n{HEAD}\r\n"));
    assert_eq!(s.exchange(&put("vmm.shutdown", "")), with_body(200, ""));
    assert_eq!(s.exchange(&put("vmm.shutdown", "ignored")), with_body(200, ""));
}

#[test]
fn a_refusal_is_a_list_of_messages_and_its_kind_is_the_status() {
    let s = start();
    for (path, status, body) in [
        ("vm.boot", 400, r#"["outer","bad"]"#),
        ("vm.power-button", 400, r#"["--x is not supported yet"]"#),
        ("vm.pause", 405, r#"["VM is not running"]"#),
        ("vm.resume", 409, r#"["Identifier a is not unique"]"#),
        ("vm.reboot", 429, r#"["later"]"#),
        ("vm.nmi", 500, r#"["no file","No such file or directory (os error 2)"]"#),
        ("vm.shutdown", 500, r#"["broken"]"#),
    ] {
        assert_eq!(s.exchange(&put(path, "")), with_body(status, body), "{path}");
    }
    assert_eq!(s.exchange(&get("vm.info")), with_body(404, r#"["Error from API","VM is not created"]"#));
}

#[test]
fn a_connection_serves_many_requests_also_when_they_come_at_once() {
    let s = start();
    let mut stream = s.connect();
    for _ in 0..3 {
        stream.write_all(get("vmm.ping").as_bytes()).unwrap();
        assert!(response(&mut stream).starts_with("HTTP/1.1 200 \r\n"));
    }
    stream.write_all((get("vmm.ping") + &put("vm.delete", "") + &get("vm.info")).as_bytes()).unwrap();
    let statuses: Vec<String> = (0..3).map(|_| response(&mut stream)[9..12].to_owned()).collect();
    assert_eq!(statuses, ["200", "204", "404"]);
}

#[test]
fn a_client_that_wants_one_answer_only_is_hung_up_on() {
    let s = start();
    for (head, close) in [
        ("GET /api/v1/vmm.ping HTTP/1.1\r\nConnection: close\r\n\r\n", true),
        ("GET /api/v1/vmm.ping HTTP/1.0\r\n\r\n", true),
        ("GET /api/v1/vmm.ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false),
    ] {
        let mut stream = s.connect();
        stream.write_all(head.as_bytes()).unwrap();
        let answer = response(&mut stream);
        assert!(answer.ends_with("{\"version\":\"1\"}"), "{answer}");
        assert_eq!(answer.contains("\r\nConnection: close\r\n"), close, "{answer}");
        if close {
            assert!(is_closed(&mut stream));
        } else {
            stream.write_all(head.as_bytes()).unwrap();
            assert!(response(&mut stream).contains(" 200 \r\n"));
        }
    }
}

#[test]
fn a_client_may_close_its_half_before_the_answer() {
    let s = start();
    let mut stream = s.connect();
    stream.write_all(get("vmm.ping").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(response(&mut stream).starts_with("HTTP/1.1 200 \r\n"));
    assert!(is_closed(&mut stream));
}

#[test]
fn a_client_that_expects_100_is_told_to_go_on_unless_its_body_is_too_large() {
    let s = start();
    let head = |length| {
        format!("PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut stream = s.connect();
    stream.write_all(head(2).as_bytes()).unwrap();
    let go_on = response(&mut stream);
    assert!(go_on.starts_with("HTTP/1.1 100 "), "{go_on}");
    stream.write_all(b"{}").unwrap();
    assert!(response(&mut stream).starts_with("HTTP/1.1 204 \r\n"));

    let mut stream = s.connect();
    stream.write_all(head(MAX_BODY + 1).as_bytes()).unwrap();
    assert!(response(&mut stream).starts_with("HTTP/1.1 400 \r\n"));
}

#[test]
fn a_body_may_have_4_mib_and_no_more_whether_it_says_so_or_not() {
    let s = start();
    let blank = |length| format!("{{{}}}", " ".repeat(length - 2));
    assert!(s.exchange(&put("vm.create", &blank(MAX_BODY))).starts_with("HTTP/1.1 204 \r\n"));
    let too_large = format!("[\"Bad Request\",\"The body is larger than {MAX_BODY} bytes\"]");
    let mut stream = s.connect();
    // The server may hang up before it has read all.
    let _ = stream.write_all(put("vm.create", &blank(MAX_BODY + 1)).as_bytes());
    assert!(response(&mut stream).ends_with(&too_large));

    let chunked = "PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(s.exchange(&format!("{chunked}2\r\n{{}}\r\n0\r\n\r\n")).starts_with("HTTP/1.1 204 \r\n"));
    let mut stream = s.connect();
    let body = blank(MAX_BODY + 1);
    let _ = stream.write_all(format!("{chunked}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes());
    assert!(response(&mut stream).ends_with(&too_large));
}

#[test]
fn wrong_paths_methods_and_bodies_are_refused() {
    let s = start();
    let bad = r#"["Bad Request"]"#;
    for (request, status, body) in [
        (get("vm.nothing"), 404, r#"["Not Found"]"#),
        ("GET / HTTP/1.1\r\n\r\n".into(), 404, r#"["Not Found"]"#),
        ("GET /api/v1 HTTP/1.1\r\n\r\n".into(), 404, r#"["Not Found"]"#),
        ("GET /api/v2/vmm.ping HTTP/1.1\r\n\r\n".into(), 404, r#"["Not Found"]"#),
        (get("vm.boot"), 400, bad),
        (put("vmm.ping", ""), 400, bad),
        ("PATCH /api/v1/vm.boot HTTP/1.1\r\n\r\n".into(), 400, bad),
        ("POST /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}".into(), 400, bad),
        ("GET /api/v1/vm.metadata HTTP/1.1\r\n\r\n".into(), 200, "{}"),
        (put("vm.metadata", r#"{"a": 1}"#), 200, r#"{"a":1}"#),
        ("DELETE /api/v1/vm.metadata HTTP/1.1\r\n\r\n".into(), 400, bad),
        (put("vm.boot", "{}"), 400, r#"["Bad Request","This request takes no body"]"#),
        (put("vm.create", ""), 400, r#"["Bad Request","This request needs a body"]"#),
        (
            "PUT /api/v1/vm.create HTTP/1.1\r\n\r\n".into(),
            400,
            r#"["Bad Request","This request needs a body"]"#,
        ),
        (put("vm.coredump", "{}"), 501, r#"["Error from API","vm.coredump is not supported yet"]"#),
    ] {
        assert_eq!(s.exchange(&request), with_body(status, body), "{request}");
    }
    let patch = s.exchange("PATCH /api/v1/vm.metadata HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}");
    assert!(patch.starts_with("HTTP/1.1 204 \r\n"), "{patch}");
    let json = s.exchange(&put("vm.create", "{\"cpus\":"));
    assert!(json.starts_with("HTTP/1.1 400 \r\n"), "{json}");
    assert!(json.contains(r#"["Failed to deserialize JSON","EOF while parsing"#), "{json}");
    assert!(s.exchange(&put("vm.create", "{\"of_tomorrow\":{\"a\":[1]}}")).starts_with("HTTP/1.1 204 "));
    // Deeply nested JSON is refused, and does not end the thread.
    assert!(s.exchange(&put("vm.create", &"[".repeat(1 << 20))).starts_with("HTTP/1.1 400 \r\n"));
    assert!(
        s.exchange(&put("vm.create", &("{\"numa\":".to_owned() + &"[".repeat(1 << 20))))
            .starts_with("HTTP/1.1 400 \r\n")
    );
}

#[test]
fn what_is_no_http_is_refused_without_a_reason_phrase_and_hung_up_on() {
    let s = start();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    for garbage in [
        "NONSENSE\r\n\r\n",
        "\0\u{1}\u{2}\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        &long,
        &many,
    ] {
        let mut stream = s.connect();
        // The server may hang up before it has read all.
        let _ = stream.write_all(garbage.as_bytes());
        let answer = response(&mut stream);
        let start: String = garbage.chars().take(40).collect();
        assert!(answer.starts_with("HTTP/1.1 400 \r\nServer: Cloud Hypervisor API\r\n"), "{start}: {answer}");
        assert!(
            answer.ends_with(
                "{ \"error\": \"Malformed request\\nAll previous unanswered requests will be dropped.\" }"
            ),
            "{start}: {answer}"
        );
        assert!(is_closed(&mut stream), "{start}");
    }
    // Also on a connection that was answered before.
    let mut stream = s.connect();
    stream.write_all(get("vmm.ping").as_bytes()).unwrap();
    response(&mut stream);
    stream.write_all(b"NONSENSE\r\n\r\n").unwrap();
    assert!(response(&mut stream).ends_with("dropped.\" }"));
}

#[test]
fn the_eleventh_connection_is_sent_away_until_another_ends() {
    let s = start();
    let mut idle: Vec<UnixStream> = (0..MAX_CONNECTIONS).map(|_| s.connect()).collect();
    // All are admitted once the last one is.
    idle[MAX_CONNECTIONS - 1].write_all(get("vmm.ping").as_bytes()).unwrap();
    response(&mut idle[MAX_CONNECTIONS - 1]);
    let mut eleventh = s.connect();
    let answer = response(&mut eleventh);
    assert!(
        answer.starts_with("HTTP/1.1 503 \r\n") && answer.ends_with("[\"Too many open connections\"]"),
        "{answer}"
    );
    assert!(is_closed(&mut eleventh));
    idle.pop();
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let mut stream = s.connect();
        // The place may not be free yet, in which case this connection is closed by now.
        let _ = stream.write_all(get("vmm.ping").as_bytes());
        if response(&mut stream).starts_with("HTTP/1.1 200 \r\n") {
            break;
        }
        assert!(Instant::now() < limit, "the place was not given back");
    }
}

#[test]
fn who_begins_a_request_must_end_it_in_time_but_who_is_idle_may_stay() {
    let s = start();
    let mut idle = s.connect();
    idle.write_all(get("vmm.ping").as_bytes()).unwrap();
    response(&mut idle);
    for beginning in ["GET /api", "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"] {
        let mut slow = s.connect();
        slow.write_all(beginning.as_bytes()).unwrap();
        let begun = Instant::now();
        assert!(is_closed(&mut slow));
        assert!(begun.elapsed() >= PATIENCE / 2, "{:?}", begun.elapsed());
    }
    // Asks for more than a socket holds, and does not read it.
    let mut deaf = s.connect();
    deaf.write_all(get("vm.counters").as_bytes()).unwrap();
    // With nothing asked for it is only told that the other side has gone.
    assert_ne!(device::ready(deaf.as_raw_fd(), 0, Duration::from_secs(60)).unwrap() & libc::POLLHUP, 0);
    let mut text = Vec::new();
    deaf.read_to_end(&mut text).unwrap();
    assert!(text.len() < 1 << 20, "{}", text.len());

    idle.write_all(get("vmm.ping").as_bytes()).unwrap();
    assert!(response(&mut idle).starts_with("HTTP/1.1 200 \r\n"));
}

#[test]
fn descriptors_that_come_with_a_request_are_closed_on_every_route() {
    let s = start();
    let mut requests: Vec<String> = vec!["NONSENSE\r\n\r\n".into(), "GET / HTTP/1.1\r\n\r\n".into()];
    for route in routes() {
        requests.push(get(&route.path));
        requests.push(put(&route.path, "{\"net\":[{\"fds\":[3,4]}]}"));
    }
    for name in crate::action::UNSUPPORTED {
        requests.push(put(name, "{}"));
    }
    for request in requests {
        let mut stream = s.connect();
        let (mine, theirs) = UnixStream::pair().unwrap();
        // The same descriptor several times, as a client that means harm might.
        let fds = [theirs.as_raw_fd(), theirs.as_raw_fd(), theirs.as_raw_fd()];
        stream.send_with_fds(&[request.as_bytes()], &fds).unwrap();
        drop(theirs);
        response(&mut stream);
        // All copies of the other end are closed: nothing is left to wait for.
        mine.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut byte = [0];
        assert_eq!((&mine).read(&mut byte).unwrap_or_else(|e| panic!("{request}: {e}")), 0, "{request}");
    }
    // A message of nothing but descriptors, and a beginning that is never ended.
    let stream = s.connect();
    let (mine, theirs) = UnixStream::pair().unwrap();
    stream.send_with_fd(&b"G"[..], theirs.as_raw_fd()).unwrap();
    drop(theirs);
    mine.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!((&mine).read(&mut [0]).unwrap(), 0);
}

#[test]
fn descriptors_reach_the_device_that_they_come_with() {
    let s = start();
    let mut stream = s.connect();
    let (_mine, theirs) = UnixStream::pair().unwrap();
    // In two pieces, the second with the body; and of the number in the body nothing is believed.
    let request = put("vm.add-net", "{\"fds\":[0],\"num_queues\":4}");
    let (head, tail) = request.split_at(20);
    for part in [head, tail] {
        stream.send_with_fd(part.as_bytes(), theirs.as_raw_fd()).unwrap();
    }
    let text = response(&mut stream);
    assert!(text.starts_with("HTTP/1.1 200 \r\n"), "{text}");
    let fds = text.split("received: [").nth(1).unwrap().split(']').next().unwrap();
    assert_eq!(fds.matches("OwnedFd").count(), 2, "{text}");
    assert!(text.contains("inherited: []"), "{text}");
    // The next request on the connection has none of them.
    stream.write_all(put("vm.add-net", "{}").as_bytes()).unwrap();
    assert!(response(&mut stream).contains("received: []"));
    // More than a request may have.
    let mut flood = s.connect();
    for part in [head, tail] {
        flood.send_with_fds(&[part.as_bytes()], &[theirs.as_raw_fd(); 200]).unwrap();
    }
    let text = response(&mut flood);
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("More than 253 descriptors"), "{text}");
}

#[test]
fn a_wait_that_is_over_has_a_status_of_its_own() {
    let s = start();
    let mut stream = s.connect();
    for (body, status, text) in [
        ("{\"id\":\"d\",\"until\":\"ready\"}", "504", "[\"d\",\"10000 ms\"]"),
        ("{\"id\":\"d\",\"until\":\"removed\",\"timeout_ms\":5}", "504", "[\"d\",\"5 ms\"]"),
        ("{\"id\":\"d\",\"until\":\"never\"}", "400", "unknown variant `never`"),
        ("{\"id\":\"d\"}", "400", "missing field `until`"),
    ] {
        stream.write_all(put("vm.wait-device", body).as_bytes()).unwrap();
        let answer = response(&mut stream);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text), "{answer}");
    }
}

#[test]
fn an_answer_is_sent_before_the_server_is_finished_with() {
    let s = start();
    s.server.finish(Duration::from_secs(10));
    let mut stream = s.connect();
    stream.write_all(put("vmm.shutdown", "").as_bytes()).unwrap();
    assert!(response(&mut stream).starts_with("HTTP/1.1 200 \r\n"));
    let begun = Instant::now();
    s.server.finish(Duration::from_secs(10));
    // A deaf client does not hold the end up.
    let mut deaf = s.connect();
    deaf.write_all(get("vm.counters").as_bytes()).unwrap();
    deaf.read_exact(&mut [0]).unwrap();
    s.server.finish(Duration::from_millis(20));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

fn route(command: &str) -> &'static Route {
    routes().find(|r| r.command == command).unwrap()
}

#[test]
fn our_client_understands_our_server() {
    let s = start();
    let ask =
        |command, body: Option<&str>| client::ask(&s.socket(), route(command), body.map(str::to_owned), &[]);
    assert_eq!(ask("ping", None).unwrap(), "{\"version\":\"1\"}");
    assert_eq!(ask("counters", None).unwrap().len(), (1 << 20) + 2);
    assert_eq!(ask("create", Some("{}")).unwrap(), "");
    assert_eq!(ask("shutdown-vmm", None).unwrap(), "");
    match ask("info", None) {
        Err(e @ ClientError::Refused { .. }) => assert_eq!(e.to_string(), "Server responded with NotFound"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn our_client_tells_what_is_wrong_with_a_server() {
    let directory = std::env::temp_dir().join(format!("virga-client-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("s");
    let ask = || client::ask(&path, route("ping"), None, &[]).unwrap_err();
    assert!(matches!(ask(), ClientError::Connect { .. }));
    let listener = UnixListener::bind(&path).unwrap();
    for said in ["", "HTTP/1.1 20", "nonsense\r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\nx"] {
        let accepting = listener.try_clone().unwrap();
        let speak = move || {
            let (mut stream, _) = accepting.accept().unwrap();
            // Some of the request will do.
            assert_ne!(stream.read(&mut [0; 512]).unwrap(), 0);
            stream.write_all(said.as_bytes()).unwrap();
        };
        let server = std::thread::Builder::new().name("speaker".into()).spawn(speak).unwrap();
        let e = ask();
        assert!(matches!(e, ClientError::Http(_) | ClientError::Talk(_)), "{said}: {e:?}");
        server.join().unwrap();
    }
    // One that would have all of our memory.
    let accepting = listener.try_clone().unwrap();
    let speak = move || {
        let (mut stream, _) = accepting.accept().unwrap();
        stream.write_all(b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let piece = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
        // It is not listened to for longer than necessary.
        (0u64..).take_while(|_| stream.write_all(&piece).is_ok()).count()
    };
    let server = std::thread::Builder::new().name("speaker".into()).spawn(speak).unwrap();
    assert!(matches!(ask(), ClientError::TooLong));
    let pieces = server.join().unwrap();
    assert!(pieces * 0x10000 < 2 * client::MAX_ANSWER, "{pieces}");
    drop(listener);
    assert!(matches!(ask(), ClientError::Connect { .. }));
    std::fs::remove_dir_all(&directory).unwrap();
}
