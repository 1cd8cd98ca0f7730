//! The engine of last resort: every request is done when it is queued, on the thread that queues it.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Engine, FileEngine, Files, Ready, Refused, punch_now, transfer_now, zero_now};
use crate::storage::Storage;
use crate::vectored::{Direction, Segment};

/// See the module.
pub(super) struct Sync {
    files: Files,
    depth: usize,
    ready: Ready,
}

impl Sync {
    pub(super) fn new(files: &Files, depth: usize) -> Self {
        Sync { files: files.clone(), depth, ready: Vec::with_capacity(depth) }
    }

    fn run(
        &mut self,
        file: u32,
        token: u64,
        request: impl FnOnce(&Storage) -> io::Result<u32>,
    ) -> Result<(), Refused> {
        if self.ready.len() >= self.depth {
            return Err(Refused);
        }
        let result = request(self.files.get(file));
        self.ready.push((token, result));
        Ok(())
    }
}

impl FileEngine for Sync {
    unsafe fn read_from(
        &mut self,
        file: u32,
        offset: u64,
        segments: &[Segment],
        token: u64,
    ) -> Result<(), Refused> {
        // SAFETY: the caller vouches for the segments, even beyond this call.
        self.run(file, token, |storage| unsafe { transfer_now(storage, Direction::Read, offset, segments) })
    }
}

impl Engine for Sync {
    unsafe fn read(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller vouches for the segments, even beyond this call.
        self.run(0, token, |storage| unsafe { transfer_now(storage, Direction::Read, offset, segments) })
    }

    unsafe fn write(&mut self, offset: u64, segments: &[Segment], token: u64) -> Result<(), Refused> {
        // SAFETY: the caller vouches for the segments, even beyond this call.
        self.run(0, token, |storage| unsafe { transfer_now(storage, Direction::Write, offset, segments) })
    }

    fn flush(&mut self, token: u64) -> Result<(), Refused> {
        self.run(0, token, |storage| storage.file().sync_data().map(|()| 0))
    }

    fn discard(&mut self, offset: u64, len: u64, token: u64) -> Result<(), Refused> {
        self.run(0, token, |storage| punch_now(storage, offset, len).map(|()| 0))
    }

    fn zero(&mut self, offset: u64, len: u64, may_free: bool, token: u64) -> Result<(), Refused> {
        self.run(0, token, |storage| zero_now(storage, offset, len, may_free).map(|()| 0))
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn completions(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        self.ready.drain(..).for_each(|(token, result)| done(token, result));
        Ok(())
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.ready.len()
    }

    fn drain(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()> {
        self.completions(done)
    }
}
