//! A connection to the other side: whole messages in and out, and never a wait.
//!
//! A message is gathered as it comes, so that one that never comes to its end holds nobody up. The kernel hands descriptors over
//! with the first byte that they were sent with, and reads are never longer than the present message, so they are always those of this message.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::PeerError;
use crate::wire::{HEADER, MAX_BODY, MAX_DESCRIPTORS, Message, flag, header};

/// How long the rest of a message may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Channel {
    stream: UnixStream,
    /// What comes are answers, not requests.
    answers: bool,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Bytes that the present message has in all, as far as that is known.
    whole: usize,
    /// When the present message began.
    begun: Option<Instant>,
}

impl Channel {
    /// A channel to one that asks.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        Channel::of(stream, false)
    }

    /// A channel to one that answers.
    pub(crate) fn to_back_end(stream: UnixStream) -> io::Result<Self> {
        Channel::of(stream, true)
    }

    fn of(stream: UnixStream, answers: bool) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (bytes, descriptors) = (Vec::new(), Vec::new());
        Ok(Channel { stream, answers, bytes, descriptors, whole: HEADER, begun: None })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The next message, if it is all there.
    pub(crate) fn receive(&mut self) -> Result<Option<Message>, PeerError> {
        loop {
            let have = self.bytes.len();
            if have == self.whole {
                if have > HEADER {
                    return Ok(Some(self.message()));
                }
                let [_, flags, size] = self.header();
                let length = usize::try_from(size).unwrap_or(usize::MAX);
                let answer = flags & flag::REPLY != 0;
                let ours = flags & flag::VERSION_MASK == flag::VERSION && answer == self.answers;
                if !ours || length > MAX_BODY {
                    return Err(PeerError::Header { flags, size });
                }
                if length == 0 {
                    return Ok(Some(self.message()));
                }
                self.whole = HEADER + length;
                continue;
            }
            if self.read()? == 0 {
                return Ok(None);
            }
        }
    }

    /// How long to wait for the rest of a message that has begun.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.begun.map(|begun| PATIENCE.saturating_sub(begun.elapsed()))
    }

    /// Sends the answer to a request.
    pub(crate) fn reply(
        &self,
        request: u32,
        body: &[u8],
        descriptor: Option<RawFd>,
    ) -> Result<(), PeerError> {
        self.send(request, flag::REPLY, body, descriptor.as_slice())
    }

    /// Sends a message.
    pub(crate) fn send(
        &self,
        request: u32,
        flags: u32,
        body: &[u8],
        descriptors: &[RawFd],
    ) -> Result<(), PeerError> {
        let mut bytes = header(request, flags, body.len()).to_vec();
        bytes.extend_from_slice(body);
        send(&self.stream, &bytes, descriptors).map_err(PeerError::Socket)
    }

    /// The connection, once more.
    pub(crate) fn stream(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// Ends the connection, whoever else holds it.
    pub(crate) fn hang_up(&self) {
        if let Err(e) = self.stream.shutdown(Shutdown::Both) {
            log::debug!("cannot shut a connection down: {e}");
        }
    }

    /// Reads once; 0 if there is nothing now.
    fn read(&mut self) -> Result<usize, PeerError> {
        let have = self.bytes.len();
        self.bytes.resize(self.whole, 0);
        let part = &mut self.bytes[have..];
        let mut parts = [libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() }];
        let mut numbers = [-1; MAX_DESCRIPTORS];
        // SAFETY: the vector names a buffer of ours, valid during the call, for which any bytes will do.
        let got = unsafe { self.stream.recv_with_fds(&mut parts, &mut numbers) };
        let (count, descriptors) = match got {
            Ok(got) => got,
            Err(e) => {
                self.bytes.truncate(have);
                let e = io::Error::from(e);
                return match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                    io::ErrorKind::ConnectionReset if have == 0 => Err(PeerError::HungUp),
                    _ => Err(PeerError::Socket(e)),
                };
            }
        };
        self.bytes.truncate(have + count);
        // SAFETY: the kernel made these descriptors for us just now.
        let new = numbers.iter().take(descriptors).map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
        self.descriptors.extend(new);
        if count == 0 {
            return Err(if have == 0 { PeerError::HungUp } else { PeerError::Cut });
        }
        if self.descriptors.len() > MAX_DESCRIPTORS {
            let request = self.bytes.first_chunk().map_or(0, |number| u32::from_ne_bytes(*number));
            return Err(PeerError::Descriptors { request, count: self.descriptors.len() });
        }
        self.begun.get_or_insert_with(Instant::now);
        Ok(count)
    }

    /// Request, flags and size; all of the header has come.
    fn header(&self) -> [u32; 3] {
        let mut words = self.bytes.chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
        std::array::from_fn(|_| words.next().unwrap_or_default())
    }

    fn message(&mut self) -> Message {
        let [request, flags, _] = self.header();
        let body = self.bytes.split_off(HEADER);
        self.bytes.clear();
        self.whole = HEADER;
        self.begun = None;
        let descriptors = std::mem::take(&mut self.descriptors);
        Message { request, need_reply: flags & flag::NEED_REPLY != 0, body, descriptors }
    }
}

/// Sends all of the bytes at once. A peer that does not read what it asked for is not waited for.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let sent = stream.send_with_fds(&[bytes], descriptors)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
