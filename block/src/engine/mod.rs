//! Moving bytes between an image and memory, many requests at a time.

mod aio;
mod mapped;
mod prompt;
mod slot;
mod sync;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Once, OnceLock};

use crate::geometry::{PUNCH, ZERO, fallocate};
use crate::map::Map;
use crate::storage::Storage;
use crate::vectored::{self, Direction, Segment};

/// The most requests that one engine has under way.
pub const MAX_DEPTH: usize = 1024;

/// The most bytes that one request may move. Larger ones fail with `InvalidInput`.
pub const MAX_REQUEST_BYTES: u32 = 1 << 30;

/// Which engines may be used: the first of io_uring and Linux AIO that the kernel has, or else `preadv` and `pwritev` on the thread
/// that submits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// io_uring.
    pub io_uring: bool,
    /// Linux AIO.
    pub aio: bool,
}

impl Default for Choice {
    fn default() -> Self {
        Choice { io_uring: true, aio: true }
    }
}

/// The engine has as many requests under way as it was made for; nothing was queued. Ask for completions first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Reads and writes one image for one queue.
///
/// Requests are queued, then submitted together, and come back in any order with the `token` they were given. Their
/// offsets are in bytes. The engine does not check them against the size or the permissions of the image; see
/// [`Image::may_read`] and [`Image::may_write`].
///
/// An engine may be made and dropped on any thread, but from the first `submit` until it is empty again only one
/// thread may use it. Dropping it waits for what is under way.
pub trait Engine: Send {
    /// Queues a read into `segments`.
    ///
    /// # Errors
    /// [`Refused`] if the engine is full.
    ///
    /// # Safety
    /// The memory must stay valid for writing until the request has been reported by `completions` or `drain`. The slice
    /// itself need not outlive the call.
    unsafe fn read(
        &mut self,
        offset: u64,
        segments: &[Segment],
        token: u64,
    ) -> std::result::Result<(), Refused>;

    /// Queues a write of `segments`.
    ///
    /// # Errors
    /// [`Refused`] if the engine is full.
    ///
    /// # Safety
    /// The memory must stay valid until the request has been reported by `completions` or `drain`.
    unsafe fn write(
        &mut self,
        offset: u64,
        segments: &[Segment],
        token: u64,
    ) -> std::result::Result<(), Refused>;

    /// Queues making everything durable that was *reported* as written before.
    ///
    /// # Errors
    /// [`Refused`] if the engine is full.
    fn flush(&mut self, token: u64) -> std::result::Result<(), Refused>;

    /// Queues giving back the space of a range, which reads as zeros afterwards.
    ///
    /// # Errors
    /// [`Refused`] if the engine is full.
    fn discard(&mut self, offset: u64, len: u64, token: u64) -> std::result::Result<(), Refused>;

    /// Queues filling a range with zeros, without writing them; its space is given back if `may_free`
    /// and kept if not, as far as the file system can do either.
    ///
    /// # Errors
    /// [`Refused`] if the engine is full.
    fn zero(&mut self, offset: u64, len: u64, may_free: bool, token: u64)
    -> std::result::Result<(), Refused>;

    /// Hands everything queued to the kernel, in one call where that is best. Requests that are finished by then do not signal the
    /// event descriptor: look at `completions` afterwards.
    ///
    /// # Errors
    /// The engine is broken; nothing more will come of it.
    fn submit(&mut self) -> io::Result<()>;

    /// Reports finished requests: the token, and how many bytes were moved (0 for requests that move none) or why it
    /// failed. A read or write either moves all its bytes or fails.
    ///
    /// # Errors
    /// The engine is broken.
    fn completions(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()>;

    /// Readable while finished requests wait to be reported; `None` if they are always finished when `submit` returns.
    /// To be polled, level-triggered, never read.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Requests that were queued and not yet reported.
    fn in_flight(&self) -> usize;

    /// Submits what is queued and reports until nothing is in flight.
    ///
    /// # Errors
    /// The engine is broken and requests may still be under way: the memory must not be freed.
    fn drain(&mut self, done: &mut dyn FnMut(u64, io::Result<u32>)) -> io::Result<()>;
}

/// An engine that also reads files that the image builds upon.
pub(crate) trait FileEngine: Engine {
    /// Queues a read from the file with this number; 0 is the image's own.
    ///
    /// # Errors
    /// [`Refused`] if the engine is full.
    ///
    /// # Safety
    /// As for [`Engine::read`].
    unsafe fn read_from(
        &mut self,
        file: u32,
        offset: u64,
        segments: &[Segment],
        token: u64,
    ) -> std::result::Result<(), Refused>;
}

/// The files of one image; there is at least its own.
#[derive(Clone)]
struct Files(Arc<[Arc<Storage>]>);

impl Files {
    fn own(&self) -> &Storage {
        self.get(0)
    }

    fn get(&self, file: u32) -> &Storage {
        &self.0[file as usize]
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Storage>> {
        self.0.iter()
    }
}

/// Whether this kernel lets us use io_uring with all that the engine needs. Asked once.
pub fn io_uring_available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| match uring::probe() {
        Ok(()) => true,
        Err(error) => {
            log::info!("io_uring is not available: {error}");
            false
        }
    })
}

/// Whether this kernel lets us use Linux AIO. Asked once.
pub fn aio_available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| match aio::probe() {
        Ok(()) => true,
        Err(error) => {
            log::info!("AIO is not available: {error}");
            false
        }
    })
}

/// An engine for files, of which the first is the image's own.
pub(crate) fn make(files: Vec<Arc<Storage>>, depth: usize, choice: Choice) -> Box<dyn FileEngine> {
    let files = &Files(files.into());
    let depth = depth.clamp(1, MAX_DEPTH);
    if choice.io_uring && io_uring_available() {
        match uring::Uring::new(files, depth) {
            Ok(engine) => return Box::new(engine),
            Err(source) => {
                static ONCE: Once = Once::new();
                ONCE.call_once(|| log::warn!("cannot make a ring: {source}; going on without io_uring"));
            }
        }
    }
    if choice.aio && aio_available() {
        match aio::Aio::new(files, depth) {
            Ok(engine) => return Box::new(engine),
            Err(source) => {
                static ONCE: Once = Once::new();
                ONCE.call_once(|| {
                    log::warn!("going on without AIO: {source} ({})", aio::host_limit());
                });
            }
        }
    }
    Box::new(sync::Sync::new(files, depth))
}

/// An engine for an image whose bytes are not in order.
pub(crate) fn make_mapped(
    files: Vec<Arc<Storage>>,
    map: &Arc<dyn Map>,
    depth: usize,
    choice: Choice,
) -> Box<dyn Engine> {
    let depth = depth.clamp(1, MAX_DEPTH);
    // Requests fall into pieces, though most do not.
    let inner = make(files, depth.saturating_mul(2), choice);
    Box::new(mapped::Mapped::new(inner, map, depth))
}

/// Requests that are finished and not yet reported.
type Ready = Vec<(u64, io::Result<u32>)>;

/// How many bytes a transfer moves, if it is one that engines take.
fn transfer_size(segments: &[Segment]) -> io::Result<u32> {
    vectored::total(segments)
        .and_then(|size| u32::try_from(size).ok())
        .filter(|size| *size <= MAX_REQUEST_BYTES)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Whether a transfer has to make the detour for direct I/O.
fn needs_detour(storage: &Storage, offset: u64, segments: &[Segment]) -> bool {
    storage.direct().is_some_and(|alignment| !alignment.accepts(offset, segments))
}

/// A transfer done at once, on this thread.
///
/// # Safety
/// As for [`vectored::transfer`].
unsafe fn transfer_now(
    storage: &Storage,
    direction: Direction,
    offset: u64,
    segments: &[Segment],
) -> io::Result<u32> {
    let size = transfer_size(segments)?;
    // Transfers use up their segments.
    let mut segments = segments.to_vec();
    // SAFETY: the caller's promise is the same.
    unsafe { storage.transfer(direction, offset, &mut segments)? };
    Ok(size)
}

/// Whether an error means that the file system or device lacks an operation, rather than that it went wrong.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY))
}

/// The `fallocate` modes that zero a range, the better one first. Not every file system has both; that the second one
/// frees space that was to be kept, or keeps it, is not visible in what is read.
fn zero_modes(may_free: bool) -> [i32; 2] {
    if may_free { [PUNCH, ZERO] } else { [ZERO, PUNCH] }
}

/// Makes a hole at once.
fn punch_now(storage: &Storage, offset: u64, len: u64) -> io::Result<()> {
    allocate(storage, PUNCH, offset, len)
}

fn allocate(storage: &Storage, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let narrow = |value| libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG));
    fallocate(storage.file(), mode, narrow(offset)?, narrow(len)?)
}

/// Fills a range with zeros at once.
fn zero_now(storage: &Storage, offset: u64, len: u64, may_free: bool) -> io::Result<()> {
    let [best, other] = zero_modes(may_free);
    match allocate(storage, best, offset, len) {
        Err(error) if is_unsupported(&error) => allocate(storage, other, offset, len),
        result => result,
    }
}
