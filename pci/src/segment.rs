//! A segment: one bus of 32 slots, the address windows its BARs come from, and the address map kept in line with them.
//!
//! The guest moves BARs and switches decoding whenever it likes, on several vCPUs at once. [`Segment::sync`] compares what the
//! functions' registers say with what the address map holds and changes the map; it may be called at any time, in any order.
//! A BAR that the guest puts outside the windows or onto another one answers nowhere until it is moved again.
//!
//! Lock order: the map's lock, then a function's configuration space. Configuration accesses find their function without a lock.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use device::limit::LogLimit;
use device::{ApertureNeed, BarKind, Bus, Node, PlacedPci, Region, Span, StateError, guest_warn};
use vmm_sys_util::eventfd::EventFd;

use crate::bridge::HostBridge;
use crate::function::read_state;
use crate::{BarAllocator, Function, MsiSource, PciError};

/// Slots of a bus.
pub const SLOTS: u8 = 32;

static MISPLACED: LogLimit = LogLimit::new();

/// Turns register writes into eventfds: the board passes its hypervisor.
pub trait Doorbells: Send + Sync {
    /// Signals `event` whenever the guest writes to this address of memory.
    ///
    /// # Errors
    /// What the hypervisor answered; writes go on to arrive as register writes.
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Doorbells::add`].
    ///
    /// # Errors
    /// What the hypervisor answered.
    fn remove(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// What a segment is given.
pub struct SegmentGrant {
    /// Where 32-bit BARs go.
    pub low: Span,
    /// Where 64-bit BARs go.
    pub high: Span,
    /// The machine's memory space.
    pub memory: Arc<Bus>,
    /// Interrupt sources.
    pub msi: Arc<dyn MsiSource>,
    /// Doorbells, where the hypervisor has them.
    pub doorbells: Option<Arc<dyn Doorbells>>,
}

type Slots = [Option<Arc<Function>>; SLOTS as usize];

/// One PCI segment (an ACPI `_SEG`) with its only bus.
pub struct Segment {
    number: u16,
    memory: Arc<Bus>,
    pub(crate) msi: Arc<dyn MsiSource>,
    doorbells: Option<Arc<dyn Doorbells>>,
    slots: ArcSwap<Slots>,
    map: Mutex<Map>,
}

/// Who holds what; changed only under the lock.
struct Map {
    // Bit n: slot n is reserved or plugged.
    taken: u32,
    // Bit n: slot n is left to devices that ask for it.
    aside: u32,
    // Bit n: the function in slot n may leave.
    removable: u32,
    // Bit n: the function in slot n has left the guest's sight and still holds its room.
    ejected: u32,
    // Not all functions are back yet: nobody answers.
    gathering: bool,
    low: BarAllocator,
    high: BarAllocator,
    bars: Vec<Held>,
}

/// A BAR of a plugged function.
struct Held {
    slot: u8,
    function: Arc<Function>,
    index: u8,
    kind: BarKind,
    // What the allocator has noted for it: the last valid place the guest chose.
    reserved: Option<Span>,
    size: u64,
    // Where it answers now.
    claimed: Option<u64>,
    // Addresses and numbers of doorbells in place.
    doorbells: Vec<(u64, usize)>,
}

impl Segment {
    /// An empty segment; segment 0 has the host bridge in slot 0.
    ///
    /// # Errors
    /// None in practice: the host bridge fits.
    pub fn new(number: u16, grant: SegmentGrant) -> Result<Arc<Self>, PciError> {
        let mut slots = Slots::default();
        if number == 0 {
            let placed = PlacedPci { segment: 0, slot: 0, bars: Vec::new(), apertures: Vec::new() };
            let bridge =
                Function::new(Arc::new(HostBridge), &HostBridge::pci_needs(), &placed, None, Vec::new())?;
            slots[0] = Some(Arc::new(bridge));
        }
        Ok(Arc::new(Segment {
            number,
            memory: grant.memory,
            msi: grant.msi,
            doorbells: grant.doorbells,
            slots: ArcSwap::from_pointee(slots),
            map: Mutex::new(Map {
                taken: u32::from(number == 0),
                aside: 0,
                removable: 0,
                ejected: 0,
                gathering: false,
                low: BarAllocator::new(grant.low),
                high: BarAllocator::new(grant.high),
                bars: Vec::new(),
            }),
        }))
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The function in a slot.
    pub fn function(&self, slot: u8) -> Option<Arc<Function>> {
        self.slots.load().get(usize::from(slot))?.clone()
    }

    /// Leaves slots to the devices that will ask for them by number.
    pub fn set_aside(&self, slots: impl IntoIterator<Item = u8>) {
        let bits = slots.into_iter().filter(|s| *s < SLOTS).fold(0, |bits, slot| bits | 1 << slot);
        self.map().aside |= bits;
    }

    /// Gives away the slots that were left and that nobody asked for.
    pub fn end_aside(&self) {
        self.map().aside = 0;
    }

    /// Lets no BAR answer until [`Segment::gathered`]: a machine that was saved is put together again. Otherwise a BAR that the guest put onto
    /// another one would take the other's room, if its function comes first.
    pub fn gather(&self) {
        self.map().gathering = true;
    }

    /// All functions are back: BARs answer where they did.
    pub fn gathered(&self) {
        let mut map = self.map();
        map.gathering = false;
        self.settle(&mut map);
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hides what the guest ejects: of these slots (bit n: slot n), the functions that may leave, for which it tells. They read as
    /// empty slots from now on and answer at no address; slot and room are given back when [`crate::Plugged`] is dropped.
    pub fn eject(&self, slots: u32) -> u32 {
        let mut map = self.map();
        let leaving = slots & map.removable & !map.ejected;
        if leaving == 0 {
            return 0;
        }
        map.ejected |= leaving;
        for slot in (0..SLOTS).filter(|slot| leaving >> slot & 1 != 0) {
            self.show(slot, None);
        }
        let mut bars = std::mem::take(&mut map.bars);
        for bar in bars.iter_mut().filter(|bar| leaving >> bar.slot & 1 != 0) {
            self.withdraw(bar);
        }
        map.bars = bars;
        // What they kept others from answering at is free now.
        self.settle(&mut map);
        leaving
    }

    /// Lets the guest eject the function in a slot.
    pub(crate) fn set_removable(&self, slot: u8) {
        self.map().removable |= 1 << slot;
    }

    /// Takes a slot: this one, or the lowest free one that is not set aside.
    pub(crate) fn take_slot(&self, wish: Option<u8>) -> Result<u8, PciError> {
        let segment = self.number;
        let mut map = self.map();
        let slot = match wish {
            Some(slot) if slot >= SLOTS => return Err(PciError::NoSlot { segment, slot }),
            Some(slot) if map.taken >> slot & 1 != 0 => return Err(PciError::SlotTaken { segment, slot }),
            Some(slot) => slot,
            None => match (map.taken | map.aside).trailing_ones() {
                free if free < u32::from(SLOTS) => free as u8,
                _ => return Err(PciError::SlotsExhausted { segment }),
            },
        };
        map.taken |= 1 << slot;
        Ok(slot)
    }

    /// Gives a slot back that has no function.
    pub(crate) fn free_slot(&self, slot: u8) {
        self.map().taken &= !(1 << slot);
    }

    /// Room for a BAR.
    pub(crate) fn allocate(&self, kind: BarKind, size: u64) -> Option<Span> {
        let mut map = self.map();
        match kind {
            BarKind::Memory32 => map.low.allocate(size),
            BarKind::Memory64 { .. } => map.high.allocate(size),
        }
    }

    /// This very room for a BAR.
    pub(crate) fn reserve(&self, kind: BarKind, span: Span) -> bool {
        self.map().room(kind, span).is_some_and(|room| room.reserve(span))
    }

    /// Room for an aperture.
    pub(crate) fn allocate_aperture(&self, need: &ApertureNeed) -> Option<Span> {
        self.map().high.allocate_aligned(need.length, need.align)
    }

    /// This very room for an aperture.
    pub(crate) fn reserve_aperture(&self, span: Span) -> bool {
        self.map().high.reserve(span)
    }

    /// Gives the room of an aperture back, or of a BAR that was never plugged.
    pub(crate) fn free(&self, span: Span) {
        self.map().free(span);
    }

    /// Shows a function to the guest; `rooms` is what was taken for its BARs.
    pub(crate) fn plug(&self, function: Arc<Function>, placed: &PlacedPci, rooms: &[Option<Span>]) {
        let mut map = self.map();
        for ((index, kind, span), room) in placed.bars.iter().zip(rooms) {
            map.bars.push(Held {
                slot: placed.slot,
                function: function.clone(),
                index: *index,
                kind: *kind,
                reserved: *room,
                size: span.length,
                claimed: None,
                doorbells: Vec::new(),
            });
        }
        self.show(placed.slot, Some(function));
        self.settle(&mut map);
    }

    /// Hides the function in a slot from the guest and gives back all it held.
    pub(crate) fn unplug(&self, slot: u8) {
        let mut map = self.map();
        self.show(slot, None);
        let bars = std::mem::take(&mut map.bars).into_iter();
        let (gone, stay): (Vec<_>, Vec<_>) = bars.partition(|b| b.slot == slot);
        map.bars = stay;
        for mut bar in gone {
            self.withdraw(&mut bar);
            if let Some(span) = bar.reserved {
                map.free(span);
            }
        }
        map.taken &= !(1 << slot);
        map.removable &= !(1 << slot);
        map.ejected &= !(1 << slot);
        self.settle(&mut map);
    }

    /// The state of the function in a slot, without its device.
    pub(crate) fn save_function(&self, slot: u8, function: &Function) -> Result<Node, StateError> {
        let map = self.map();
        function.save(|index| {
            let held = map.bars.iter().find(|b| b.slot == slot && b.index == index);
            held.and_then(|bar| bar.reserved).map(|span| span.base)
        })
    }

    /// The state of what the segment has without anybody having plugged it in: the host bridge of segment 0.
    ///
    /// # Errors
    /// None in practice.
    pub fn save(&self) -> Result<Option<Node>, StateError> {
        self.bridge().map(|bridge| bridge.save(|_| None)).transpose()
    }

    /// Goes on from a state that [`Segment::save`] gave; the state is untrusted.
    ///
    /// # Errors
    /// The state is not one of this segment.
    pub fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        let Some(bridge) = self.bridge() else { return device::state::none(node) };
        let (state, msix) = read_state(device::state::some(node)?)?;
        bridge.load(&state, msix.as_ref())
    }

    fn bridge(&self) -> Option<Arc<Function>> {
        (self.number == 0).then(|| self.function(0)).flatten()
    }

    fn show(&self, slot: u8, function: Option<Arc<Function>>) {
        let mut slots = Slots::clone(&self.slots.load());
        slots[usize::from(slot)] = function;
        self.slots.store(Arc::new(slots));
    }

    /// Brings the address map in line with what the guest wrote: the answer to [`device::Effect::Decode`].
    pub fn sync(&self) {
        self.settle(&mut self.map());
    }

    fn settle(&self, map: &mut Map) {
        if map.gathering {
            return;
        }
        // First everybody leaves, so that BARs can trade places.
        let mut bars = std::mem::take(&mut map.bars);
        let ejected = map.ejected;
        let present = |bar: &&mut Held| ejected >> bar.slot & 1 == 0;
        for bar in bars.iter_mut().filter(present) {
            let wanted = bar.function.bar(bar.index);
            if bar.claimed.is_some() && bar.claimed != wanted {
                self.withdraw(bar);
            }
            // A BAR that is switched off, or that is being sized, keeps its room: it will come back.
            if let Some(base) = wanted
                && bar.reserved.is_some_and(|span| span.base != base)
                && map.room(bar.kind, Span { base, length: bar.size }).is_some()
                && let Some(span) = bar.reserved.take()
            {
                map.free(span);
            }
        }
        for bar in bars.iter_mut().filter(present) {
            match bar.function.bar(bar.index) {
                Some(base) if bar.claimed.is_none() => self.enter(map, bar, base),
                _ => {}
            }
            self.ring(bar);
        }
        map.bars = bars;
    }

    /// Lets a BAR answer at `base`, if that is a place for it.
    fn enter(&self, map: &mut Map, bar: &mut Held, base: u64) {
        let span = Span { base, length: bar.size };
        if bar.reserved != Some(span) {
            let Some(room) = map.room(bar.kind, span) else { return };
            if !room.reserve(span) {
                guest_warn!(MISPLACED, "{} overlaps another BAR at {base:#x}", self.name(bar));
                return;
            }
            bar.reserved = Some(span);
        }
        match self.memory.claim(base, bar.size, bar.function.clone(), Region::Bar(bar.index)) {
            Ok(()) => bar.claimed = Some(base),
            Err(e) => guest_warn!(MISPLACED, "{} cannot answer: {e}", self.name(bar)),
        }
    }

    /// Puts the doorbells in place that came into use.
    fn ring(&self, bar: &mut Held) {
        let (Some(doorbells), Some(base)) = (&self.doorbells, bar.claimed) else { return };
        for (n, bell) in bar.function.doorbells().iter().enumerate() {
            let here =
                bell.bar == bar.index && bell.wanted() && !bar.doorbells.iter().any(|(_, have)| *have == n);
            let Some(address) = base.checked_add(bell.offset).filter(|_| here) else { continue };
            match doorbells.add(address, &bell.event) {
                Ok(()) => bar.doorbells.push((address, n)),
                Err(e) => guest_warn!(MISPLACED, "no doorbell for {} at {address:#x}: {e}", self.name(bar)),
            }
        }
    }

    /// Lets a BAR answer no more.
    fn withdraw(&self, bar: &mut Held) {
        for (address, n) in std::mem::take(&mut bar.doorbells) {
            let event = &bar.function.doorbells()[n].event;
            if let Some(Err(e)) = self.doorbells.as_ref().map(|d| d.remove(address, event)) {
                log::error!("cannot remove the doorbell of {} at {address:#x}: {e}", self.name(bar));
            }
        }
        if let Some(base) = bar.claimed.take()
            && !self.memory.release(base)
        {
            log::error!("{} was not at {base:#x}", self.name(bar));
        }
    }

    fn name(&self, bar: &Held) -> String {
        format!("BAR {} of {:04x}:00:{:02x}.0", bar.index, self.number, bar.slot)
    }
}

impl Map {
    /// The window that a range lies in, if a BAR of this kind may be there. A 64-bit BAR may well be put below 4 GiB.
    fn room(&mut self, kind: BarKind, span: Span) -> Option<&mut BarAllocator> {
        if self.low.contains(span) {
            return Some(&mut self.low);
        }
        (kind != BarKind::Memory32 && self.high.contains(span)).then_some(&mut self.high)
    }

    fn free(&mut self, span: Span) {
        let room = if self.low.contains(span) { &mut self.low } else { &mut self.high };
        room.free(span.base);
    }
}
