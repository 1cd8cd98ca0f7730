//! Memory that a front end shares may be cut short by it at any time: it has the file. An access behind the new end raises SIGBUS,
//! which would end the process, and with it the other servers in it.
//!
//! A [`Guard`] on a mapping makes that bearable: the handler puts anonymous memory in place of the whole mapping and rings the
//! guard's bell. The thread that stumbled goes on with zeros, the server ends the connection.
//!
//! The handler takes no lock and allocates nothing. Faults elsewhere go to whoever handled them before.

use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Mappings that can be guarded at once, in all of the process.
const SLOTS: usize = 4096;

/// A mapping. The version is odd while the rest is being changed, so that the handler, which may run at any moment, can tell.
struct Slot {
    version: AtomicU32,
    start: AtomicUsize,
    /// 0 if the slot is free.
    end: AtomicUsize,
    bell: AtomicI32,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        version: AtomicU32::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        bell: AtomicI32::new(-1),
    }
}; SLOTS];

/// Held by those who change the table; the handler does not.
static CHANGE: Mutex<()> = Mutex::new(());

static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl Slot {
    fn set(&self, start: usize, end: usize, bell: i32) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.end.store(end, Ordering::SeqCst);
        self.bell.store(bell, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// The mapping, if the address is in it.
    fn covers(&self, address: usize) -> Option<(usize, usize, i32)> {
        let version = self.version.load(Ordering::SeqCst);
        let (start, end) = (self.start.load(Ordering::SeqCst), self.end.load(Ordering::SeqCst));
        let bell = self.bell.load(Ordering::SeqCst);
        let whole = version.is_multiple_of(2) && version == self.version.load(Ordering::SeqCst);
        (whole && start <= address && address < end).then_some((start, end, bell))
    }
}

/// See the module. It must go before its mapping does.
#[derive(Debug)]
pub(crate) struct Guard {
    slot: usize,
    /// Keeps the descriptor open that is in the table.
    _bell: EventFd,
}

impl Guard {
    /// Guards `length` bytes at `start`; `bell` rings when they are gone.
    pub(crate) fn new(start: *mut u8, length: usize, bell: &EventFd) -> io::Result<Guard> {
        let bell = bell.try_clone()?;
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        install()?;
        let free = TABLE.iter().position(|slot| slot.end.load(Ordering::SeqCst) == 0);
        let slot = free.ok_or_else(|| io::Error::other("there are too many mappings"))?;
        let start = start as usize;
        TABLE[slot].set(start, start.saturating_add(length), bell.as_raw_fd());
        Ok(Guard { slot, _bell: bell })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.slot].set(0, 0, -1);
    }
}

/// Installs the handler, once.
fn install() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: an all-zero sigaction is a valid value, and every field that counts is set below.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { (zeroed(), zeroed()) };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: asks for the present action only; the pointer is to a local.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Before the handler can run, so that it finds it.
    BEFORE.get_or_init(|| before);
    // SAFETY: the handler has the signature that SA_SIGINFO promises and does only what a handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn handler(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: errno is the thread's own; it is put back, for the code that was interrupted may be about to look at it.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo, which has an address for this signal.
    let address = unsafe { (*info).si_addr() } as usize;
    if !TABLE.iter().filter_map(|slot| slot.covers(address)).any(replace)
        && let Some(before) = BEFORE.get()
    {
        // The access is repeated when we return, and faults again: for them.
        // SAFETY: sigaction may be called from a handler; the action was that of this signal before.
        unsafe { libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut()) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts anonymous memory in place of a mapping; whether that worked.
fn replace((start, end, bell): (usize, usize, i32)) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: exactly a mapping that its owner has put under guard, and that is there as long as the guard is: nothing else is
    // replaced. Those who access it expect that its bytes change at any time.
    let got = unsafe { libc::mmap(start as *mut libc::c_void, end - start, access, flags, -1, 0) };
    let one = 1u64;
    // SAFETY: writes eight bytes of a local to an eventfd that the guard keeps open; write may be called from a handler.
    unsafe { libc::write(bell, (&raw const one).cast(), 8) };
    got != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::FromRawFd;
    use vm_memory::{FileOffset, MmapRegion};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn memory_that_is_cut_short_reads_as_zeros_and_rings() {
        // SAFETY: the name is a C string; the descriptor is new.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"cut".as_ptr(), 0)) };
        file.set_len(0x4000).unwrap();
        let map = |file: &File| {
            MmapRegion::<()>::from_file(FileOffset::new(file.try_clone().unwrap(), 0), 0x4000).unwrap()
        };
        let (region, other) = (map(&file), map(&file));
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let guard = Guard::new(region.as_ptr(), region.size(), &bell).unwrap();
        // SAFETY: within the mapping.
        unsafe { region.as_ptr().add(0x3000).write_volatile(7) };
        // SAFETY: as above.
        assert_eq!(unsafe { other.as_ptr().add(0x3000).read_volatile() }, 7);
        assert!(bell.read().is_err(), "nothing has happened yet");
        file.set_len(0x1000).unwrap();
        // SAFETY: as above; it faults, and the handler mends it.
        assert_eq!(unsafe { region.as_ptr().add(0x3000).read_volatile() }, 0);
        assert_eq!(bell.read().unwrap(), 1);
        // SAFETY: as above.
        unsafe { region.as_ptr().add(0x2000).write_volatile(9) };
        drop(guard);
        assert!(TABLE.iter().all(|slot| slot.covers(region.as_ptr() as usize).is_none()));
    }
}
