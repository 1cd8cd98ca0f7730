//! Asking a VMM over its API socket, by HTTP written by hand: what a program that shares no code with the server would send.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take: large machines are saved meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);

/// Sends these bytes and reads one answer: its status and body; `None` if nobody listens or the connection ends without.
pub fn exchange(socket: &Path, request: &[u8]) -> Option<(u16, String)> {
    exchange_with(socket, request, &[])
}

/// As [`exchange`], with descriptors beside the first bytes.
///
/// # Panics
/// More than 16 descriptors.
pub fn exchange_with(socket: &Path, request: &[u8], descriptors: &[RawFd]) -> Option<(u16, String)> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let sent = if descriptors.is_empty() { 0 } else { send(&stream, request, descriptors) };
    exchange_on(&mut stream, &request[sent..])
}

/// The same on a connection that there is, as long as its own time limit lets it take; it can be used again.
pub fn exchange_on(stream: &mut UnixStream, request: &[u8]) -> Option<(u16, String)> {
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
            // A wait with an end is interrupted by whatever stops the process for a moment (signal(7)).
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
}

/// Sends bytes and, beside them, descriptors (unix(7), SCM_RIGHTS); how many bytes went.
fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) -> usize {
    const MOST: usize = 16;
    assert!(descriptors.len() <= MOST, "at most {MOST} descriptors");
    let length = size_of_val(descriptors) as u32;
    // Room for a header and the descriptors, aligned as a header must be.
    let mut control = [0_u64; 16];
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes are a valid message; the header lies within `control`, which has room for it and `MOST` descriptors; the kernel only
    // reads what the message names, all of which lives during the call.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut vector, 1);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(length) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        std::ptr::copy_nonoverlapping(
            descriptors.as_ptr(),
            libc::CMSG_DATA(header).cast(),
            descriptors.len(),
        );
        libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).unwrap_or(0)
}

/// Asks for `name`, with a body unless it is empty; as [`exchange`].
pub fn ask(socket: &Path, verb: &str, name: &str, body: &[u8]) -> Option<(u16, String)> {
    exchange(socket, &request(verb, name, body))
}

/// The bytes that ask for `name`, with a body unless it is empty.
pub fn request(verb: &str, name: &str, body: &[u8]) -> Vec<u8> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{verb} /api/v1/{name} HTTP/1.1\r\n{length}\r\n");
    [head.as_bytes(), body].concat()
}
