//! Asking a VMM over its API socket, by HTTP written by hand: what a program that shares no code with the server would send.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take: large machines are saved meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);

/// Sends these bytes and reads one answer: its status and body; `None` if nobody listens or the connection ends without.
pub fn exchange(socket: &Path, request: &[u8]) -> Option<(u16, String)> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    // The server may answer, and go, before it has read all.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let status = head.split(' ').nth(1)?.trim().parse().ok()?;
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return Some((status, body.to_owned()));
            }
        }
        match stream.read(&mut part) {
            Ok(len @ 1..) => answer.extend(&part[..len]),
            _ => return None,
        }
    }
}

/// Asks for `name`, with a body unless it is empty; as [`exchange`].
pub fn ask(socket: &Path, verb: &str, name: &str, body: &[u8]) -> Option<(u16, String)> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{verb} /api/v1/{name} HTTP/1.1\r\n{length}\r\n");
    exchange(socket, &[head.as_bytes(), body].concat())
}
