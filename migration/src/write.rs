//! Guest memory into a sparse file.
//!
//! Only pages that hold something are written; pages that were never touched are not even read. Memory passes through one small
//! buffer that stays in the processor's cache: what is found to be zero, summed and written is then the same bytes, whoever else may
//! have the memory mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use device::Span;
use device::ram::RamMap;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

use crate::backing::{self, Backing};
use crate::checksum::{Checksum, Running};
use crate::extents::Finder;
use crate::files::check;
use crate::manifest::{MARKS, MemoryFacts, MemoryRange, SAMPLES, Sample};
use crate::presence::Presence;
use crate::{Error, PAGE, Progress};

/// Bytes that are read, summed and written in one go.
const CHUNK: u64 = 512 << 10;
/// Bytes that are looked at in one go; bounds the list of what was found there.
const WINDOW: u64 = 128 << 20;
/// The host is told to write out after this many bytes,
const FLUSH: u64 = 8 << 20;
/// and waited for when this many are on their way, so that little is left for the end.
const PENDING: u64 = 256 << 20;

/// What is to be written. The machine stands still: nobody changes memory until it is done.
pub struct Memory<'a> {
    /// Guest memory.
    pub ram: &'a RamMap,
    /// The file that memory is still being paged in from, if it is ([`crate::Pager::backing`]).
    pub behind: Option<&'a Backing>,
    /// Guest addresses of pages that differ between any two moments of a machine, such as its clock's and its queues'. At most 16 are
    /// used; by them a file of memory is told from that of another snapshot of the same machine.
    pub marks: &'a [GuestAddress],
}

/// Where bytes of guest memory are to be had.
#[derive(Clone, Copy)]
enum Whence<'a> {
    /// In memory; `populate` if it may be a mapped file.
    Memory { populate: bool },
    /// In the file that the region maps, at this offset from the region's start. Reading the file makes no pages.
    Shared(&'a FileOffset),
    /// Not yet in memory.
    Behind(&'a Backing),
}

/// Writes guest memory to an empty file and makes it last.
pub(crate) fn write(
    file: &File,
    path: &Path,
    memory: &Memory,
    progress: &Progress,
) -> Result<MemoryFacts, Error> {
    let ranges: Vec<MemoryRange> =
        backing::spans(memory.ram).map(|Span { base, length }| MemoryRange { gpa: base, length }).collect();
    let length = ranges.iter().map(|r| r.length).sum();
    file.set_len(length).map_err(|e| Error::write(path, 0, e))?;

    let mut total = 0;
    let mut presence = Presence::open();
    each_piece(memory, &mut presence, &mut |piece| {
        total += piece.range.end - piece.range.start;
        progress.check()
    })?;
    progress.begin(total);

    let mut buffer = Vec::new();
    // A host short of memory keeps us from saving the machine; it need not end it.
    let room = buffer.try_reserve_exact(CHUNK as usize);
    room.map_err(|_| Error::write(path, 0, io::Error::from_raw_os_error(libc::ENOMEM)))?;
    buffer.resize(CHUNK as usize, 0);
    let mut writer = Writer {
        file,
        path,
        buffer,
        sum: Running::new(),
        summed: 0,
        data: 0,
        samples: Sampler::default(),
        told: 0,
    };
    each_piece(memory, &mut presence, &mut |piece| {
        let mut at = piece.range.start;
        while at < piece.range.end {
            progress.check()?;
            let end = piece.range.end.min(at + CHUNK);
            writer.chunk(&piece, at..end)?;
            progress.advance(end - at);
            at = end;
        }
        Ok(())
    })?;
    progress.check()?;
    memory.behind.map_or(Ok(()), Backing::check_length)?;
    file.sync_all().map_err(|e| Error::write(path, writer.data, e))?;
    progress.finish();
    let mut samples = writer.samples.finish();
    mark(file, path, &ranges, memory.marks, &mut samples)?;
    let Writer { mut sum, summed, data, .. } = writer;
    sum.zeros(length - summed);
    Ok(MemoryFacts { ranges, length, data, checksum: sum.finish(), samples })
}

/// A stretch of a region that may hold something.
struct Piece<'a> {
    region: &'a GuestRegionMmap<()>,
    /// Where the region begins in the file.
    base: u64,
    /// Offsets from the start of the region.
    range: Range<u64>,
    from: Whence<'a>,
}

/// Calls `each` for all that may hold something, in the order of the file.
fn each_piece(
    memory: &Memory,
    presence: &mut Presence,
    each: &mut dyn FnMut(Piece) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut base = 0;
    let mut behind_finder = Finder::default();
    for region in memory.ram.iter() {
        let mut finder = Finder::default();
        let span = Span { base: region.start_addr().raw_value(), length: region.len() };
        if !span.base.is_multiple_of(PAGE) || !span.length.is_multiple_of(PAGE) {
            return Err(Error::Layout(format!("{:#x} bytes at {:#x}", span.length, span.base)));
        }
        let behind = match memory.behind {
            Some(backing) => backing.place(span)?.map(|place| (backing, place)),
            None => None,
        };
        let mut start = 0;
        while start < span.length {
            let window = start..span.length.min(start + WINDOW);
            start = window.end;
            let present = present(region, presence, &mut finder, window.clone())?;
            let mut at = window.start;
            for (range, from) in present {
                absent(behind.as_ref(), &mut behind_finder, at..range.start, &mut |range, from| {
                    each(Piece { region, base, range, from })
                })?;
                at = range.end;
                each(Piece { region, base, range, from })?;
            }
            absent(behind.as_ref(), &mut behind_finder, at..window.end, &mut |range, from| {
                each(Piece { region, base, range, from })
            })?;
        }
        base += span.length;
    }
    Ok(())
}

/// What of a part of a region is in memory.
fn present<'a>(
    region: &'a GuestRegionMmap<()>,
    presence: &mut Presence,
    finder: &mut Finder,
    window: Range<u64>,
) -> Result<Vec<(Range<u64>, Whence<'a>)>, Error> {
    let mut found = Vec::new();
    if region.flags() & libc::MAP_SHARED != 0
        && let Some(shared) = region.file_offset()
    {
        let first = shared.start();
        let mut at = first + window.start;
        while let Some(data) = finder
            .next(shared.file(), at..first + window.end)
            .map_err(|source| lost("look at", region, window.start, source))?
        {
            at = data.end;
            found.push((data.start - first..data.end - first, Whence::Shared(shared)));
        }
        return Ok(found);
    }
    let host = region.as_ptr() as u64;
    for run in presence.runs(host + window.start..host + window.end) {
        found.push((run.range.start - host..run.range.end - host, Whence::Memory { populate: run.file }));
    }
    Ok(found)
}

/// What of a part of a region that is not in memory is in the file behind it.
fn absent<'a>(
    behind: Option<&(&'a Backing, Range<u64>)>,
    finder: &mut Finder,
    range: Range<u64>,
    each: &mut dyn FnMut(Range<u64>, Whence<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some((backing, place)) = behind else { return Ok(()) };
    let mut at = place.start + range.start;
    let end = place.start + range.end;
    while let Some(data) =
        finder.next(backing.file(), at..end).map_err(|e| Error::file("look at", backing.path(), e))?
    {
        at = data.end;
        each(data.start - place.start..data.end - place.start, Whence::Behind(backing))?;
    }
    Ok(())
}

fn lost(
    action: &'static str,
    region: &GuestRegionMmap<()>,
    offset: u64,
    source: impl Into<std::io::Error>,
) -> Error {
    Error::Memory { action, address: region.start_addr().raw_value() + offset, source: source.into() }
}

struct Writer<'a> {
    file: &'a File,
    path: &'a Path,
    buffer: Vec<u8>,
    sum: Running,
    /// Offset in the file up to which the sum is known.
    summed: u64,
    /// Bytes written.
    data: u64,
    samples: Sampler,
    /// Offset in the file up to which the host was told to write out.
    told: u64,
}

impl Writer<'_> {
    /// Writes what of a part of a piece, at most [`CHUNK`] bytes, is not zero.
    fn chunk(&mut self, piece: &Piece, range: Range<u64>) -> Result<(), Error> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let length = usize::try_from(range.end - range.start).unwrap_or(0);
        fetch(piece, range.start, &mut buffer[..length])?;
        let offset = piece.base + range.start;
        let mut at = 0;
        while let Some(run) = next_run(&buffer[..length], at) {
            at = run.end;
            self.run(&buffer[run.clone()], offset + run.start as u64)?;
        }
        self.buffer = buffer;
        Ok(())
    }

    fn run(&mut self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(|e| Error::write(self.path, self.data, e))?;
        self.sum.zeros(offset - self.summed);
        self.sum.update(bytes);
        self.summed = offset + bytes.len() as u64;
        self.data += bytes.len() as u64;
        self.samples.take(bytes, offset);
        if self.summed - self.told >= FLUSH {
            self.flush();
        }
        Ok(())
    }

    /// Lets the host begin to write out. Where it cannot, all is left for the end.
    fn flush(&mut self) {
        let tell = |range: Range<u64>, flags| {
            let (Ok(start), Ok(length)) =
                (i64::try_from(range.start), i64::try_from(range.end - range.start))
            else {
                return;
            };
            // SAFETY: an operation on an open file that touches no memory.
            let told = check(unsafe { libc::sync_file_range(self.file.as_raw_fd(), start, length, flags) });
            if let Err(e) = told {
                log::trace!("sync_file_range: {e}");
            }
        };
        tell(self.told..self.summed, libc::SYNC_FILE_RANGE_WRITE);
        let old = self.told.saturating_sub(PENDING)..self.summed.saturating_sub(PENDING);
        if !old.is_empty() {
            tell(old, libc::SYNC_FILE_RANGE_WAIT_BEFORE);
        }
        self.told = self.summed;
    }
}

/// Fills a buffer with guest memory.
fn fetch(piece: &Piece, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
    let region = piece.region;
    match piece.from {
        Whence::Memory { populate } => {
            let slice = region
                .get_slice(MemoryRegionAddress(offset), buffer.len())
                .map_err(|e| lost("read", region, offset, std::io::Error::other(e.to_string())))?;
            if populate {
                // A mapped file may have become shorter; better an error than a signal.
                let guard = slice.ptr_guard();
                // SAFETY: the range lies within a mapping; reading it in changes nothing that anybody sees.
                let populated = unsafe {
                    libc::madvise(guard.as_ptr().cast_mut().cast(), buffer.len(), libc::MADV_POPULATE_READ)
                };
                match check(populated) {
                    // Kernels before 5.14 do not know this advice.
                    Err(e) if e.raw_os_error() != Some(libc::EINVAL) => {
                        return Err(lost("read", region, offset, e));
                    }
                    _ => {}
                }
            }
            slice.copy_to(buffer);
            Ok(())
        }
        Whence::Shared(shared) => shared
            .file()
            .read_exact_at(buffer, shared.start() + offset)
            .map_err(|e| lost("read", region, offset, e)),
        Whence::Behind(backing) => {
            let span = Span { base: region.start_addr().raw_value() + offset, length: buffer.len() as u64 };
            let place = backing.place(span)?.map_or(0, |place| place.start);
            backing.file().read_exact_at(buffer, place).map_err(|e| Error::file("read", backing.path(), e))
        }
    }
}

/// The next run of pages that are not zero, from `at` on; all in bytes.
pub(crate) fn next_run(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let page = PAGE as usize;
    let mut pages = bytes[at..].chunks(page).enumerate();
    let first = pages.find(|(_, p)| !is_zero(p))?.0;
    let end = pages.find(|(_, p)| is_zero(p)).map_or(bytes.len(), |(n, _)| at + n * page);
    Some(at + first * page..end)
}

fn is_zero(bytes: &[u8]) -> bool {
    // In steps that compilers turn into wide loads, and that end early for most pages.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Chooses pages that are spread over all data, without knowing how much there will be.
struct Sampler {
    taken: Vec<Sample>,
    /// Every how many pages one is taken; doubles when there are too many.
    step: u64,
    seen: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler { taken: Vec::new(), step: 1, seen: 0 }
    }
}

impl Sampler {
    fn take(&mut self, bytes: &[u8], offset: u64) {
        let page = PAGE as usize;
        let count = (bytes.len() / page) as u64;
        let mut next = self.seen.next_multiple_of(self.step) - self.seen;
        while next < count {
            let at = usize::try_from(next).unwrap_or(0) * page;
            self.taken
                .push(Sample { offset: offset + at as u64, checksum: Checksum::of(&bytes[at..at + page]) });
            if self.taken.len() == SAMPLES * 2 {
                self.step *= 2;
                let mut even = false;
                self.taken.retain(|_| {
                    even = !even;
                    even
                });
            }
            next = (self.seen + next + 1).next_multiple_of(self.step) - self.seen;
        }
        self.seen += count;
    }

    fn finish(mut self) -> Vec<Sample> {
        let count = self.taken.len();
        if count > SAMPLES {
            let mut at = 0;
            self.taken.retain(|_| {
                // Evenly spread: kept where the number of the sample that it would be goes up.
                let keep = at * SAMPLES / count != (at + 1) * SAMPLES / count;
                at += 1;
                keep
            });
        }
        self.taken
    }
}

/// Adds the pages that the caller named to the samples.
fn mark(
    file: &File,
    path: &Path,
    ranges: &[MemoryRange],
    marks: &[GuestAddress],
    samples: &mut Vec<Sample>,
) -> Result<(), Error> {
    let mut base = 0;
    let most = samples.len() + MARKS;
    for range in ranges {
        let span = Span::from(*range);
        for mark in marks.iter().filter(|m| span.base <= m.0 && m.0 < span.end()) {
            let offset = base + (mark.0 - span.base) / PAGE * PAGE;
            if samples.len() < most && samples.iter().all(|s| s.offset != offset) {
                let mut page = [0; PAGE as usize];
                file.read_exact_at(&mut page, offset).map_err(|e| Error::file("read", path, e))?;
                samples.push(Sample { offset, checksum: Checksum::of(&page) });
            }
        }
        base += range.length;
    }
    samples.sort_unstable_by_key(|s| s.offset);
    Ok(())
}
