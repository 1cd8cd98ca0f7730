//! From a device's needs to a plugged function, in three steps: reserve, wire, plug.
//!
//! ```text
//! let place = Reservation::new(&segment, &device.needs(), slot)?;
//! device.wire(Grant { vectors: place.vectors(), doorbells: place.doorbells()?, … })?;
//! let plugged = place.plug(Arc::new(device))?;     // the guest sees it; dropping `plugged` takes it away
//! ```
//!
//! A function that was saved ([`Plugged::save`]) takes its place with [`Reservation::load`] instead; the other steps are the same.

use std::sync::Arc;

use device::{ApertureNeed, BarKind, Device, Needs, Node, PciNeeds, PlacedPci, Span, StateError, Vector};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::check_bar;
use crate::function::read_state;
use crate::state::{FunctionState, MsixState};
use crate::{Function, Msix, PciError, Segment, regs};

/// A slot and room for BARs, not yet seen by the guest; dropping it gives them back.
pub struct Reservation {
    segment: Arc<Segment>,
    needs: Needs,
    pci: PciNeeds,
    placed: PlacedPci,
    // What was taken for each BAR of `placed`.
    rooms: Vec<Option<Span>>,
    state: Option<(FunctionState, Option<MsixState>)>,
    msix: Option<Arc<Msix>>,
    doorbells: Vec<EventFd>,
    // The slot and the BARs are the guest's now.
    plugged: bool,
}

impl Reservation {
    /// Finds a place: in this slot, or in the lowest free one, with BARs as high as there is room.
    ///
    /// # Errors
    /// Needs that PCI cannot express, no slot, or no room.
    pub fn new(segment: &Arc<Segment>, needs: &Needs, slot: Option<u8>) -> Result<Self, PciError> {
        let mut this = Self::empty(segment, needs, slot)?;
        for need in this.pci.bars.clone() {
            let (index, size) = (need.index, need.size);
            let span = segment.allocate(need.kind, size).ok_or(PciError::WindowExhausted {
                segment: segment.number(),
                index,
                size,
            })?;
            this.add(index, need.kind, span, Some(span));
        }
        for need in this.pci.apertures.clone() {
            let span = segment
                .allocate_aperture(&need)
                .ok_or(PciError::ApertureExhausted { segment: segment.number(), length: need.length })?;
            this.placed.apertures.push(span);
        }
        Ok(this)
    }

    /// Takes the place that was had before.
    ///
    /// # Errors
    /// As for [`Reservation::new`], and a place that does not fit the device or is taken.
    pub fn again(segment: &Arc<Segment>, needs: &Needs, placed: &PlacedPci) -> Result<Self, PciError> {
        let mut this = Self::empty(segment, needs, Some(placed.slot))?;
        this.check_place(placed)?;
        for (index, kind, span) in &placed.bars {
            this.take(*index, *kind, *span, Some(*span))?;
        }
        this.take_apertures(placed)?;
        Ok(this)
    }

    /// Takes the place that a function had when [`Plugged::save`] gave this state. `placed` says where that was at boot; the guest
    /// may have moved BARs since, and what they had room in then is what is taken. The state is untrusted.
    ///
    /// # Errors
    /// As for [`Reservation::again`], and a state that is none of a function.
    pub fn load(
        segment: &Arc<Segment>,
        needs: &Needs,
        placed: &PlacedPci,
        node: Node,
    ) -> Result<Self, PciError> {
        let slot = placed.slot;
        let (state, msix) = read_state(node).map_err(|source| PciError::State { slot, source })?;
        let mut this = Self::empty(segment, needs, Some(slot))?;
        this.check_place(placed)?;
        if state.bars.len() != placed.bars.len() {
            return Err(PciError::Foreign { slot });
        }
        for ((index, kind, span), saved) in placed.bars.iter().zip(&state.bars) {
            let room = saved.room.map(|base| Span { base, length: span.length });
            this.take(*index, *kind, *span, room)?;
        }
        this.take_apertures(placed)?;
        this.state = Some((state, msix));
        Ok(this)
    }

    /// Whether a place is one for this device.
    fn check_place(&self, placed: &PlacedPci) -> Result<(), PciError> {
        let fits = |(need, (index, kind, span)): (&device::BarNeed, &(u8, BarKind, Span))| {
            (need.index, need.kind, need.size) == (*index, *kind, span.length)
                && span.base.is_multiple_of(span.length)
        };
        let bars = self.pci.bars.iter().zip(&placed.bars);
        let lengths = |need: &ApertureNeed, span: &Span| {
            (span.length != need.length).then_some((span.length, need.length))
        };
        let mut apertures = self.pci.apertures.iter().zip(&placed.apertures);
        if let Some((had, needed)) = apertures.find_map(|(need, span)| lengths(need, span)) {
            return Err(PciError::ApertureLength { slot: placed.slot, had, needed });
        }
        if placed.segment == self.segment.number()
            && placed.bars.len() == self.pci.bars.len()
            && placed.apertures.len() == self.pci.apertures.len()
            && bars.into_iter().all(fits)
        {
            return Ok(());
        }
        Err(PciError::Foreign { slot: placed.slot })
    }

    /// Takes room for a BAR that was at `span` at boot.
    fn take(&mut self, index: u8, kind: BarKind, span: Span, room: Option<Span>) -> Result<(), PciError> {
        if let Some(room) = room
            && !(room.base.is_multiple_of(room.length) && self.segment.reserve(kind, room))
        {
            return Err(PciError::Replay { index, span: room });
        }
        self.add(index, kind, span, room);
        Ok(())
    }

    /// Takes room for apertures where they were; the guest does not move them.
    fn take_apertures(&mut self, placed: &PlacedPci) -> Result<(), PciError> {
        for (need, span) in self.pci.apertures.iter().zip(&placed.apertures) {
            if !(span.base.is_multiple_of(need.align) && self.segment.reserve_aperture(*span)) {
                return Err(PciError::ApertureReplay { span: *span });
            }
            self.placed.apertures.push(*span);
        }
        Ok(())
    }

    fn add(&mut self, index: u8, kind: BarKind, span: Span, room: Option<Span>) {
        self.placed.bars.push((index, kind, span));
        self.rooms.push(room);
    }

    /// A slot without BARs.
    fn empty(segment: &Arc<Segment>, needs: &Needs, slot: Option<u8>) -> Result<Self, PciError> {
        let pci = needs.pci.clone().ok_or(PciError::NoFunction)?;
        check(&pci)?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PciError::Doorbell);
        let doorbells = needs.doorbells.iter().map(|_| event()).collect::<Result<_, _>>()?;
        let msix = pci.msix.map(|need| Arc::new(Msix::new(need, segment.msi.clone())));
        let slot = segment.take_slot(slot)?;
        let placed = PlacedPci { segment: segment.number(), slot, bars: Vec::new(), apertures: Vec::new() };
        let (segment, needs) = (segment.clone(), needs.clone());
        let (rooms, state) = (Vec::new(), None);
        Ok(Reservation { segment, needs, pci, placed, rooms, state, msix, doorbells, plugged: false })
    }

    /// Where the function will be.
    pub fn placed(&self) -> &PlacedPci {
        &self.placed
    }

    /// The vectors to grant.
    pub fn vectors(&self) -> Vec<Arc<dyn Vector>> {
        self.msix.as_ref().map(|m| m.vectors()).unwrap_or_default()
    }

    /// The eventfds to grant.
    ///
    /// # Errors
    /// The process has no more descriptors.
    pub fn doorbells(&self) -> Result<Vec<EventFd>, PciError> {
        self.doorbells.iter().map(|e| e.try_clone().map_err(PciError::Doorbell)).collect()
    }

    /// Shows the wired device to the guest.
    ///
    /// # Errors
    /// The capabilities do not fit configuration space, or the state is none of this function.
    pub fn plug(mut self, device: Arc<dyn Device>) -> Result<Plugged, PciError> {
        let doorbells =
            self.needs.doorbells.iter().copied().zip(std::mem::take(&mut self.doorbells)).collect();
        let function = Function::new(device, &self.pci, &self.placed, self.msix.take(), doorbells)?;
        if let Some((state, msix)) = self.state.take() {
            let slot = self.placed.slot;
            function.load(&state, msix.as_ref()).map_err(|source| PciError::State { slot, source })?;
        }
        let function = Arc::new(function);
        self.plugged = true;
        self.segment.plug(function.clone(), &self.placed, &self.rooms);
        Ok(Plugged { segment: self.segment.clone(), placed: self.placed.clone(), function })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.plugged {
            for span in self.rooms.iter().flatten().chain(&self.placed.apertures) {
                self.segment.free(*span);
            }
            self.segment.free_slot(self.placed.slot);
        }
    }
}

/// A function that the guest sees; dropping it takes it away and gives back slot, BARs, doorbells and, with the last handle to
/// the function, interrupt sources and the device.
pub struct Plugged {
    segment: Arc<Segment>,
    placed: PlacedPci,
    function: Arc<Function>,
}

impl Plugged {
    /// Lets the guest eject the function ([`Segment::eject`]).
    pub fn removable(&self) {
        self.segment.set_removable(self.placed.slot);
    }

    /// The function's state, for [`Reservation::load`]; the device is stopped and saves its own.
    ///
    /// # Errors
    /// None in practice.
    pub fn save(&self) -> Result<Node, StateError> {
        self.segment.save_function(self.placed.slot, &self.function)
    }

    /// Where it was placed; the guest may have moved BARs since.
    pub fn placed(&self) -> &PlacedPci {
        &self.placed
    }

    /// The function.
    pub fn function(&self) -> &Arc<Function> {
        &self.function
    }

    /// The segment.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        self.segment.unplug(self.placed.slot);
        self.placed.apertures.iter().for_each(|span| self.segment.free(*span));
    }
}

/// Whether PCI can express the needs.
fn check(pci: &PciNeeds) -> Result<(), PciError> {
    let mut used = 0u8;
    for bar in &pci.bars {
        check_bar(bar.index, bar.kind, bar.size)?;
        let registers = if bar.kind == BarKind::Memory32 { 0b1 } else { 0b11 } << bar.index;
        if used & registers != 0 {
            return Err(PciError::Bar { index: bar.index, size: bar.size });
        }
        used |= registers;
    }
    let Some(need) = pci.msix else { return Ok(()) };
    let size = pci.bars.iter().find(|b| b.index == need.bar).map_or(0, |b| b.size);
    let vectors = u64::from(need.vectors);
    let table = Span { base: need.table.into(), length: regs::msix::ENTRY as u64 * vectors };
    let pending = Span { base: need.pending.into(), length: 8 * vectors.div_ceil(64) };
    let fits = |s: Span| s.base.is_multiple_of(8) && s.base + s.length <= size;
    let apart = table.base + table.length <= pending.base || pending.base + pending.length <= table.base;
    let possible = (1..=regs::msix::VECTORS).contains(&need.vectors);
    if possible && fits(table) && fits(pending) && apart {
        Ok(())
    } else {
        Err(PciError::Msix { vectors: need.vectors })
    }
}
