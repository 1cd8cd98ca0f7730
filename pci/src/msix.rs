//! MSI-X: the vector table, the pending bits, and the signals behind them (PCI Local Bus 3.0 §6.8.2).
//!
//! Each vector stands for a host interrupt source whose eventfd is also its pending bit: while the vector is masked the source is
//! detached, what is signalled stays in the eventfd's counter, and attaching delivers it. So a signal is one write to an eventfd,
//! takes no lock, cannot be lost against masking, and may come from another process.
//!
//! A source is made when its vector is first unmasked: a function without a driver has none.
//!
//! Lock order: the table's lock is a leaf but for the hypervisor's own; it is never taken to signal.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use device::limit::LogLimit;
use device::{MsiMessage, MsiRoute, MsixNeed, StateError, Vector, guest_warn};
use vmm_sys_util::eventfd::EventFd;

use crate::regs::msix::{CONTROL_ENABLE, CONTROL_MASK, ENTRY, VECTOR_MASKED};
use crate::state::{MsixEntry, MsixState};

static REFUSED: LogLimit = LogLimit::new();

/// Where interrupt sources come from: the board passes its hypervisor.
pub trait MsiSource: Send + Sync {
    /// A source of one's own, masked, with a non-blocking eventfd. While masked it keeps what is signalled and delivers it when a
    /// message is set.
    ///
    /// # Errors
    /// No source could be had.
    fn route(&self) -> io::Result<Arc<dyn MsiRoute>>;

    /// Runs `change`, in which any number of sources are updated, and makes the updates effective at its end.
    ///
    /// # Errors
    /// What the hypervisor answered.
    fn batch(&self, change: &mut dyn FnMut()) -> io::Result<()> {
        change();
        Ok(())
    }
}

/// The MSI-X structures of one function.
pub struct Msix {
    need: MsixNeed,
    source: Arc<dyn MsiSource>,
    vectors: Vec<MsixVector>,
    table: Mutex<Table>,
}

struct Table {
    enabled: bool,
    masked: bool,
    entries: Vec<Entry>,
}

struct Entry {
    // Address, data and vector control as the guest sees them.
    bytes: [u8; ENTRY],
    // What the source was last told.
    told: Option<MsiMessage>,
}

impl Entry {
    fn word(&self, n: usize) -> u32 {
        let b = &self.bytes[4 * n..];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }

    fn message(&self) -> MsiMessage {
        // The two low address bits are reserved and read as written, but the address is that of a double word.
        let address = u64::from(self.word(0) & !3) | u64::from(self.word(1)) << 32;
        MsiMessage { address, data: self.word(2) }
    }

    fn saved(&self) -> MsixEntry {
        let address = u64::from(self.word(0)) | u64::from(self.word(1)) << 32;
        MsixEntry { address, data: self.word(2), control: self.word(3) }
    }

    fn load(&mut self, saved: &MsixEntry) {
        self.bytes[..8].copy_from_slice(&saved.address.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&saved.data.to_le_bytes());
        self.bytes[12..].copy_from_slice(&saved.control.to_le_bytes());
    }

    fn masked(&self) -> bool {
        self.word(3) & VECTOR_MASKED != 0
    }
}

/// One vector.
#[derive(Default)]
struct MsixVector {
    route: OnceLock<Arc<dyn MsiRoute>>,
    // Signalled before there was a route.
    early: AtomicBool,
}

/// A vector as its device has it.
struct Handle {
    msix: Arc<Msix>,
    vector: u16,
}

impl Vector for Handle {
    fn signal(&self) {
        // It was made for one that exists.
        self.msix.vectors[usize::from(self.vector)].signal();
    }

    fn event(&self) -> io::Result<EventFd> {
        self.msix.route(self.vector)?.event().try_clone()
    }
}

impl MsixVector {
    fn signal(&self) {
        if let Some(route) = self.route.get() {
            return deliver(&**route);
        }
        self.early.store(true, Ordering::SeqCst);
        // Whoever made a route meanwhile may have looked too soon.
        if self.route.get().is_some() {
            self.flush();
        }
    }

    /// Passes an early signal on to the route; of those who find it, one does.
    fn flush(&self) {
        if let Some(route) = self.route.get()
            && self.early.swap(false, Ordering::SeqCst)
        {
            deliver(&**route);
        }
    }

    /// Whether a signal waits for the vector to be unmasked.
    fn pending(&self) -> bool {
        self.early.load(Ordering::SeqCst) || self.route.get().is_some_and(|r| readable(r.event()))
    }
}

fn deliver(route: &dyn MsiRoute) {
    // A full counter is a signal that is already pending.
    if let Err(e) = route.signal()
        && e.kind() != io::ErrorKind::WouldBlock
    {
        guest_warn!(REFUSED, "cannot signal interrupt source {}: {e}", route.gsi());
    }
}

/// Whether an eventfd's counter is not zero, without changing it.
fn readable(event: &impl AsRawFd) -> bool {
    device::ready(event.as_raw_fd(), libc::POLLIN, Duration::ZERO).is_ok_and(|e| e & libc::POLLIN != 0)
}

impl Msix {
    /// Structures with all vectors masked and MSI-X off.
    pub fn new(need: MsixNeed, source: Arc<dyn MsiSource>) -> Self {
        let masked = || {
            let mut bytes = [0; ENTRY];
            bytes[ENTRY - 4..].copy_from_slice(&VECTOR_MASKED.to_le_bytes());
            Entry { bytes, told: None }
        };
        let entries = (0..need.vectors).map(|_| masked()).collect();
        let vectors = (0..need.vectors).map(|_| MsixVector::default()).collect();
        let table = Mutex::new(Table { enabled: false, masked: false, entries });
        Msix { need, source, vectors, table }
    }

    /// The vectors, for the device.
    pub fn vectors(self: &Arc<Self>) -> Vec<Arc<dyn Vector>> {
        let handle = |vector| Arc::new(Handle { msix: self.clone(), vector }) as Arc<dyn Vector>;
        (0..self.need.vectors).map(handle).collect()
    }

    /// The source of a vector, made if there is none: its eventfd may be given to whoever shall interrupt directly. Masking applies
    /// to it all the same.
    ///
    /// # Errors
    /// No source could be had, or there is no such vector.
    pub fn route(&self, vector: u16) -> io::Result<Arc<dyn MsiRoute>> {
        let _table = self.lock();
        let vector = self.vectors.get(usize::from(vector)).ok_or(io::ErrorKind::NotFound)?;
        self.route_of(vector)
    }

    /// Called with the table locked, so that no two are made.
    fn route_of(&self, vector: &MsixVector) -> io::Result<Arc<dyn MsiRoute>> {
        if let Some(route) = vector.route.get() {
            return Ok(route.clone());
        }
        let route = vector.route.get_or_init({
            let route = self.source.route()?;
            || route
        });
        vector.flush();
        Ok(route.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offsets of the table in its BAR.
    pub fn table_range(&self) -> std::ops::Range<u64> {
        let start = u64::from(self.need.table);
        start..start + ENTRY as u64 * u64::from(self.need.vectors)
    }

    /// Offsets of the pending bits in their BAR: whole quad words.
    pub fn pending_range(&self) -> std::ops::Range<u64> {
        let start = u64::from(self.need.pending);
        start..start + 8 * u64::from(self.need.vectors).div_ceil(64)
    }

    /// The BAR of both.
    pub fn bar(&self) -> u8 {
        self.need.bar
    }

    /// Reads from the table, at any offset within it and any width; zeros beyond.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = self.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = place(at).and_then(|(n, i)| Some(table.entries.get(n)?.bytes[i])).unwrap_or(0);
        }
    }

    /// Writes to the table, at any offset within it and any width.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut table = self.lock();
        let mut touched = None;
        for (at, byte) in (offset..).zip(data) {
            let Some((n, i)) = place(at) else { break };
            if touched.is_some_and(|t| t != n) {
                self.follow(&mut table, touched);
            }
            let Some(entry) = table.entries.get_mut(n) else { break };
            entry.bytes[i] = *byte;
            touched = Some(n);
        }
        self.follow(&mut table, touched);
    }

    fn follow(&self, table: &mut Table, entry: Option<usize>) {
        if let Some(n) = entry {
            self.apply(table, n);
        }
    }

    /// Reads pending bits; zeros beyond. Writes to them do nothing (they are read-only).
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let table = self.lock();
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            *byte =
                (0..8).filter(|bit| self.waits(&table, first.saturating_add(*bit))).map(|bit| 1 << bit).sum();
        }
    }

    fn waits(&self, table: &Table, n: usize) -> bool {
        // What an attached source holds is being delivered.
        table.entries.get(n).is_some_and(|e| e.told.is_none()) && self.vectors[n].pending()
    }

    /// Follows the message control register.
    pub(crate) fn control(&self, control: u16) {
        let mut table = self.lock();
        let (enabled, masked) = (control & CONTROL_ENABLE != 0, control & CONTROL_MASK != 0);
        if (table.enabled, table.masked) == (enabled, masked) {
            return;
        }
        (table.enabled, table.masked) = (enabled, masked);
        let batch = self.source.batch(&mut || {
            for n in 0..table.entries.len() {
                self.apply(&mut table, n);
            }
        });
        if let Err(e) = batch {
            guest_warn!(REFUSED, "cannot update interrupt sources: {e}");
        }
    }

    /// The state; nobody signals meanwhile.
    pub(crate) fn save(&self) -> MsixState {
        let table = self.lock();
        let pending = (0..self.need.vectors).filter(|n| self.waits(&table, usize::from(*n))).collect();
        let entries = table.entries.iter().map(Entry::saved).collect();
        MsixState { enabled: table.enabled, masked: table.masked, entries, pending }
    }

    /// Goes on from a state: live vectors get their sources, pending ones are signalled again. Returns message control.
    pub(crate) fn load(&self, saved: &MsixState) -> Result<u16, StateError> {
        let refuse = |what: String| Err(StateError::value::<MsixState>(what));
        let vectors = usize::from(self.need.vectors);
        if saved.entries.len() != vectors {
            return refuse(format!("entries has {} vectors, and there are {vectors}", saved.entries.len()));
        }
        if let Some(vector) = saved.pending.iter().find(|v| **v >= self.need.vectors) {
            return refuse(format!("pending has vector {vector}, and there are {vectors}"));
        }
        if let Some(pair) = saved.pending.windows(2).find(|pair| pair[0] >= pair[1]) {
            return refuse(format!("pending has vector {} after {}", pair[1], pair[0]));
        }
        let mut table = self.lock();
        for (entry, saved) in table.entries.iter_mut().zip(&saved.entries) {
            entry.load(saved);
        }
        drop(table);
        for vector in &saved.pending {
            self.vectors[usize::from(*vector)].signal();
        }
        let bit = |set, bit| if set { bit } else { 0 };
        let control = bit(saved.enabled, CONTROL_ENABLE) | bit(saved.masked, CONTROL_MASK);
        self.control(control);
        // To the guest's own writes a vector without a source is a vector that is silent; here somebody can be told.
        let table = self.lock();
        let dead = |e: &Entry| table.enabled && !table.masked && !e.masked() && e.told.is_none();
        match table.entries.iter().position(dead) {
            Some(n) => refuse(format!("vector {n} cannot be had again: no interrupt source")),
            None => Ok(control),
        }
    }

    /// Tells the source of a vector what the table says.
    fn apply(&self, table: &mut Table, n: usize) {
        let entry = &mut table.entries[n];
        let live = table.enabled && !table.masked && !entry.masked();
        let message = live.then(|| entry.message());
        if message == entry.told {
            return;
        }
        let update = self.route_of(&self.vectors[n]).and_then(|route| route.update(message));
        match update {
            Ok(()) => entry.told = message,
            Err(e) => {
                entry.told = None;
                guest_warn!(REFUSED, "cannot set interrupt vector {n} to {message:x?}: {e}");
            }
        }
    }
}

/// Entry and byte within it at an offset of the table.
fn place(offset: u64) -> Option<(usize, usize)> {
    let offset = usize::try_from(offset).ok()?;
    Some((offset / ENTRY, offset % ENTRY))
}
