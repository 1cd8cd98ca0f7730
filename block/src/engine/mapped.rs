//! The engine for images whose bytes are not in order: it asks the map where they are, and has another engine move them.
//!
//! What is in the image's own file, or as it is in one that it builds upon, goes to guest memory and comes from there without a copy, in the background. What must be
//! decompressed, and making places for new data, is done at once, on the thread that queues it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{Engine, FileEngine, Ready, Refused, transfer_size};
use crate::map::{Generation, Map, Place};
use crate::vectored::{self, Direction, Segment};

/// Bytes that are read at once from elsewhere.
const BOUNCE: usize = 64 << 10;

/// One request.
#[derive(Default)]
struct Request {
    token: u64,
    size: u32,
    /// Pieces that are not finished, and one more while there may be others.
    left: u32,
    error: Option<io::Error>,
}

/// See the module.
pub(super) struct Mapped {
    // Dropped first: it waits for what is under way.
    inner: Box<dyn FileEngine>,
    map: Arc<dyn Map>,
    requests: Vec<Request>,
    free: Vec<u32>,
    /// Requests finished without the other engine, or while something else was waited for.
    ready: Ready,
    /// What is left of the memory of the request at hand, and its next piece.
    rest: Vec<Segment>,
    piece: Vec<Segment>,
    bounce: Vec<u8>,
}

/// A piece's token for the other engine: the request, and what the map wants to hear when it has been written.
fn piece_token(index: u32, generation: Option<Generation>) -> u64 {
    u64::from(index) | generation.map_or(0, |generation| 1 << 32 | u64::from(generation.0) << 33)
}

impl Mapped {
    pub(super) fn new(inner: Box<dyn FileEngine>, map: &Arc<dyn Map>, depth: usize) -> Self {
        Mapped {
            inner,
            map: map.clone(),
            requests: (0..depth).map(|_| Request::default()).collect(),
            // At most `MAX_DEPTH`.
            free: (0..depth as u32).rev().collect(),
            ready: Ready::new(),
            rest: Vec::new(),
            piece: Vec::new(),
            bounce: Vec::new(),
        }
    }

    fn take(&mut self, token: u64, size: u32) -> Result<u32, Refused> {
        if self.in_flight() >= self.requests.len() {
            return Err(Refused);
        }
        let index = self.free.pop().ok_or(Refused)?;
        self.requests[index as usize] = Request { token, size, left: 1, error: None };
        Ok(index)
    }

    /// One piece fewer; the request is reported with the last one.
    fn finish(&mut self, index: u32, result: io::Result<()>) {
        let Mapped { requests, free, ready, .. } = self;
        piece_done(requests, free, index, result, &mut |token, result| ready.push((token, result)));
    }

    /// # Safety
    /// As for [`Engine::read`] and [`Engine::write`].
    unsafe fn transfer(
        &mut self,
        direction: Direction,
        offset: u64,
        segments: &[Segment],
        token: u64,
    ) -> Result<(), Refused> {
        let size = transfer_size(segments);
        let index = self.take(token, *size.as_ref().unwrap_or(&0))?;
        let result = size.and_then(|size| {
            self.rest.clear();
            self.rest.extend(segments);
            let (mut at, end) = (offset, offset.saturating_add(size.into()));
            while at < end {
                // SAFETY: the caller's promise covers all pieces.
                at += unsafe { self.next_piece(direction, index, at, end - at)? };
            }
            Ok(())
        });
        self.finish(index, result);
        Ok(())
    }

    /// Moves, or has moved, the next piece of a request. Returns its length.
    ///
    /// # Safety
    /// As for [`Engine::read`] and [`Engine::write`].
    unsafe fn next_piece(
        &mut self,
        direction: Direction,
        index: u32,
        offset: u64,
        most: u64,
    ) -> io::Result<u64> {
        let (place, length, generation) = match direction {
            Direction::Read => {
                let (place, length) = self.map.find(offset, most)?;
                (place, length, None)
            }
            Direction::Write => {
                let (position, length, generation) = self.map.make_place(offset, most)?;
                (Place::File { file: 0, at: position }, length, Some(generation))
            }
        };
        self.cut(length as usize);
        match place {
            Place::File { file, at: position } => {
                let token = piece_token(index, generation);
                self.requests[index as usize].left += 1;
                loop {
                    // SAFETY: the caller's promise.
                    let queued = unsafe {
                        match direction {
                            Direction::Read => self.inner.read_from(file, position, &self.piece, token),
                            Direction::Write => self.inner.write(position, &self.piece, token),
                        }
                    };
                    match queued {
                        Ok(()) => break,
                        // Nothing is lost by waiting here: the kernel has enough to do.
                        Err(Refused) => {
                            if let Err(error) = self.wait() {
                                self.requests[index as usize].left -= 1;
                                generation.into_iter().for_each(|generation| self.map.written(generation));
                                return Err(error);
                            }
                        }
                    }
                }
            }
            // SAFETY: the caller's promise.
            Place::Zeros => unsafe {
                self.piece.iter().for_each(|piece| piece.base().write_bytes(0, piece.len()))
            },
            // SAFETY: the caller's promise.
            Place::Elsewhere => unsafe { self.bounce(offset, length as usize)? },
        }
        Ok(length)
    }

    /// Moves the first `length` bytes of `rest` to `piece`.
    fn cut(&mut self, mut length: usize) {
        self.piece.clear();
        let mut first = 0;
        while length > 0
            && let Some(segment) = self.rest.get(first)
        {
            let step = segment.len().min(length);
            self.piece.push(Segment::new(segment.base(), step));
            first = vectored::advance(&mut self.rest, first, step);
            length -= step;
        }
        self.rest.drain(..first);
    }

    /// Fills `piece` with bytes from elsewhere.
    ///
    /// # Safety
    /// The piece is memory that may be written.
    unsafe fn bounce(&mut self, mut offset: u64, mut length: usize) -> io::Result<()> {
        self.bounce.resize(BOUNCE, 0);
        let mut first = 0;
        while length > 0 {
            let step = length.min(BOUNCE);
            let bytes = &mut self.bounce[..step];
            self.map.read(offset, bytes)?;
            // SAFETY: the buffer has `step` bytes, and the piece at least as many, which the caller vouches for.
            first =
                unsafe { vectored::copy(bytes.as_mut_ptr(), step, Direction::Read, &mut self.piece, first) };
            (offset, length) = (offset + step as u64, length - step);
        }
        Ok(())
    }

    /// Waits for everything under way; what is finished is kept.
    fn wait(&mut self) -> io::Result<()> {
        let Mapped { inner, map, requests, free, ready, .. } = self;
        inner.drain(&mut |token, result| {
            piece_came(&**map, requests, free, token, result, &mut |token, result| {
                ready.push((token, result))
            });
        })
    }
}

/// Takes in what the other engine says of a piece.
fn piece_came(
    map: &dyn Map,
    requests: &mut [Request],
    free: &mut Vec<u32>,
    token: u64,
    result: io::Result<u32>,
    done: &mut dyn FnMut(u64, io::Result<u32>),
) {
    if token >> 32 & 1 != 0 {
        map.written(Generation((token >> 33) as u8));
    }
    piece_done(requests, free, token as u32, result.map(drop), done);
}

fn piece_done(
    requests: &mut [Request],
    free: &mut Vec<u32>,
    index: u32,
    result: io::Result<()>,
    done: &mut dyn FnMut(u64, io::Result<u32>),
) {
    let Some(request) = requests.get_mut(index as usize) else { return };
    if let Err(error) = result {
        request.error.get_or_insert(error);
    }
    request.left -= 1;
    if request.left == 0 {
        free.push(index);
        done(request.token, request.error.take().map_or(Ok(request.size), Err));
    }
}

impl Engine for Mapped {
    unsafe fn read(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Read, offset, segments, token) }
    }

    unsafe fn write(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller makes the same promise.
        unsafe { self.transfer(Direction::Write, offset, segments, token) }
    }

    fn flush(&mut self, token: u64) -> Result<(), Refused> {
        let index = self.take(token, 0)?;
        let result = self.map.flush().and_then(|()| {
            while self.inner.flush(piece_token(index, None)).is_err() {
                self.wait()?;
            }
            self.requests[index as usize].left += 1;
            Ok(())
        });
        self.finish(index, result);
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64, token: u64) -> Result<(), Refused> {
        self.zero(offset, len, true, token)
    }

    fn zero(&mut self, offset: u64, len: u64, may_free: bool, token: u64) -> Result<(), Refused> {
        let index = self.take(token, 0)?;
        let result = self.map.zero(offset, len, may_free);
        self.finish(index, result);
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        self.inner.submit()
    }

    fn completions(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        let Mapped { inner, map, requests, free, ready, .. } = self;
        ready.drain(..).for_each(|(token, result)| done(token, result));
        inner.completions(&mut |token, result| piece_came(&**map, requests, free, token, result, done))
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.event_fd()
    }

    fn in_flight(&self) -> usize {
        self.requests.len() - self.free.len() + self.ready.len()
    }

    fn drain(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        self.wait()?;
        self.completions(done)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // The other engine waits by itself; this is for what the map wants to hear.
        if let Err(error) = self.wait() {
            log::error!("cannot wait for I/O: {error}");
        }
    }
}
