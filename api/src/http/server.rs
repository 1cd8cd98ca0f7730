//! The server: parses requests, asks the control thread, and writes answers as existing clients expect them.
//!
//! Among them are clients that take everything between `HTTP/1.1 ` and the end of the line for the status, so no reason phrase is
//! sent, and clients that look for `Content-Length: ` in exactly these letters.
//!
//! Its threads follow a process that is kept to paths ([`Follower`]) before they do anything more; one that cannot refuses what it is asked.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::error::Error as _;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use catalog::{RestoreRequest, hot};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, SERVER};
use hyper::{Method, Request, Response, StatusCode, Version, server::conn::http1, service::service_fn};
use sandbox::paths::Follower;
use spec::{Kind, Refusal};

use super::descriptors::{MAX_DESCRIPTORS, Received};
use super::io::{Io, Patience, Side};
use super::syscalls;
use crate::action::{Action, Body, ROOT, UNSUPPORTED, routes};
use crate::{Caller, Reply};

/// Connections served at a time; the next one is told to come back.
pub const MAX_CONNECTIONS: usize = 10;
/// Largest body in bytes.
pub const MAX_BODY: usize = 4 << 20;

/// Longest time that a request may take to arrive once it began, and an answer to be read.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest head (request line and headers) in bytes.
const MAX_HEAD: usize = 64 << 10;
/// Parsing a JSON body nests no deeper than serde_json's limit of 128; this is ample.
const STACK: usize = 512 << 10;

/// A running server. It serves until the process ends.
pub struct Server(Arc<Unsent>);

impl Server {
    /// Starts a thread that accepts connections; `follower` is that of the calling thread.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start(listener: UnixListener, caller: Caller, follower: Follower) -> io::Result<Self> {
        Server::start_with(listener, caller, follower, PATIENCE)
    }

    pub(super) fn start_with(
        listener: UnixListener,
        caller: Caller,
        mut follower: Follower,
        patience: Duration,
    ) -> io::Result<Self> {
        let server = Server(Arc::default());
        let shared =
            Arc::new(Shared { caller, patience, open: AtomicUsize::new(0), unsent: server.0.clone() });
        let accept = move || {
            if let Err(e) = syscalls::SERVER.enter() {
                return log::error!("the API is not served: {e}: {:?}", e.source());
            }
            // Told once, and again after one was accepted: it may last.
            let mut told = false;
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => {
                        told = false;
                        // If it cannot, the log says so, and the connection's own thread tries again and tells whoever asks.
                        let _ = follow(&mut follower);
                        admit(stream, &shared, follower.clone());
                    }
                    Err(e) => {
                        if !std::mem::replace(&mut told, true) {
                            log::warn!("API: cannot accept a connection: {e}");
                        }
                        // Out of descriptors, most likely; trying again at once would only burn a CPU.
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        };
        std::thread::Builder::new().name("http-server".into()).stack_size(STACK).spawn(accept)?;
        Ok(server)
    }

    /// Waits until every answer that was given is sent, so that the process can end: the last one is that to `vmm.shutdown`.
    /// A client that does not read its answer is waited for no longer than `limit`.
    pub fn finish(&self, limit: Duration) {
        self.0.wait(limit);
    }
}

/// Requests under way: asked, and not yet answered or the answer not yet sent.
#[derive(Default)]
struct Unsent {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Unsent {
    fn add(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn remove(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.changed.notify_all();
    }

    fn wait(&self, limit: Duration) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(count, limit, |count| *count > 0));
    }
}

/// What connections share.
struct Shared {
    caller: Caller,
    patience: Duration,
    open: AtomicUsize,
    unsent: Arc<Unsent>,
}

/// A place among the connections, given back when dropped.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Keeps the calling thread to what the process is kept to by now.
fn follow(follower: &mut Follower) -> Result<(), Refusal> {
    let refused = |e| Refusal::host("Cannot confine a thread of the API by Landlock", e);
    follower.follow().map_err(refused).inspect_err(|e| log::error!("API: {}", e.chain().join(": ")))
}

fn admit(stream: UnixStream, shared: &Arc<Shared>, follower: Follower) {
    let place = Place(shared.clone());
    if shared.open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
        return turn_away(stream, "Too many open connections");
    }
    // Whoever serves it takes it.
    let offered = Arc::new(Mutex::new(Some(stream)));
    let taken = move || offered.lock().unwrap_or_else(PoisonError::into_inner).take();
    let take = taken.clone();
    let serve = move || {
        let Some(stream) = take() else { return };
        // Of this no client is the cause, and none gets an answer.
        if let Err(e) = syscalls::CONNECTION.enter() {
            return log::warn!("API: a connection is not served: {e}: {:?}", e.source());
        }
        if let Err(e) = serve(stream, &place.0, follower) {
            log::debug!("API: connection ended: {e}");
        }
    };
    let thread = std::thread::Builder::new().name("http-connection".into()).stack_size(STACK);
    if let Err(e) = thread.spawn(serve) {
        log::warn!("API: cannot start a thread for a connection: {e}");
        if let Some(stream) = taken() {
            turn_away(stream, "The host has no thread for another connection");
        }
    }
}

/// Answers a connection that finds no place. There is room for so little in a new socket.
fn turn_away(mut stream: UnixStream, why: &str) {
    let body = format!("[\"{why}\"]");
    let answer = format!(
        "HTTP/1.1 503 \r\nServer: Cloud Hypervisor API\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    if let Err(e) = stream.write_all(answer.as_bytes()) {
        log::debug!("API: {e}");
    }
}

/// To what is no HTTP, in the form that clients know.
const MALFORMED: &str = "HTTP/1.1 400 \r\nServer: Cloud Hypervisor API\r\nConnection: close\r\nContent-Type: application/json\r\n\
                         Content-Length: 83\r\n\r\n\
                         { \"error\": \"Malformed request\\nAll previous unanswered requests will be dropped.\" }";

/// The server's side of one connection.
struct Connection {
    shared: Arc<Shared>,
    asked: Rc<Cell<bool>>,
    received: Rc<RefCell<Received>>,
}

impl Side for Connection {
    fn descriptors(&self) -> Option<&RefCell<Received>> {
        Some(&self.received)
    }

    fn instead_of(&self, bytes: &[u8], answered: bool) -> Option<&'static str> {
        // hyper refuses what it cannot parse by itself, and with a reason phrase, on which old clients choke.
        (!answered && !bytes.starts_with(b"HTTP/1.1 100 ")).then_some(MALFORMED)
    }

    fn answer_sent(&self) {
        if self.asked.replace(false) {
            self.shared.unsent.remove();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.answer_sent();
    }
}

fn serve(stream: UnixStream, shared: &Arc<Shared>, follower: Follower) -> io::Result<()> {
    let asked = Rc::new(Cell::new(false));
    let received = Rc::new(RefCell::new(Received::default()));
    let side = Connection { shared: shared.clone(), asked: asked.clone(), received: received.clone() };
    let (io, driver) = Io::new(stream, side)?;
    let follower = RefCell::new(follower);
    let follow = || follow(&mut follower.borrow_mut());
    let ask = |action| {
        shared.unsent.add();
        asked.set(true);
        let reply = shared.caller.ask(action);
        // It may have been what the process is kept to from now on.
        follow().and(reply)
    };
    let service = service_fn(async |request: Request<Incoming>| {
        let close = wants_close(&request);
        let mut response = match follow() {
            Ok(()) => answer(request, &received, &ask).await,
            Err(refusal) => refused(&refusal),
        };
        let connection = HeaderValue::from_static(if close { "close" } else { "keep-alive" });
        response.headers_mut().insert(CONNECTION, connection);
        driver.turn().answer();
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new()
        .title_case_headers(true)
        .auto_date_header(false)
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, service);
    driver.run(connection, Patience::Turn(shared.patience))?.map_err(io::Error::other)
}

/// Whether the client wants no second request: it says so, or speaks HTTP/1.0 and does not say otherwise.
fn wants_close<B>(request: &Request<B>) -> bool {
    let says = |word: &str| {
        let values = request.headers().get_all(CONNECTION).into_iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(word))
    };
    says("close") || request.version() == Version::HTTP_10 && !says("keep-alive")
}

async fn answer(
    request: Request<Incoming>,
    received: &RefCell<Received>,
    ask: &impl Fn(Action) -> Result<Reply, Refusal>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let too_large = || {
        let text = format!("The body is larger than {MAX_BODY} bytes");
        messages(StatusCode::BAD_REQUEST, &["Bad Request", &text])
    };
    // A client that waits for "100 Continue" learns at once that it need not send it.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return too_large();
    }
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) if e.is::<LengthLimitError>() => return too_large(),
        Err(e) => {
            return messages(
                StatusCode::BAD_REQUEST,
                &["Bad Request", &format!("Cannot read the body: {e}")],
            );
        }
    };
    // Whatever is not taken below is closed: a request has no use for what its route does not know.
    let Ok(descriptors) = received.take().take() else {
        let text = format!("More than {MAX_DESCRIPTORS} descriptors came with the request");
        return messages(StatusCode::BAD_REQUEST, &["Bad Request", &text]);
    };
    let action = match route(&head.method, head.uri.path(), &body, descriptors) {
        Ok(action) => action,
        Err(response) => return *response,
    };
    log::debug!("API: {} {}", head.method, head.uri.path());
    match ask(action) {
        Ok(Reply::Done) => respond(StatusCode::NO_CONTENT, None),
        Ok(Reply::Empty) => respond(StatusCode::OK, Some(String::new())),
        Ok(Reply::Json(text)) => respond(StatusCode::OK, Some(text)),
        Err(refusal) => {
            log::warn!("API: {} refused: {}", head.uri.path(), refusal.chain().join(": "));
            refused(&refusal)
        }
    }
}

/// Finds what is asked; an error is already an answer.
fn route(
    method: &Method,
    path: &str,
    body: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<Action, Box<Response<Full<Bytes>>>> {
    let refusal = |status, texts: &[&str]| Box::new(messages(status, texts));
    let refuse = |status, texts: &[&str]| Err(refusal(status, texts));
    let malformed = |e: serde_json::Error| {
        refusal(StatusCode::BAD_REQUEST, &["Failed to deserialize JSON", &spec::bounded(e.to_string())])
    };
    let unfit = |e: Refusal| Box::new(refused(&e));
    let Some(name) = path.strip_prefix(ROOT) else {
        return refuse(StatusCode::NOT_FOUND, &["Not Found"]);
    };
    if UNSUPPORTED.contains(&name) {
        return refuse(
            StatusCode::NOT_IMPLEMENTED,
            &["Error from API", &format!("{name} is not supported yet")],
        );
    }
    let mut named = routes().filter(|r| r.path == name).peekable();
    if named.peek().is_none() {
        return refuse(StatusCode::NOT_FOUND, &["Not Found"]);
    }
    let Some(route) = named.find(|r| r.verb.name() == method.as_str()) else {
        return refuse(StatusCode::BAD_REQUEST, &["Bad Request"]);
    };
    match route.body {
        Body::Ignored(make) => Ok(make()),
        Body::None(make) if body.is_empty() => Ok(make()),
        Body::None(_) => refuse(StatusCode::BAD_REQUEST, &["Bad Request", "This request takes no body"]),
        Body::Json(..) | Body::Device(_) | Body::Restore if body.is_empty() => {
            refuse(StatusCode::BAD_REQUEST, &["Bad Request", "This request needs a body"])
        }
        Body::Json(parse, _) => parse(body).map_err(malformed),
        Body::Device(hot) => {
            let mut device = (hot.from_json)(body).map_err(malformed)?;
            if !descriptors.is_empty() {
                device.adopt(descriptors).map_err(unfit)?;
            }
            Ok(Action::VmAdd(device))
        }
        Body::Restore => {
            let mut request: RestoreRequest = hot::object(body).map_err(malformed)?;
            request.adopt(descriptors).map_err(unfit)?;
            Ok(Action::VmRestore(Box::new(request)))
        }
    }
}

fn status(refusal: &Refusal) -> StatusCode {
    match refusal.kind() {
        Kind::Invalid | Kind::Unsupported => StatusCode::BAD_REQUEST,
        Kind::Absent => StatusCode::NOT_FOUND,
        Kind::State => StatusCode::METHOD_NOT_ALLOWED,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Busy => StatusCode::TOO_MANY_REQUESTS,
        Kind::Late => StatusCode::GATEWAY_TIMEOUT,
        Kind::Host | Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A refusal, as it is told.
fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    messages(status(refusal), &refusal.chain().iter().map(String::as_str).collect::<Vec<_>>())
}

/// An error: a JSON list of texts, outermost first.
fn messages(status: StatusCode, texts: &[&str]) -> Response<Full<Bytes>> {
    // A list of texts always has a JSON form.
    respond(status, Some(serde_json::to_string(texts).unwrap_or_default()))
}

fn respond(status: StatusCode, body: Option<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    response.extensions_mut().insert(ReasonPhrase::from_static(b""));
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("Cloud Hypervisor API"));
    headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    if let Some(body) = body {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.body_mut() = Full::new(Bytes::from(body));
    }
    response
}
