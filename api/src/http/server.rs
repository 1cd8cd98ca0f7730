//! The server: parses requests, asks the control thread, and writes answers as existing clients expect them.
//!
//! Among them are clients that take everything between `HTTP/1.1 ` and the end of the line for the status, so no reason phrase is
//! sent, and clients that look for `Content-Length: ` in exactly these letters.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, SERVER};
use hyper::{Method, Request, Response, StatusCode, server::conn::http1, service::service_fn};
use spec::{Kind, Refusal};

use super::io::Io;
use crate::action::{Action, Body, ROOT, ROUTES, UNSUPPORTED, Verb};
use crate::{Caller, Reply};

/// Connections served at a time; the next one is told to come back.
pub const MAX_CONNECTIONS: usize = 10;
/// Largest body in bytes.
pub const MAX_BODY: usize = 4 << 20;

/// Starts a thread that accepts connections until the process ends.
///
/// # Errors
/// No thread could be had.
pub fn start(listener: UnixListener, caller: Caller) -> io::Result<()> {
    let accept = move || {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => admit(stream, &caller, &open),
                Err(e) => {
                    log::warn!("API: cannot accept a connection: {e}");
                    // Out of descriptors, most likely; trying again at once would only burn a CPU.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    };
    std::thread::Builder::new().name("http-server".into()).stack_size(STACK).spawn(accept).map(drop)
}

/// Parsing a JSON body nests no deeper than serde_json's limit of 128; this is ample.
const STACK: usize = 512 << 10;

/// A place among the connections, given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn admit(mut stream: UnixStream, caller: &Caller, open: &Arc<AtomicUsize>) {
    let place = Place(open.clone());
    if open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
        let text = "Too many open connections";
        let answer = format!("HTTP/1.1 503 \r\nContent-Length: {}\r\n\r\n{text}", text.len());
        if let Err(e) = stream.write_all(answer.as_bytes()) {
            log::debug!("API: {e}");
        }
        return;
    }
    let caller = caller.clone();
    let serve = move || {
        let _place = place;
        if let Err(e) = serve(stream, &caller) {
            log::debug!("API: connection ended: {e}");
        }
    };
    let thread = std::thread::Builder::new().name("http-connection".into()).stack_size(STACK);
    if let Err(e) = thread.spawn(serve) {
        log::warn!("API: cannot start a thread for a connection: {e}");
    }
}

fn serve(stream: UnixStream, caller: &Caller) -> io::Result<()> {
    let (io, driver) = Io::new(stream)?;
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request, caller).await) });
    let connection = http1::Builder::new()
        .title_case_headers(true)
        .auto_date_header(false)
        .half_close(true)
        .serve_connection(io, service);
    driver.run(connection, None)?.map_err(io::Error::other)
}

async fn answer(request: Request<Incoming>, caller: &Caller) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) => {
            let text = format!("cannot read the body (at most {MAX_BODY} bytes): {e}");
            return messages(StatusCode::BAD_REQUEST, &["Bad Request", &text]);
        }
    };
    let action = match route(&head.method, head.uri.path(), &body) {
        Ok(action) => action,
        Err(response) => return *response,
    };
    log::debug!("API: {} {}", head.method, head.uri.path());
    match caller.ask(action) {
        Ok(Reply::Done) => respond(StatusCode::NO_CONTENT, None),
        Ok(Reply::Empty) => respond(StatusCode::OK, Some(String::new())),
        Ok(Reply::Json(text)) => respond(StatusCode::OK, Some(text)),
        Err(refusal) => {
            log::warn!("API: {} refused: {}", head.uri.path(), refusal.chain().join(": "));
            let chain = refusal.chain();
            messages(status(&refusal), &chain.iter().map(String::as_str).collect::<Vec<_>>())
        }
    }
}

/// Finds what is asked; an error is already an answer.
fn route(method: &Method, path: &str, body: &[u8]) -> Result<Action, Box<Response<Full<Bytes>>>> {
    let refuse = |status, texts: &[&str]| Err(Box::new(messages(status, texts)));
    let Some(name) = path.strip_prefix(ROOT) else {
        return refuse(StatusCode::NOT_FOUND, &["Not Found"]);
    };
    if UNSUPPORTED.contains(&name) {
        return refuse(
            StatusCode::NOT_IMPLEMENTED,
            &["Error from API", &format!("{name} is not supported yet")],
        );
    }
    let Some(route) = ROUTES.iter().find(|r| r.path == name) else {
        return refuse(StatusCode::NOT_FOUND, &["Not Found"]);
    };
    let verb = if *method == Method::GET {
        Verb::Get
    } else if *method == Method::PUT {
        Verb::Put
    } else {
        return refuse(StatusCode::BAD_REQUEST, &["Bad Request"]);
    };
    if verb != route.verb {
        return refuse(StatusCode::BAD_REQUEST, &["Bad Request"]);
    }
    match route.body {
        Body::Ignored(make) => Ok(make()),
        Body::None(make) if body.is_empty() => Ok(make()),
        Body::None(_) => refuse(StatusCode::BAD_REQUEST, &["Bad Request", "this request takes no body"]),
        Body::Json(_) if body.is_empty() => {
            refuse(StatusCode::BAD_REQUEST, &["Bad Request", "this request needs a body"])
        }
        Body::Json(parse) => parse(body)
            .or_else(|e| refuse(StatusCode::BAD_REQUEST, &["Failed to deserialize JSON", &e.to_string()])),
    }
}

fn status(refusal: &Refusal) -> StatusCode {
    match refusal.kind() {
        Kind::Invalid | Kind::Unsupported => StatusCode::BAD_REQUEST,
        Kind::Absent => StatusCode::NOT_FOUND,
        Kind::State => StatusCode::METHOD_NOT_ALLOWED,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Busy => StatusCode::TOO_MANY_REQUESTS,
        Kind::Host | Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    }
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
