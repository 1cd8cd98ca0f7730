//! A UNIX socket for hyper, and the loop that drives a future which waits for that socket only.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI16, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use hyper::rt;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::descriptors::Received;

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

/// Where a connection is between one request and the next; shared by its stream, its service and its driver.
#[derive(Default)]
pub(super) struct Turn {
    since: Cell<Option<Instant>>,
    answered: Cell<bool>,
}

impl Turn {
    /// The service has an answer; what is written from now on is that.
    pub(super) fn answer(&self) {
        self.since.set(Some(Instant::now()));
        self.answered.set(true);
    }

    fn began(&self) {
        if self.since.get().is_none() {
            self.since.set(Some(Instant::now()));
        }
    }

    /// Everything is written. True if that was an answer.
    fn flushed(&self) -> bool {
        let answered = self.answered.replace(false);
        if answered {
            self.since.set(None);
        }
        answered
    }
}

/// What a server does with its side of a connection; a client has nothing to do here.
pub(super) trait Side {
    /// Looks at bytes that hyper wants to write, and may say something else in their place.
    fn instead_of(&self, _bytes: &[u8], _answered: bool) -> Option<&'static str> {
        None
    }

    /// Keeps descriptors that come with what is read; `None` lets the kernel close them.
    fn descriptors(&self) -> Option<&RefCell<Received>> {
        None
    }

    /// Descriptors that go with the first bytes that are written.
    fn lent(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// An answer was handed to the kernel.
    fn answer_sent(&self) {}
}

/// A client's side, with the descriptors that it sends with its request.
pub(super) struct Client(pub(super) RefCell<Vec<RawFd>>);

impl Side for Client {
    fn lent(&self) -> Vec<RawFd> {
        self.0.take()
    }
}

/// A non-blocking stream that notes what it waits for.
pub(super) struct Io<S> {
    stream: UnixStream,
    interest: Arc<Interest>,
    turn: Rc<Turn>,
    side: S,
}

impl<S> Io<S> {
    pub(super) fn new(stream: UnixStream, side: S) -> io::Result<(Self, Driver)> {
        stream.set_nonblocking(true)?;
        let interest = Arc::new(Interest::default());
        let turn = Rc::new(Turn::default());
        let driver = Driver { stream: stream.try_clone()?, interest: interest.clone(), turn: turn.clone() };
        Ok((Io { stream, interest, turn, side }, driver))
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

impl<S: Side + Unpin> rt::Read for Io<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 8192];
        let room = buffer.remaining().min(bytes.len());
        let result = match self.side.descriptors() {
            Some(received) => received.borrow_mut().read(&self.stream, &mut bytes[..room]),
            None => (&self.stream).read(&mut bytes[..room]),
        };
        if result.as_ref().is_ok_and(|count| *count > 0) {
            self.turn.began();
        }
        self.wait(libc::POLLIN, result.map(|count| buffer.put_slice(&bytes[..count])))
    }
}

impl<S: Side + Unpin> rt::Write for Io<S> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = match self.side.instead_of(bytes, self.turn.answered.get()) {
            // It is short: were there no room for all of it, the client would not have read its earlier answers.
            Some(text) => (&self.stream).write(text.as_bytes()).map(|_| bytes.len()),
            None => match self.side.lent() {
                fds if fds.is_empty() => (&self.stream).write(bytes),
                // The first write of a connection is taken whole or in part, but it is taken: nothing is in its way.
                fds => self.stream.send_with_fds(&[bytes], &fds).map_err(io::Error::from),
            },
        };
        self.wait(libc::POLLOUT, result)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.turn.flushed() {
            self.side.answer_sent();
        }
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
    turn: Rc<Turn>,
}

/// How long a driver waits for the other side.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    /// For the next bytes.
    Silence(Duration),
    /// For a whole request from its first byte on, and for an answer to be read; between requests without end.
    Turn(Duration),
}

impl Driver {
    /// Where the connection is.
    pub(super) fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Polls `future`, and between polls waits until the socket is ready for what it wants.
    ///
    /// # Errors
    /// The other side took too long, or the socket cannot be waited for.
    pub(super) fn run<F: Future>(&self, future: F, patience: Patience) -> io::Result<F::Output> {
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
                self.sleep(self.limit(patience))?;
            }
        }
    }

    /// How long to wait now.
    fn limit(&self, patience: Patience) -> Option<Duration> {
        match patience {
            Patience::Silence(limit) => Some(limit),
            Patience::Turn(limit) => self.turn.since.get().map(|since| limit.saturating_sub(since.elapsed())),
        }
    }

    fn sleep(&self, limit: Option<Duration>) -> io::Result<()> {
        let events = match self.interest.events.load(Ordering::Relaxed) {
            0 => libc::POLLIN,
            events => events,
        };
        match device::ready(self.stream.as_raw_fd(), events, limit.unwrap_or(Duration::MAX))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}
