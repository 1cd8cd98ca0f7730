//! One request and its answer (RFC 9112), in the way of EC2's service: a part of the document by `GET`, a token by `PUT`.
//!
//! A connection carries one request. Bodies are not read.

use std::time::Instant;

use crate::token::Tokens;
use crate::{Store, TokenUse};

/// Most bytes of a request line and its headers.
pub const MAX_HEAD: usize = 4096;
/// Most headers.
pub const MAX_HEADERS: usize = 32;

/// Where tokens are given out.
const TOKEN_PATH: &str = "/latest/api/token";
/// Headers by which a client shows its token: EC2's, and one that is nobody's.
const TOKEN: [&str; 2] = ["X-aws-ec2-metadata-token", "X-metadata-token"];
/// Headers by which it says how long a new one is to live, in seconds.
const TTL: [&str; 2] = ["X-aws-ec2-metadata-token-ttl-seconds", "X-metadata-token-ttl-seconds"];
/// What a request that came through somebody else has.
const FORWARDED: &str = "X-Forwarded-For";

/// What a client gets when it does not get what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// What came is no HTTP, or makes no sense.
    BadRequest,
    /// No token, or none that holds.
    Unauthorized,
    /// The request came through somebody else.
    Forbidden,
    /// The document has no such part.
    NotFound,
    /// Neither of the methods.
    MethodNotAllowed,
    /// More than [`MAX_HEAD`] or [`MAX_HEADERS`].
    HeadTooLarge,
    /// The host has no random numbers.
    Internal,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::BadRequest => "400 Bad Request",
            Status::Unauthorized => "401 Unauthorized",
            Status::Forbidden => "403 Forbidden",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::HeadTooLarge => "431 Request Header Fields Too Large",
            Status::Internal => "500 Internal Server Error",
        }
    }
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Part of the document.
    Part {
        /// Its path.
        path: String,
        /// As JSON.
        json: bool,
        /// The token shown.
        token: Option<Vec<u8>>,
    },
    /// A token for so many seconds.
    Token(u32),
}

impl Request {
    /// Reads what has come so far; `None` if more is to come.
    ///
    /// # Errors
    /// It is refused.
    pub fn parse(bytes: &[u8]) -> Option<Result<Request, Status>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let within = &bytes[..bytes.len().min(MAX_HEAD)];
        match request.parse(within) {
            Ok(httparse::Status::Complete(_)) => Some(understand(&request)),
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => None,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                Some(Err(Status::HeadTooLarge))
            }
            Err(_) => Some(Err(Status::BadRequest)),
        }
    }
}

fn understand(request: &httparse::Request<'_, '_>) -> Result<Request, Status> {
    let header = |names: &[&str]| {
        let mut headers = request.headers.iter();
        headers.find(|h| names.iter().any(|name| h.name.eq_ignore_ascii_case(name))).map(|h| h.value)
    };
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    // The target of a request to a proxy is a whole URL.
    if !path.starts_with('/') {
        return Err(Status::BadRequest);
    }
    let path = decoded(path).ok_or(Status::BadRequest)?;
    match request.method {
        Some("GET") => {
            let json = header(&["Accept"]).is_some_and(prefers_json);
            Ok(Request::Part { path, json, token: header(&TOKEN).map(<[u8]>::to_vec) })
        }
        Some("PUT") if path == TOKEN_PATH => {
            if header(&[FORWARDED]).is_some() {
                return Err(Status::Forbidden);
            }
            let seconds = header(&TTL).and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
            seconds.map(Request::Token).ok_or(Status::BadRequest)
        }
        _ => Err(Status::MethodNotAllowed),
    }
}

/// Whether JSON is among what a client accepts.
fn prefers_json(accept: &[u8]) -> bool {
    let kind = |part: &[u8]| part.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_vec();
    accept.split(|b| *b == b',').any(|part| kind(part).eq_ignore_ascii_case(b"application/json"))
}

/// A path without its `%xx` (RFC 3986 §2.1); `None` if it is none.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut out = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

/// The answer to a request, head and body: at most [`crate::document::MAX_DOCUMENT`] bytes and a head.
pub fn answer(request: Result<Request, Status>, store: &Store, tokens: &mut Tokens, now: Instant) -> Vec<u8> {
    match request.and_then(|request| good(request, store, tokens, now)) {
        Ok((kind, more, body)) => message("200 OK", kind, &more, &body),
        Err(status) => {
            let more = if status == Status::MethodNotAllowed { "Allow: GET, PUT\r\n" } else { "" };
            message(status.line(), "text/plain", more, status.line())
        }
    }
}

/// Type, further headers, body.
type Good = (&'static str, String, String);

fn good(request: Request, store: &Store, tokens: &mut Tokens, now: Instant) -> Result<Good, Status> {
    match request {
        Request::Token(seconds) => {
            let token = tokens.issue(seconds, now).map_err(|_| Status::Internal)?;
            let token = token.ok_or(Status::BadRequest)?;
            Ok(("text/plain", format!("{}: {seconds}\r\n", TTL[0]), token))
        }
        Request::Part { path, json, token } => {
            let allowed = match token {
                Some(token) => tokens.knows(&token, now),
                None => store.tokens() == TokenUse::Optional,
            };
            if !allowed {
                return Err(Status::Unauthorized);
            }
            let document = store.document();
            let found = document.find(&path).ok_or(Status::NotFound)?;
            let (kind, body) =
                if json { ("application/json", found.json()) } else { ("text/plain", found.text()) };
            Ok((kind, String::new(), body))
        }
    }
}

fn message(status: &str, kind: &str, more: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n");
    format!("{head}{more}Connection: close\r\n\r\n{body}").into_bytes()
}

#[cfg(test)]
mod tests;
