//! What the VMM and the launcher say to each other, a message of JSON each.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Question {
    /// The answer has the same number.
    pub(super) number: u64,
    /// The device.
    pub(super) id: String,
    /// What is asked.
    pub(super) what: What,
}

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum What {
    /// Start passt with this task.
    Start(String),
    /// How did it end?
    Ended,
}

/// An answer; a descriptor comes with it where something was started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) number: u64,
    pub(super) said: Result<Option<String>, String>,
}

/// Longest message in bytes.
pub(super) const LONGEST: usize = 64 << 10;

/// Says something, with a descriptor perhaps.
pub(super) fn say(socket: &UnixDatagram, what: &impl Serialize, with: Option<RawFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(what)?;
    if bytes.len() > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
    }
    socket.send_with_fds(&[&bytes[..]], with.as_slice())?;
    Ok(())
}

/// Hears something; `None` at the end of the connection.
pub(super) fn hear<T: DeserializeOwned>(socket: &UnixDatagram) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST];
    let mut parts = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    let mut numbers = [-1];
    // SAFETY: the vector names a buffer of ours, valid during the call, for which any bytes will do.
    let (length, count) = unsafe { socket.recv_with_fds(&mut parts, &mut numbers) }?;
    // SAFETY: the kernel made this descriptor for us just now.
    let with = (count > 0).then(|| unsafe { OwnedFd::from_raw_fd(numbers[0]) });
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..length])?, with)))
}
