//! What a program of the host's says first: `CONNECT <port>` and a newline. What follows the newline is data for the guest and is left in
//! the socket.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Most bytes of the line, its end included.
pub const MAX_LINE: usize = 32;

/// What a program has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Not enough.
    Little,
    /// Which port it wants.
    Port(u32),
    /// Something else, or goodbye.
    Nonsense,
}

/// Listens to a program; its line, once complete, is taken out of the socket.
pub(super) fn listen(stream: &mut UnixStream) -> Said {
    let mut bytes = [0; MAX_LINE];
    // SAFETY: the kernel writes at most the buffer's length.
    let count = unsafe {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        libc::recv(stream.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags)
    };
    let Ok(count) = usize::try_from(count) else {
        return match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Said::Little,
            _ => Said::Nonsense,
        };
    };
    match bytes[..count].iter().position(|byte| *byte == b'\n') {
        None if count == 0 || count == MAX_LINE => Said::Nonsense,
        None => Said::Little,
        Some(end) => {
            let mut line = [0; MAX_LINE];
            // It is there: it has just been seen.
            match stream.read_exact(&mut line[..=end]) {
                Ok(()) => port(&line[..end]).map_or(Said::Nonsense, Said::Port),
                Err(_) => Said::Nonsense,
            }
        }
    }
}

/// The port of a line without its end.
fn port(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    let complete = word.eq_ignore_ascii_case("connect") && words.next().is_none();
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|_| complete && digits)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_line_is_taken_and_what_follows_it_is_left() {
        for (text, said, left) in [
            ("CONNECT 22\nSSH-2.0", Said::Port(22), "SSH-2.0"),
            ("connect 4294967295\r\n", Said::Port(u32::MAX), ""),
            ("CONNECT 4294967296\n", Said::Nonsense, ""),
            ("CONNECT +22\n", Said::Nonsense, ""),
            ("CONNECT 22 23\n", Said::Nonsense, ""),
            ("CONNECT\n", Said::Nonsense, ""),
            ("\n", Said::Nonsense, ""),
            ("GET / HTTP/1.1\n", Said::Nonsense, ""),
            ("CONNECT 2", Said::Little, "CONNECT 2"),
            ("CONNECT 00000000000000000000000022\n", Said::Nonsense, "CONNECT 00000000000000000000000022\n"),
        ] {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            assert_eq!(listen(&mut ours), Said::Little);
            theirs.write_all(text.as_bytes()).unwrap();
            assert_eq!(listen(&mut ours), said, "{text:?}");
            drop(theirs);
            let mut rest = String::new();
            ours.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, left, "{text:?}");
        }
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(listen(&mut ours), Said::Nonsense);
    }
}
