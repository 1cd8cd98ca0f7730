//! A function: a device, seen through configuration space and BARs.
//!
//! Serves configuration registers and MSI-X structures and passes everything else on to the device. It never touches the address
//! map: a write that changes what it decodes answers with [`Effect::Decode`].
//!
//! Lock order: configuration space, then the MSI-X table. Neither is held while the device is called.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{
    BarKind, Device, DoorbellNeed, Effect, Node, PciNeeds, PlacedPci, Region, Registers, StateError,
};
use vmm_sys_util::eventfd::EventFd;

use crate::config::{ConfigSpace, LiveRange};
use crate::state::{BarState, FunctionState, MsixState};
use crate::{Msix, PciError, regs};

/// Name of the part of the state that is MSI-X.
const MSIX: &str = "msix";

/// Reads the state of a function and of its MSI-X structures, if it has any; what is in them is still to be checked.
pub(crate) fn read_state(mut node: Node) -> Result<(FunctionState, Option<MsixState>), StateError> {
    let msix = node.parts.remove(MSIX).map(Node::read).transpose()?;
    Ok((node.read()?, msix))
}

/// One PCI function.
pub struct Function {
    device: Arc<dyn Device>,
    segment: u16,
    bars: Vec<Bar>,
    live: Vec<LiveRange>,
    msix: Option<Arc<Msix>>,
    doorbells: Vec<Doorbell>,
    config: Mutex<ConfigSpace>,
}

#[derive(Clone, Copy)]
struct Bar {
    index: u8,
    kind: BarKind,
}

/// A register that can become an eventfd.
pub(crate) struct Doorbell {
    /// The BAR.
    pub(crate) bar: u8,
    /// Offset in the BAR.
    pub(crate) offset: u64,
    /// What it signals.
    pub(crate) event: EventFd,
    wanted: AtomicBool,
}

impl Doorbell {
    /// Whether it was ever rung.
    pub(crate) fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}

impl Function {
    /// A function at `placed`; `doorbells` are used when the board has them, from the first time each is rung: a queue that no
    /// driver uses costs the hypervisor nothing.
    ///
    /// # Errors
    /// The needs cannot be laid out in configuration space.
    pub fn new(
        device: Arc<dyn Device>,
        needs: &PciNeeds,
        placed: &PlacedPci,
        msix: Option<Arc<Msix>>,
        doorbells: Vec<(DoorbellNeed, EventFd)>,
    ) -> Result<Self, PciError> {
        let (config, live) = ConfigSpace::new(needs, placed)?;
        let bars = placed.bars.iter().map(|(index, kind, _)| Bar { index: *index, kind: *kind }).collect();
        let mut doorbells: Vec<_> = doorbells
            .into_iter()
            .filter_map(|(at, event)| match at.region {
                Region::Bar(bar) => {
                    Some(Doorbell { bar, offset: at.offset, event, wanted: AtomicBool::new(false) })
                }
                Region::Window(_) => None,
            })
            .collect();
        doorbells.sort_by_key(|d| (d.bar, d.offset));
        let config = Mutex::new(config);
        Ok(Function { device, segment: placed.segment, bars, live, msix, doorbells, config })
    }

    /// The device behind the function.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The MSI-X structures.
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.msix.as_ref()
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads configuration space, at any offset and width.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
        for (live, part) in self.live_parts(offset, data.len()) {
            if let Some(window) = self.device.config_window() {
                let at = part.start - live.body.start;
                window.read(live.capability, at, &mut data[part.start - offset..part.end - offset]);
            }
        }
    }

    /// Writes configuration space, at any offset and width.
    pub fn write_config(&self, offset: usize, data: &[u8]) -> Effect {
        let mut effect = self.write_registers(offset, data);
        for (live, part) in self.live_parts(offset, data.len()) {
            if let Some(window) = self.device.config_window() {
                let at = part.start - live.body.start;
                // A window is not near a register that decides what is decoded: no access reaches both.
                effect = window.write(live.capability, at, &data[part.start - offset..part.end - offset]);
            }
        }
        effect
    }

    fn write_registers(&self, offset: usize, data: &[u8]) -> Effect {
        let mut config = self.config();
        let before = self.bases(&config);
        let control = config.msix_control();
        config.write(offset, data);
        if let Some(msix) = &self.msix
            && let Some(now) = config.msix_control().filter(|now| Some(*now) != control)
        {
            msix.control(now);
        }
        // Where a function decodes nothing, its BARs may change unnoticed.
        if self.bases(&config) == before { Effect::None } else { Effect::Decode { segment: self.segment } }
    }

    /// The device's own bytes among these.
    fn live_parts(&self, offset: usize, length: usize) -> impl Iterator<Item = (&LiveRange, Range<usize>)> {
        let end = offset.saturating_add(length);
        self.live.iter().filter_map(move |live| {
            let part = live.body.start.max(offset)..live.body.end.min(end);
            (part.start < part.end).then_some((live, part))
        })
    }

    /// Addresses in the BARs while the function decodes; bounded, so that comparing costs no allocation.
    fn bases(&self, config: &ConfigSpace) -> Option<[u64; crate::regs::BARS as usize]> {
        config.decodes().then(|| {
            let mut bases = [0; crate::regs::BARS as usize];
            for (base, bar) in bases.iter_mut().zip(&self.bars) {
                *base = config.bar_base(bar.index, bar.kind);
            }
            bases
        })
    }

    /// Where the guest wants a BAR now; `None` while the function does not decode.
    pub fn bar(&self, index: u8) -> Option<u64> {
        let config = self.config();
        let bar = self.bars.iter().find(|b| b.index == index)?;
        config.decodes().then(|| config.bar_base(index, bar.kind))
    }

    /// The registers and, as a part, the MSI-X structures; `room` tells where a BAR has room. The device itself saves its own
    /// state.
    pub(crate) fn save(&self, room: impl Fn(u8) -> Option<u64>) -> Result<Node, StateError> {
        let config = self.config();
        let bar = |bar: &Bar| BarState {
            index: bar.index,
            base: config.bar_base(bar.index, bar.kind),
            room: room(bar.index),
        };
        let node = Node::of(&FunctionState {
            identity: config.saved_identity(),
            command: config.u16(regs::COMMAND),
            cache_line_size: config.u8(regs::CACHE_LINE_SIZE),
            interrupt_line: config.u8(regs::INTERRUPT_LINE),
            bars: self.bars.iter().map(bar).collect(),
        })?;
        Ok(match &self.msix {
            Some(msix) => node.with(MSIX, Node::of(&msix.save())?),
            None => node,
        })
    }

    /// Goes on from a state, before the guest sees the function. Only what a guest could have written is taken.
    pub(crate) fn load(&self, saved: &FunctionState, msix: Option<&MsixState>) -> Result<(), StateError> {
        let refuse = |what: String| Err(StateError::value::<FunctionState>(what));
        let mut config = self.config();
        let identity = config.saved_identity();
        if identity != saved.identity {
            return refuse(format!("identity is {:x?}, and the function's is {identity:x?}", saved.identity));
        }
        config.write(regs::COMMAND, &saved.command.to_le_bytes());
        config.write(regs::CACHE_LINE_SIZE, &[saved.cache_line_size]);
        config.write(regs::INTERRUPT_LINE, &[saved.interrupt_line]);
        let command = config.u16(regs::COMMAND);
        if command != saved.command {
            return refuse(format!("command is {:#x}, of which {command:#x} can be", saved.command));
        }
        if saved.bars.len() != self.bars.len() {
            return refuse(format!("bars has {} BARs, and there are {}", saved.bars.len(), self.bars.len()));
        }
        for (bar, saved) in self.bars.iter().zip(&saved.bars) {
            if bar.index != saved.index {
                return refuse(format!("bars has BAR {}, and there is BAR {}", saved.index, bar.index));
            }
            config.set_bar(bar.index, bar.kind, saved.base);
            let base = config.bar_base(bar.index, bar.kind);
            if base != saved.base {
                return refuse(format!("BAR {} is {:#x}, of which {base:#x} can be", bar.index, saved.base));
            }
        }
        match (&self.msix, msix) {
            (Some(msix), Some(saved)) => config.set_msix_control(msix.load(saved)?),
            (None, None) => {}
            (Some(_), None) => return Err(StateError::Missing(format!("part {MSIX:?}"))),
            (None, Some(_)) => return Err(StateError::LeftOver(format!("part {MSIX:?}"))),
        }
        Ok(())
    }

    /// The doorbells, by BAR and offset.
    pub(crate) fn doorbells(&self) -> &[Doorbell] {
        &self.doorbells
    }

    /// Notes that a register was rung by a write that stopped the vCPU; tells whether that is new.
    fn rung(&self, region: Region, offset: u64) -> bool {
        let Region::Bar(bar) = region else { return false };
        let found = self.doorbells.binary_search_by_key(&(bar, offset), |d| (d.bar, d.offset));
        found.is_ok_and(|n| !self.doorbells[n].wanted.swap(true, Ordering::Relaxed))
    }

    /// Who serves `offset` of a BAR, and for how many bytes from there.
    fn server(&self, region: Region, offset: u64) -> (Server<'_>, u64) {
        let Some(msix) = self.msix.as_ref().filter(|m| region == Region::Bar(m.bar())) else {
            return (Server::Device, u64::MAX);
        };
        let (table, pending) = (msix.table_range(), msix.pending_range());
        if table.contains(&offset) {
            return (Server::Table(msix, offset - table.start), table.end - offset);
        }
        if pending.contains(&offset) {
            return (Server::Pending(msix, offset - pending.start), pending.end - offset);
        }
        let next = [table.start, pending.start].into_iter().filter(|start| *start > offset).min();
        (Server::Device, next.map_or(u64::MAX, |next| next - offset))
    }
}

enum Server<'a> {
    Device,
    Table(&'a Msix, u64),
    Pending(&'a Msix, u64),
}

/// The next piece of an access that one server takes.
fn cut(within: u64, length: usize) -> usize {
    usize::try_from(within).unwrap_or(usize::MAX).min(length)
}

impl Registers for Function {
    fn read(&self, region: Region, mut offset: u64, mut data: &mut [u8]) {
        while !data.is_empty() {
            let (server, within) = self.server(region, offset);
            let (piece, rest) = data.split_at_mut(cut(within, data.len()));
            match server {
                Server::Device => self.device.read(region, offset, piece),
                Server::Table(msix, at) => msix.read_table(at, piece),
                Server::Pending(msix, at) => msix.read_pending(at, piece),
            }
            offset = offset.saturating_add(piece.len() as u64);
            data = rest;
        }
    }

    fn write(&self, region: Region, mut offset: u64, mut data: &[u8]) -> Effect {
        let mut effect = Effect::None;
        while !data.is_empty() {
            let (server, within) = self.server(region, offset);
            let (piece, rest) = data.split_at(cut(within, data.len()));
            match server {
                Server::Device => {
                    effect = self.device.write(region, offset, piece);
                    if effect == Effect::None && self.rung(region, offset) {
                        effect = Effect::Decode { segment: self.segment };
                    }
                }
                Server::Table(msix, at) => msix.write_table(at, piece),
                Server::Pending(..) => {}
            }
            offset = offset.saturating_add(piece.len() as u64);
            data = rest;
        }
        effect
    }
}
