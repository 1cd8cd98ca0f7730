//! A UNIX socket for hyper, and the loop that drives a future which waits for that socket only.

use std::future::Future;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI16, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use hyper::rt;

/// What the driven future waits for.
#[derive(Default)]
pub(super) struct Interest {
    events: AtomicI16,
    woken: AtomicBool,
}

impl Wake for Interest {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
    }
}

/// A non-blocking stream that notes what it waits for.
pub(super) struct Io {
    stream: UnixStream,
    interest: Arc<Interest>,
}

impl Io {
    pub(super) fn new(stream: UnixStream) -> io::Result<(Self, Driver)> {
        stream.set_nonblocking(true)?;
        let interest = Arc::new(Interest::default());
        let driver = Driver { stream: stream.try_clone()?, interest: interest.clone() };
        Ok((Io { stream, interest }, driver))
    }

    fn wait<T>(&self, events: i16, result: io::Result<T>) -> Poll<io::Result<T>> {
        match result {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.interest.events.fetch_or(events, Ordering::Relaxed);
                Poll::Pending
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                self.interest.woken.store(true, Ordering::Relaxed);
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }
}

impl rt::Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 8192];
        let room = buffer.remaining().min(bytes.len());
        let result = (&self.stream).read(&mut bytes[..room]);
        self.wait(libc::POLLIN, result.map(|count| buffer.put_slice(&bytes[..count])))
    }
}

impl rt::Write for Io {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.wait(libc::POLLOUT, (&self.stream).write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(std::net::Shutdown::Write))
    }
}

/// Runs a future to its end on the calling thread.
pub(super) struct Driver {
    stream: UnixStream,
    interest: Arc<Interest>,
}

impl Driver {
    /// Polls `future`, and between polls waits until the socket is ready for what it wants.
    ///
    /// # Errors
    /// The socket was silent for `patience`, or cannot be waited for.
    pub(super) fn run<F: Future>(&self, future: F, patience: Option<Duration>) -> io::Result<F::Output> {
        let mut future = pin!(future);
        let waker = Waker::from(self.interest.clone());
        let mut context = Context::from_waker(&waker);
        loop {
            self.interest.events.store(0, Ordering::Relaxed);
            self.interest.woken.store(false, Ordering::Relaxed);
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Ok(output);
            }
            if !self.interest.woken.load(Ordering::Relaxed) {
                self.sleep(patience)?;
            }
        }
    }

    fn sleep(&self, patience: Option<Duration>) -> io::Result<()> {
        let events = match self.interest.events.load(Ordering::Relaxed) {
            0 => libc::POLLIN,
            events => events,
        };
        let mut fd = libc::pollfd { fd: self.stream.as_raw_fd(), events, revents: 0 };
        let limit = patience.map_or(-1, |p| i32::try_from(p.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: one valid entry, and the descriptor is open as long as the stream is held.
        match unsafe { libc::poll(&mut fd, 1, limit) } {
            0 => Err(io::ErrorKind::TimedOut.into()),
            1.. => Ok(()),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
                e => Err(e),
            },
        }
    }
}
