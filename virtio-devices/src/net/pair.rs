//! A queue pair of a tap, and whether the kernel spreads frames to it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::debug;
use net_util::{MacAddr, Tap, TapSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::held::Held;

/// All pairs of one device, first to last. Kept across reboots, so that the tap stays.
#[derive(Debug)]
pub(super) struct Pairs {
    pub(super) name: String,
    pub(super) list: Vec<Pair>,
    /// The only address that a macvtap has frames for.
    pub(super) mac: Option<MacAddr>,
    /// The kernel packs UDP datagrams.
    pub(super) packs_datagrams: bool,
}

impl Pairs {
    /// Takes over the taps; all but the first pair are taken out of use.
    pub(super) fn new(set: TapSet) -> Result<Self, PairError> {
        let name = set.name().to_owned();
        let taps = set.into_taps();
        // A tap of a single queue cannot be detached; nor need it be.
        let detachable = taps.len() > 1;
        let first = &taps[0];
        let (mac, packs_datagrams) = (first.own_mac(), first.packs_datagrams()?);
        let list = taps.into_iter().map(|tap| Pair::new(tap, detachable)).collect::<Result<Vec<_>, _>>()?;
        let pairs = Pairs { name, list, mac, packs_datagrams };
        pairs.use_first(1)?;
        Ok(pairs)
    }

    /// Puts the first `count` pairs into use and takes the others out of it.
    pub(super) fn use_first(&self, count: usize) -> Result<(), net_util::Error> {
        for (i, pair) in self.list.iter().enumerate() {
            pair.set_active(i < count)?;
        }
        Ok(())
    }

    /// Puts a pair into use or takes it out of it, apart from the first.
    pub(super) fn set_in_use(&self, index: usize, used: bool) -> Result<(), net_util::Error> {
        match self.list.get(index) {
            Some(pair) if index > 0 => pair.set_active(used),
            _ => Ok(()),
        }
    }

    /// How many are in use.
    pub(super) fn in_use(&self) -> usize {
        self.list.iter().filter(|pair| *pair.active()).count()
    }
}

/// Why the pairs could not be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum PairError {
    #[error(transparent)]
    Tap(#[from] net_util::Error),
    #[error("cannot make an event for a queue pair")]
    Event(#[source] io::Error),
}

/// One queue pair.
#[derive(Debug)]
pub(super) struct Pair {
    /// For the thread that receives.
    pub(super) rx: Tap,
    /// The same for transmission, waited for apart from the other.
    pub(super) tx: Tap,
    /// Told when the pair comes into use or goes out of it.
    pub(super) changed: EventFd,
    detachable: bool,
    active: Mutex<bool>,
    held: Mutex<Held>,
}

impl Pair {
    fn new(rx: Tap, detachable: bool) -> Result<Self, PairError> {
        let tx = rx.try_clone()?;
        let changed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PairError::Event)?;
        Ok(Pair { rx, tx, changed, detachable, active: Mutex::new(true), held: Mutex::default() })
    }

    /// Whether the pair is in use. While the guard is held this does not change: whoever receives holds it until the
    /// frames are handed over, so that none is once the driver was told that the pair is out of use.
    pub(super) fn active(&self) -> MutexGuard<'_, bool> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The frame that waits for buffers, if one does.
    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_active(&self, wanted: bool) -> Result<(), net_util::Error> {
        let mut active = self.active();
        if !self.detachable || *active == wanted {
            return Ok(());
        }
        self.rx.set_attached(wanted)?;
        *active = wanted;
        drop(active);
        if let Err(e) = self.changed.write(1) {
            // Only a full counter refuses, and then the event is pending already.
            debug!("event of a queue pair: {e}");
        }
        Ok(())
    }

    /// Throws away what the tap holds, which was meant for an earlier driver and its offloads.
    pub(super) fn drain(&self) {
        let mut byte = [0u8; net_util::VNET_HDR_LEN];
        let iov = [libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() }];
        for _ in 0..MAX_DRAIN {
            // SAFETY: the one buffer is `byte`.
            if unsafe { self.rx.readv(&iov) }.is_err() {
                return;
            }
        }
    }
}

/// Most frames thrown away at once: a busy network cannot hold up a driver's start.
const MAX_DRAIN: usize = 4096;

impl Drop for Pair {
    fn drop(&mut self) {
        // A descriptor that was handed over goes back attached, as it came.
        if let Err(e) = self.set_active(true) {
            debug!("fd {}: {e}", self.rx.as_raw_fd());
        }
    }
}
