//! The client: one request over one connection.

use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use thiserror::Error;

use super::io::{Client, Io, Patience};
use crate::action::{ROOT, Route};

/// Why a question has no good answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("Cannot connect to API socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or stayed silent.
    #[error("Cannot talk to the server")]
    Talk(#[source] io::Error),
    /// What came back is no HTTP.
    #[error("Cannot understand the server")]
    Http(#[from] hyper::Error),
    /// The answer has no end, or none that is sensible.
    #[error("The server's answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    /// The server refused.
    #[error("Server responded with {}", status_name(*.status))]
    Refused {
        /// Status.
        status: StatusCode,
        /// Body: a JSON list of messages.
        body: String,
    },
}

/// `BadRequest` for 400, and so on.
fn status_name(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or("Unknown").replace(' ', "")
}

/// Longest wait for the server to say something; booting a large machine takes its time.
const PATIENCE: Duration = Duration::from_secs(600);

/// Most bytes that are taken for an answer.
pub const MAX_ANSWER: usize = 16 << 20;

/// Asks, and returns the body of the answer; control characters in it, which proper JSON has none of but line breaks, are escaped. Descriptors go along with the request; they stay the caller's.
///
/// # Errors
/// See [`ClientError`].
pub fn ask(
    socket: &Path,
    route: &Route,
    body: Option<String>,
    descriptors: &[RawFd],
) -> Result<String, ClientError> {
    let stream = UnixStream::connect(socket)
        .map_err(|source| ClientError::Connect { path: socket.to_owned(), source })?;
    let (io, driver) =
        Io::new(stream, Client(RefCell::new(descriptors.to_vec()))).map_err(ClientError::Talk)?;
    let request = Request::builder()
        .method(route.verb.name())
        .uri(format!("{ROOT}{}", route.path))
        .header("Host", "localhost")
        .header("Accept", "*/*");
    let request = match body {
        Some(body) => request.header("Content-Type", "application/json").body(Full::new(Bytes::from(body))),
        None => request.body(Full::new(Bytes::new())),
    }
    .map_err(|e| ClientError::Talk(io::Error::other(e)))?;

    let exchange = async {
        let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(io).await?;
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body =
                body.map_err(|e| e.downcast().map_or(ClientError::TooLong, |e| ClientError::Http(*e)))?;
            Ok::<_, ClientError>((status, body.to_bytes()))
        });
        // One thread drives both ends of the exchange; the connection only moves bytes.
        let mut moving = true;
        std::future::poll_fn(|context| {
            if moving && connection.as_mut().poll(context).is_ready() {
                moving = false;
            }
            let answer = answer.as_mut().poll(context);
            if answer.is_pending() && moving && connection.as_mut().poll(context).is_ready() {
                moving = false;
                context.waker().wake_by_ref();
            }
            answer
        })
        .await
    };
    let (status, body) = driver.run(exchange, Patience::Silence(PATIENCE)).map_err(ClientError::Talk)??;
    let body = spec::plain(&String::from_utf8_lossy(&body));
    if status.is_success() { Ok(body) } else { Err(ClientError::Refused { status, body }) }
}
