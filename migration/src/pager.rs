//! The way back that lets the machine run at once: pages are read when they are first touched, and in order meanwhile.
//!
//! One thread, `pager`, serves whoever waits for a page, and reads ahead in small steps while nobody does. When all data is in memory it
//! ends, and nothing of it is left. Only data is watched: holes of the file are ordinary memory from the start.
//!
//! A page that cannot be read is never replaced by another. The thread says so once and serves nobody any more; who waits goes on waiting
//! (a signal ends the wait of a virtual CPU) until the pager is dropped, when missing pages become zeros. So the owner first sees to it that no
//! virtual CPU enters the guest again, and then drops the pager.
//!
//! Memory that other processes have mapped is not for this: they would not wait.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use device::ram::RamMap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::backing::Backing;
use crate::extents::Finder;
use crate::files::check;
use crate::presence::host_page;
use crate::userfault::{Filled, Userfault};
use crate::write::next_run;
use crate::{Error, PAGE, Progress, calls, mapping};

/// Bytes that are read ahead in one step; who faults meanwhile waits for it.
const STEP: u64 = 256 << 10;
/// Bytes around a touched page that are read with it.
const AROUND: u64 = 64 << 10;
/// Bytes that the host is told of before they are read.
const AHEAD: u64 = 4 << 20;
/// How long the kernel is left alone when it says that it is busy.
const BUSY: Duration = Duration::from_micros(50);

/// What the thread and its owner share.
struct Shared {
    progress: Progress,
    /// The file, until everything is in memory.
    backing: Mutex<Option<Backing>>,
    failed: AtomicBool,
}

/// Memory that is being paged in. Dropping it ends that at once, complete or not; see above for what that means.
pub struct Pager {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    /// Begins. `ram` is private anonymous memory or a memory file of ours, has the ranges of the file, and nobody has touched it.
    ///
    /// `on_error` is called at most once, on the pager's thread: the machine has to be stopped. It must not wait for that, nor drop the pager.
    ///
    /// # Errors
    /// Other ranges; the host has no userfaultfd, or not for us, or refuses otherwise.
    pub(crate) fn start(
        backing: &Backing,
        ram: &RamMap,
        on_error: impl FnOnce(Error) + Send + 'static,
    ) -> Result<Self, Error> {
        let fail = |action| move |source| Error::Userfault { action, hint: "", source };
        backing.check_same(ram)?;
        if host_page() != PAGE {
            return Err(Error::Layout(format!("the host's pages have {} bytes", host_page())));
        }
        let userfault = Userfault::open()?;
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(fail("make an event"))?);
        let stretches = stretches(backing, ram)?;
        for stretch in &stretches {
            userfault.register(stretch.host.clone()).map_err(fail("register memory"))?;
        }
        let shared = Arc::new(Shared {
            progress: Progress::new(),
            backing: Mutex::new(Some(backing.clone())),
            failed: AtomicBool::new(false),
        });
        let missing: u64 = stretches.iter().map(|s| s.host.end - s.host.start).sum();
        shared.progress.begin(missing);
        let mut work = Work {
            userfault,
            stop: stop.clone(),
            shared: shared.clone(),
            backing: Some(backing.clone()),
            ram: Some(ram.clone()),
            handled: vec![0; usize::try_from(missing / PAGE).unwrap_or(0).div_ceil(64)],
            stretches,
            missing,
            cursor: 0,
            told: 0,
            finder: Finder::default(),
            buffer: vec![0; STEP as usize],
        };
        let thread = thread::Builder::new()
            .name("pager".into())
            .spawn(move || {
                // A panic must not close the descriptor: zeros would take the place of what is missing.
                let run = || {
                    calls::PAGER.enter().map_err(io::Error::other).map_err(fail("confine a thread"))?;
                    work.run()
                };
                let ended = catch_unwind(AssertUnwindSafe(run))
                    .unwrap_or_else(|_| Err(fail("go on")(io::Error::other("the pager panicked"))));
                if let Err(e) = ended {
                    work.shared.failed.store(true, Ordering::Release);
                    on_error(e);
                    work.wait_for_stop();
                }
            })
            .map_err(fail("start a thread"))?;
        Ok(Pager { shared, stop, thread: Some(thread) })
    }

    /// How much is in memory. Cancelling it does nothing: drop the pager instead.
    pub fn progress(&self) -> &Progress {
        &self.shared.progress
    }

    /// Whether everything is in memory; then the pager is of no further use.
    pub fn done(&self) -> bool {
        self.backing().is_none()
    }

    /// Whether a page could not be read.
    pub fn failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// The file behind memory, while not everything is there: what [`crate::Memory::behind`] wants.
    pub fn backing(&self) -> Option<Backing> {
        self.shared.backing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if let Err(e) = self.stop.write(1) {
            log::error!("cannot stop the pager: {e}");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the pager's error handler panicked");
        }
    }
}

/// A part of memory whose content is in the file.
struct Stretch {
    /// Our addresses.
    host: Range<u64>,
    /// Offset in the file.
    offset: u64,
    /// Number of its first page among those of all stretches.
    first: u64,
}

/// What is to be paged in, by ascending host address.
fn stretches(backing: &Backing, ram: &RamMap) -> Result<Vec<Stretch>, Error> {
    let plan = mapping::plan(backing)?;
    let mut stretches = Vec::with_capacity(plan.len());
    for ((span, base), region) in backing.ranges().zip(ram.iter()) {
        debug_assert_eq!(span.base, region.start_addr().raw_value());
        let end = base + span.length;
        let from = plan.partition_point(|p| p.start < base);
        for part in plan[from..].iter().take_while(|p| p.start < end) {
            let host = region.as_ptr() as u64 + (part.start - base);
            stretches.push(Stretch {
                host: host..host + (part.end - part.start),
                offset: part.start,
                first: 0,
            });
        }
    }
    stretches.sort_unstable_by_key(|s| s.host.start);
    let mut first = 0;
    for stretch in &mut stretches {
        stretch.first = first;
        first += (stretch.host.end - stretch.host.start) / PAGE;
    }
    Ok(stretches)
}

struct Work {
    userfault: Userfault,
    stop: Arc<EventFd>,
    shared: Arc<Shared>,
    /// Both until all is done.
    backing: Option<Backing>,
    ram: Option<RamMap>,
    stretches: Vec<Stretch>,
    /// One bit a page: it was put into memory, or is zero and need not be.
    handled: Vec<u64>,
    /// Bytes that were not handled yet.
    missing: u64,
    /// The number of the page to be read ahead next.
    cursor: u64,
    /// The number of the page up to which the host was told.
    told: u64,
    /// For what is read ahead.
    finder: Finder,
    buffer: Vec<u8>,
}

impl Work {
    /// Pages in until all is there, or until the pager is dropped.
    fn run(&mut self) -> Result<(), Error> {
        let fail = |source| Error::Userfault { action: "wait for faults", hint: "", source };
        let mut faults = Vec::new();
        while self.missing > 0 {
            let (fault, stop) = poll(&[self.userfault.as_raw_fd(), self.stop.as_raw_fd()]).map_err(fail)?;
            if stop {
                return Ok(());
            }
            if !fault {
                self.ahead()?;
                continue;
            }
            faults.clear();
            self.userfault.faults(&mut faults).map_err(fail)?;
            for address in &faults {
                self.touched(*address)?;
            }
        }
        for stretch in &self.stretches {
            self.userfault.unregister(stretch.host.clone()).map_err(|source| Error::Userfault {
                action: "unregister memory",
                hint: "",
                source,
            })?;
        }
        self.shared.progress.finish();
        *self.shared.backing.lock().unwrap_or_else(PoisonError::into_inner) = None;
        (self.backing, self.ram) = (None, None);
        Ok(())
    }

    fn wait_for_stop(&self) {
        if let Err(e) = device::ready(self.stop.as_raw_fd(), libc::POLLIN, Duration::MAX) {
            log::warn!("the pager cannot wait: {e}");
        }
    }

    /// Puts the page at an address of ours into memory, and those around it that are missing.
    fn touched(&mut self, address: u64) -> Result<(), Error> {
        let page = address / PAGE * PAGE;
        let at = self.stretches.partition_point(|s| s.host.end <= page);
        let Some((host, first)) =
            self.stretches.get(at).filter(|s| s.host.contains(&page)).map(|s| (s.host.clone(), s.first))
        else {
            // Not ours (any more); whoever waits may look again.
            return self.wake(page..page + PAGE);
        };
        let number = first + (page - host.start) / PAGE;
        if self.is_handled(number) {
            // Zeros that were left out, or a page that was given back since.
            return self.fill(at, number..number + 1, Some(number));
        }
        let around = page / AROUND * AROUND;
        let lowest = first + (around.max(host.start) - host.start) / PAGE;
        let highest = first + ((around + AROUND).min(host.end) - host.start) / PAGE;
        let start = (lowest..number).rev().find(|n| self.is_handled(*n)).map_or(lowest, |n| n + 1);
        let end = (number..highest).find(|n| self.is_handled(*n)).unwrap_or(highest);
        self.fill(at, start..end, Some(number))
    }

    /// The first of these pages of a stretch that are data in the file. Holes are not read: that would fill the host's cache with zeros.
    fn next_data(&mut self, at: usize, pages: Range<u64>) -> Result<Option<Range<u64>>, Error> {
        let Some(backing) = &self.backing else { return Ok(None) };
        let stretch = &self.stretches[at];
        let offset = |page: u64| stretch.offset + (page - stretch.first) * PAGE;
        let number = |offset: u64| stretch.first + (offset - stretch.offset) / PAGE;
        let found = self
            .finder
            .next(backing.file(), offset(pages.start)..offset(pages.end))
            .map_err(|e| Error::file("look at", backing.path(), e))?;
        if found.as_ref().is_none_or(|data| data.start > offset(pages.start)) {
            // What was cut off would look like a hole, too.
            backing.check_length()?;
        }
        Ok(found.map(|data| number(data.start)..number(data.end)))
    }

    /// Reads the next step of what is missing.
    fn ahead(&mut self) -> Result<(), Error> {
        let last = self.stretches.last().map_or(0, |s| s.first + (s.host.end - s.host.start) / PAGE);
        let Some(start) = (self.cursor..last).find(|n| !self.is_handled(*n)) else {
            self.cursor = last;
            return Ok(());
        };
        let at = self.stretches.partition_point(|s| s.first <= start) - 1;
        let Stretch { host, first, .. } = &self.stretches[at];
        let behind = first + (host.end - host.start) / PAGE;
        let data = self.next_data(at, start..behind)?;
        let Some(Range { start: from, end: to }) = data else {
            self.handle(start..behind);
            self.cursor = behind;
            return Ok(());
        };
        self.handle(start..from);
        if from + STEP / PAGE > self.told {
            let known = from.max(self.told);
            self.told = to.min(from + AHEAD / PAGE);
            if self.told > known {
                let offset = self.stretches[at].offset + (known - self.stretches[at].first) * PAGE;
                advise(self.backing.as_ref(), offset, (self.told - known) * PAGE);
            }
        }
        let Some(from) = (from..to).find(|n| !self.is_handled(*n)) else {
            self.cursor = to;
            return Ok(());
        };
        let most = to.min(from + STEP / PAGE);
        let end = (from..most).find(|n| self.is_handled(*n)).unwrap_or(most);
        self.cursor = end;
        self.fill(at, from..end, None)
    }

    /// Puts pages of one stretch, at most [`STEP`] bytes, into memory. Zeros need no page until somebody touches them, so that of them only `touched` is
    /// put there.
    fn fill(&mut self, at: usize, pages: Range<u64>, touched: Option<u64>) -> Result<(), Error> {
        let Some(backing) = self.backing.clone() else { return Ok(()) };
        let stretch = &self.stretches[at];
        let skip = (pages.start - stretch.first) * PAGE;
        let (address, offset) = (stretch.host.start + skip, stretch.offset + skip);
        let length = usize::try_from((pages.end - pages.start) * PAGE).unwrap_or(0);
        let touched = touched.map(|number| ((number - pages.start) * PAGE) as usize);
        let mut buffer = std::mem::take(&mut self.buffer);
        let bytes = &mut buffer[..length];
        backing.file().read_exact_at(bytes, offset).map_err(|e| Error::file("read", backing.path(), e))?;
        let mut done = 0;
        while done < length {
            let run = next_run(bytes, done).unwrap_or(length..length);
            if let Some(zero) = touched.filter(|zero| (done..run.start).contains(zero)) {
                let zero = address + zero as u64;
                self.put(zero..zero + PAGE, None)?;
            }
            self.put(address + run.start as u64..address + run.end as u64, Some(&bytes[run.clone()]))?;
            done = run.end;
        }
        self.buffer = buffer;
        self.handle(pages);
        Ok(())
    }

    fn handle(&mut self, pages: Range<u64>) {
        for page in pages {
            if !self.is_handled(page) {
                self.handled[(page / 64) as usize] |= 1 << (page % 64);
                self.missing -= PAGE;
                self.shared.progress.advance(PAGE);
            }
        }
    }

    /// Makes pages with this content, or of zeros.
    fn put(&self, range: Range<u64>, bytes: Option<&[u8]>) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            let filled = match bytes {
                Some(bytes) => self.userfault.copy(at, &bytes[(at - range.start) as usize..]),
                None => self.userfault.zero(at..range.end),
            };
            match filled {
                Ok(Filled::Bytes(length)) => at += length,
                Ok(Filled::Present) => {
                    self.wake(at..at + PAGE)?;
                    at += PAGE;
                }
                Ok(Filled::Again) => {
                    if self.stop_wanted() {
                        return Ok(());
                    }
                    thread::sleep(BUSY);
                }
                Ok(Filled::Gone) => return Ok(()),
                Err(source) => {
                    return Err(Error::Userfault { action: "fill a page", hint: "", source });
                }
            }
        }
        Ok(())
    }

    fn wake(&self, range: Range<u64>) -> Result<(), Error> {
        self.userfault.wake(range).map_err(|source| Error::Userfault {
            action: "wake who waits",
            hint: "",
            source,
        })
    }

    fn stop_wanted(&self) -> bool {
        poll(&[self.userfault.as_raw_fd(), self.stop.as_raw_fd()]).is_ok_and(|(_, stop)| stop)
    }

    fn is_handled(&self, page: u64) -> bool {
        self.handled[(page / 64) as usize] >> (page % 64) & 1 == 1
    }
}

/// Which of two descriptors can be read now.
fn poll(fds: &[libc::c_int; 2]) -> io::Result<(bool, bool)> {
    let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: the kernel reads and writes two structures, which live during the call.
    match check(unsafe { libc::poll(polls.as_mut_ptr(), 2, 0) }) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
        Err(_) => Ok((false, false)),
        Ok(_) => Ok((polls[0].revents != 0, polls[1].revents != 0)),
    }
}

/// Lets the host begin to read.
fn advise(backing: Option<&Backing>, offset: u64, length: u64) {
    let (Some(backing), Ok(offset), Ok(length)) = (backing, i64::try_from(offset), i64::try_from(length))
    else {
        return;
    };
    // SAFETY: advice about an open file touches no memory.
    let answer =
        unsafe { libc::posix_fadvise(backing.file().as_raw_fd(), offset, length, libc::POSIX_FADV_WILLNEED) };
    if answer != 0 {
        log::trace!("posix_fadvise: {}", io::Error::from_raw_os_error(answer));
    }
}
