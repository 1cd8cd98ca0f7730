//! Descriptors that travel with a request's bytes (SCM_RIGHTS, unix(7)).
//!
//! What arrives is ours from then on: it closes itself, is not passed on to other programs, and is bounded in number.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Most descriptors with one request; the kernel passes no more in one message.
pub(super) const MAX_DESCRIPTORS: usize = 253;

/// Room for one message of control data: a header, and as many descriptors as there can be.
const CONTROL: usize = 1088;

/// What has arrived with a request so far.
#[derive(Debug, Default)]
pub(super) struct Received {
    descriptors: Vec<OwnedFd>,
    too_many: bool,
}

impl Received {
    /// The descriptors of the request that is complete now; the next one begins with none.
    ///
    /// # Errors
    /// There were more than [`MAX_DESCRIPTORS`]; all of them are closed.
    pub(super) fn take(&mut self) -> Result<Vec<OwnedFd>, TooMany> {
        let Received { descriptors, too_many } = std::mem::take(self);
        if too_many { Err(TooMany) } else { Ok(descriptors) }
    }

    /// Adds what a message brought.
    fn add(&mut self, descriptors: Vec<OwnedFd>) {
        if self.descriptors.len() + descriptors.len() > MAX_DESCRIPTORS {
            // Not one is kept of a request that is refused anyway.
            self.descriptors.clear();
            self.too_many = true;
        } else if !self.too_many {
            self.descriptors.extend(descriptors);
        }
    }

    /// Reads from a stream, and keeps descriptors that come along.
    pub(super) fn read(&mut self, stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
        #[repr(align(8))]
        struct Control([u8; CONTROL]);
        let mut control = Control([0; CONTROL]);
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: a message header is plain data, for which zero is a value.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL as _;
        // SAFETY: the header names one buffer and one control buffer, both valid for their lengths during the call.
        let count = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel has filled in the header, and its control buffer is still there.
        self.add(unsafe { owned(&message) });
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            self.descriptors.clear();
            self.too_many = true;
        }
        Ok(count)
    }
}

/// More descriptors than a request may have.
#[derive(Debug)]
pub(super) struct TooMany;

/// Takes the descriptors out of a received message.
///
/// # Safety
/// The message was filled in by `recvmsg`, its control buffer is valid, and nobody has taken them yet.
unsafe fn owned(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: by this function's contract the macros walk a valid control buffer.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: the pointer is to a header within the control buffer.
        let header = unsafe { next.read_unaligned() };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: arithmetic on the header's address and a length.
            let (data, empty) = unsafe { (libc::CMSG_DATA(next), libc::CMSG_LEN(0) as usize) };
            let count = (header.cmsg_len as usize).saturating_sub(empty) / size_of::<RawFd>();
            for n in 0..count {
                // SAFETY: the kernel wrote that many descriptors there, each new and ours.
                descriptors
                    .push(unsafe { OwnedFd::from_raw_fd(data.cast::<RawFd>().add(n).read_unaligned()) });
            }
        }
        // SAFETY: as for the first header.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    fn flags(fd: &OwnedFd) -> i32 {
        // SAFETY: plain fcntl call on an open descriptor.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }
    }

    #[test]
    fn descriptors_arrive_with_the_bytes_and_close_on_exec() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = there.as_fd().try_clone_to_owned().unwrap();
        here.send_with_fds(&[&b"ab"[..]], &[file.as_raw_fd(), file.as_raw_fd()]).unwrap();
        here.send_with_fds(&[&b"cd"[..]], &[file.as_raw_fd()]).unwrap();
        let mut received = Received::default();
        let mut bytes = [0; 8];
        let mut got = Vec::new();
        while got.len() < 4 {
            let count = received.read(&there, &mut bytes).unwrap();
            got.extend_from_slice(&bytes[..count]);
        }
        assert_eq!(got, b"abcd");
        let all = received.take().unwrap();
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|fd| flags(fd) & libc::FD_CLOEXEC != 0));
        assert!(received.take().unwrap().is_empty());
    }

    #[test]
    fn more_than_a_request_may_have_are_all_closed() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut end, other) = UnixStream::pair().unwrap();
        let mut received = Received::default();
        for _ in 0..2 {
            here.send_with_fds(&[&b"x"[..]], &[other.as_raw_fd(); 200]).unwrap();
            assert_eq!(received.read(&there, &mut [0; 8]).unwrap(), 1);
        }
        assert!(received.take().is_err());
        // The other end sees its last copy go.
        drop(other);
        assert_eq!(io::Read::read(&mut end, &mut [0; 1]).unwrap(), 0);
        assert!(received.take().unwrap().is_empty());
    }
}
