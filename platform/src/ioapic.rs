//! The I/O interrupt controller, an 82093AA, in user space: the local APICs are the hypervisor's.
//!
//! Each pin has a source at the hypervisor (GSI equal to the pin) that delivers a message. The guest programs what is delivered;
//! a level-triggered pin stays quiet after a delivery until the processor has said end-of-interrupt for the vector.
//!
//! ```text
//!  device ── Line ──> pin: masked? edge or level? Remote IRR? ── MsiRoute ──> local APIC
//!                                   ^── end_of_interrupt(vector) ──────────────┘
//! ```

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::limit::LogLimit;
use device::state::{self, Node, StateError};
use device::{
    Device, DeviceError, Effect, Grant, Line, MsiMessage, MsiRoute, Needs, Placed, Region, Registers, Space,
    TableEntry, TableSink, WindowNeed, guest_warn,
};
use serde::{Deserialize, Serialize};

/// Where the registers are.
pub const BASE: u64 = 0xfec0_0000;
/// Bytes of registers.
pub const LENGTH: u64 = 0x20;
/// Inputs.
pub const PINS: u8 = 24;

/// Register select.
const SELECT: u64 = 0x00;
/// Window to the selected register.
const WINDOW: u64 = 0x10;

/// Selected registers (82093AA §3.2).
mod register {
    pub(super) const ID: u8 = 0x00;
    pub(super) const VERSION: u8 = 0x01;
    pub(super) const ARBITRATION: u8 = 0x02;
    /// Two per pin.
    pub(super) const TABLE: u8 = 0x10;
}

/// Bits of the identification register that exist.
const ID_BITS: u32 = 0x0f00_0000;

/// Version 0x11: no end-of-interrupt register, so a driver relies on the local APIC.
const VERSION: u32 = 0x11;

/// Bits of a redirection entry (82093AA §3.2.4).
mod entry {
    pub(super) const VECTOR: u64 = 0xff;
    pub(super) const DELIVERY_MODE: u64 = 0x700;
    pub(super) const LOGICAL: u64 = 1 << 11;
    pub(super) const DELIVERY_STATUS: u64 = 1 << 12;
    pub(super) const REMOTE_IRR: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
    pub(super) const MASKED: u64 = 1 << 16;
    /// What software cannot write.
    pub(super) const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
    /// What exists: besides the above, polarity in bit 13, the destination's bits 0 to 7 in bits 56 to 63, and its bits 8 to 14 in
    /// bits 49 to 55 (KVM_FEATURE_MSI_EXT_DEST_ID).
    pub(super) const ALL: u64 = 0xfffe_0000_0001_ffff;
}

/// Bits of a message (Intel SDM volume 3, 12.11).
mod message {
    pub(super) const BASE: u64 = 0xfee0_0000;
    pub(super) const LOGICAL: u64 = 1 << 2;
    pub(super) const ASSERT: u32 = 1 << 14;
    pub(super) const LEVEL: u32 = 1 << 15;
    /// Bits of an address that an entry decides: destination, its extension, destination mode.
    pub(super) const ADDRESS: u64 = 0xff << 12 | 0x7f << 5 | LOGICAL;
    /// Bits of data that an entry decides: vector, delivery mode, trigger.
    pub(super) const DATA: u32 = 0x7ff | ASSERT | LEVEL;
}

/// The controller.
pub struct Ioapic {
    core: Arc<Core>,
}

struct Core {
    state: Mutex<State>,
    source: Source,
    limit: LogLimit,
}

/// Where the route of a pin comes from. That of pin n must be GSI n, which is where the hypervisor looks for vectors whose end-of-interrupt
/// it reports.
pub type Source = Box<dyn Fn(u8) -> Result<Arc<dyn MsiRoute>, Box<dyn Error + Send + Sync>> + Send + Sync>;

struct State {
    select: u8,
    id: u32,
    pins: Vec<Pin>,
}

#[derive(Clone, Default)]
struct Pin {
    entry: u64,
    asserted: bool,
    /// What the route delivers at present, or would if a line led here.
    routed: Option<MsiMessage>,
    /// Only a pin to which a line leads has one.
    route: Option<Arc<dyn MsiRoute>>,
}

impl Pin {
    fn is(&self, bit: u64) -> bool {
        self.entry & bit != 0
    }
}

/// What is saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IoapicState {
    select: u8,
    id: u32,
    pins: Vec<PinState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PinState {
    entry: u64,
    /// The level of the line.
    asserted: bool,
    /// What the pin delivered last, and a processor may still have to end.
    #[serde(deserialize_with = "Option::deserialize")]
    routed: Option<RoutedState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutedState {
    address: u64,
    data: u32,
}

impl device::State for IoapicState {
    const KIND: &'static str = "ioapic";
}

impl PinState {
    /// Whether software and lines can have brought a pin there; tells what they could not.
    fn check(&self) -> Result<(), String> {
        let entry = self.entry;
        if entry & !(entry::ALL & !entry::DELIVERY_STATUS) != 0 {
            return Err(format!("entry {entry:#x}, which has bits that do not exist"));
        }
        if entry & entry::REMOTE_IRR != 0 && entry & entry::LEVEL == 0 {
            return Err(format!("entry {entry:#x}, which waits for the end of an edge"));
        }
        match &self.routed {
            Some(RoutedState { address, data })
                if address & !message::ADDRESS != message::BASE || data & !message::DATA != 0 =>
            {
                Err(format!("routed {address:#x}, {data:#x}, which is no message of an entry"))
            }
            _ => Ok(()),
        }
    }
}

/// The message that an entry describes.
fn message_of(entry: u64) -> MsiMessage {
    let destination = entry >> 56;
    let extended = entry >> 49 & 0x7f;
    let logical = if entry & entry::LOGICAL != 0 { message::LOGICAL } else { 0 };
    let level = if entry & entry::LEVEL != 0 { message::LEVEL | message::ASSERT } else { 0 };
    MsiMessage {
        address: message::BASE | destination << 12 | extended << 5 | logical,
        data: (entry & (entry::VECTOR | entry::DELIVERY_MODE)) as u32 | level,
    }
}

impl Ioapic {
    /// A controller with [`PINS`] pins, which deliver through routes of this source.
    pub fn new(source: Source) -> Self {
        let pin = Pin { entry: entry::MASKED, ..Pin::default() };
        let state = State { select: 0, id: 0, pins: vec![pin; usize::from(PINS)] };
        Ioapic { core: Arc::new(Core { state: Mutex::new(state), source, limit: LogLimit::new() }) }
    }

    /// An input. One that does not exist leads nowhere.
    ///
    /// # Errors
    /// No route could be had for the pin.
    pub fn line(&self, pin: u8) -> Result<Arc<dyn Line>, Box<dyn Error + Send + Sync>> {
        let mut state = self.core.lock();
        if let Some(at) = state.pins.get_mut(usize::from(pin))
            && at.route.is_none()
        {
            let route = (self.core.source)(pin)?;
            // What software said before, or a saved state.
            if at.routed.is_some() {
                route.update(at.routed)?;
            }
            at.route = Some(route);
        }
        Ok(Arc::new(Input { core: self.core.clone(), pin: usize::from(pin) }))
    }

    /// A processor has ended a level-triggered interrupt of this vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.core.lock();
        for at in 0..state.pins.len() {
            let pin = &mut state.pins[at];
            if pin.is(entry::REMOTE_IRR) && pin.entry & entry::VECTOR == u64::from(vector) {
                pin.entry &= !entry::REMOTE_IRR;
                self.core.deliver_level(at, pin);
            }
        }
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the hypervisor what a pin delivers. A masked pin keeps its route: the processor may still have to end an interrupt
    /// that was delivered before.
    fn route(&self, at: usize, pin: &mut Pin) {
        let message = message_of(pin.entry);
        if pin.is(entry::MASKED) || pin.routed == Some(message) {
            return;
        }
        if let Err(e) = Core::tell(pin, message) {
            guest_warn!(self.limit, "IOAPIC pin {at}: cannot set the route: {e}");
        }
    }

    fn tell(pin: &mut Pin, message: MsiMessage) -> io::Result<()> {
        if let Some(route) = &pin.route {
            route.update(Some(message))?;
        }
        pin.routed = Some(message);
        Ok(())
    }

    fn signal(&self, at: usize, pin: &Pin) {
        let signalled = pin.route.as_ref().map_or(Ok(()), |route| route.signal());
        if let Err(e) = signalled {
            guest_warn!(self.limit, "IOAPIC pin {at}: cannot deliver: {e}");
        }
    }

    /// Delivers a level-triggered pin if it is due.
    fn deliver_level(&self, at: usize, pin: &mut Pin) {
        if pin.asserted && pin.is(entry::LEVEL) && !pin.is(entry::MASKED) && !pin.is(entry::REMOTE_IRR) {
            pin.entry |= entry::REMOTE_IRR;
            self.signal(at, pin);
        }
    }

    fn set(&self, at: usize, asserted: bool) {
        let mut state = self.lock();
        let Some(pin) = state.pins.get_mut(at) else { return };
        let rises = asserted && !pin.asserted;
        pin.asserted = asserted;
        if pin.is(entry::LEVEL) {
            self.deliver_level(at, pin);
        } else if rises && !pin.is(entry::MASKED) {
            // An edge at a masked pin is lost (82093AA §3.2.4).
            self.signal(at, pin);
        }
    }

    fn read_register(&self, state: &State) -> u32 {
        match state.select {
            register::ID | register::ARBITRATION => state.id,
            register::VERSION => VERSION | (state.pins.len().saturating_sub(1) as u32) << 16,
            select => match pin_of(select, state) {
                Some((at, true)) => (state.pins[at].entry >> 32) as u32,
                Some((at, false)) => state.pins[at].entry as u32,
                None => u32::MAX,
            },
        }
    }

    fn write_register(&self, state: &mut State, value: u32) {
        match state.select {
            register::ID => state.id = value & ID_BITS,
            register::VERSION | register::ARBITRATION => {}
            select => match pin_of(select, state) {
                Some((at, high)) => self.write_entry(at, &mut state.pins[at], value, high),
                None => guest_warn!(self.limit, "IOAPIC: there is no register {select:#x}"),
            },
        }
    }

    fn write_entry(&self, at: usize, pin: &mut Pin, value: u32, high: bool) {
        let new = match high {
            true => pin.entry & 0xffff_ffff | u64::from(value) << 32,
            false => pin.entry & !0xffff_ffff | u64::from(value),
        };
        pin.entry = new & entry::ALL & !entry::READ_ONLY | pin.entry & entry::READ_ONLY;
        if !pin.is(entry::LEVEL) {
            // Turning a pin to edge and back is how software ends an interrupt of this version of the controller.
            pin.entry &= !entry::REMOTE_IRR;
        }
        self.route(at, pin);
        self.deliver_level(at, pin);
    }
}

/// Pin and half of its entry that a register is.
fn pin_of(select: u8, state: &State) -> Option<(usize, bool)> {
    let offset = select.checked_sub(register::TABLE)?;
    let at = usize::from(offset / 2);
    (at < state.pins.len()).then_some((at, offset % 2 == 1))
}

struct Input {
    core: Arc<Core>,
    pin: usize,
}

impl Line for Input {
    fn pulse(&self) {
        self.core.set(self.pin, true);
        self.core.set(self.pin, false);
    }

    fn set(&self, asserted: bool) {
        self.core.set(self.pin, asserted);
    }
}

impl Registers for Ioapic {
    fn read(&self, _region: Region, offset: u64, data: &mut [u8]) {
        let state = self.core.lock();
        let value = match offset {
            SELECT => u32::from(state.select),
            WINDOW => self.core.read_register(&state),
            _ => 0,
        };
        crate::read_u32(value, 0, data);
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) -> Effect {
        let mut state = self.core.lock();
        match (offset, data) {
            (SELECT, [select, ..]) => state.select = *select,
            // Registers are 32 bits wide and written whole.
            (WINDOW, [a, b, c, d, ..]) => {
                self.core.write_register(&mut state, u32::from_le_bytes([*a, *b, *c, *d]));
            }
            _ => guest_warn!(self.core.limit, "IOAPIC: {} bytes written at {offset:#x}", data.len()),
        }
        Effect::None
    }
}

impl Device for Ioapic {
    fn needs(&self) -> Needs {
        let window = WindowNeed { space: Space::Memory, base: Some(BASE), length: LENGTH };
        Needs { windows: vec![window], ..Needs::default() }
    }

    fn wire(&mut self, _grant: Grant) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        let state = self.core.lock();
        let pin = |pin: &Pin| PinState {
            entry: pin.entry,
            asserted: pin.asserted,
            routed: pin.routed.map(|MsiMessage { address, data }| RoutedState { address, data }),
        };
        crate::save(&IoapicState {
            select: state.select,
            id: state.id,
            pins: state.pins.iter().map(pin).collect(),
        })
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        let saved: IoapicState = state::some(node)?.read()?;
        let refuse = |what: String| Err(StateError::value::<IoapicState>(what));
        let mut state = self.core.lock();
        if saved.pins.len() != state.pins.len() {
            return refuse(format!("pins has {} pins, and there are {}", saved.pins.len(), state.pins.len()));
        }
        if saved.id & !ID_BITS != 0 {
            return refuse(format!("id is {:#x}, of which {ID_BITS:#x} can be", saved.id));
        }
        if let Some((n, what)) =
            saved.pins.iter().enumerate().find_map(|(n, pin)| Some((n, pin.check().err()?)))
        {
            return refuse(format!("pin {n} has {what}"));
        }
        (state.select, state.id) = (saved.select, saved.id);
        for (at, (pin, saved)) in state.pins.iter_mut().zip(&saved.pins).enumerate() {
            // Nothing is delivered: what was due is with the processors already, and lines keep their levels.
            (pin.entry, pin.asserted, pin.routed) = (saved.entry, saved.asserted, None);
            let routed = saved.routed.as_ref().map(|r| MsiMessage { address: r.address, data: r.data });
            let message = if pin.is(entry::MASKED) { routed } else { Some(message_of(pin.entry)) };
            if let Some(Err(e)) = message.map(|message| Core::tell(pin, message)) {
                return refuse(format!("pin {at} cannot have its route again: {e}"));
            }
        }
        Ok(())
    }

    fn describe(&self, _placed: &Placed, sink: &mut dyn TableSink) {
        // I/O APIC structure: type 1, 12 bytes, id 0, address, first GSI 0 (ACPI 6.5 §5.2.12.3).
        let mut ioapic = vec![1, 12, 0, 0];
        ioapic.extend((BASE as u32).to_le_bytes());
        ioapic.extend(0_u32.to_le_bytes());
        sink.add(TableEntry::Madt(ioapic));
        // Interrupt source override: type 2, 10 bytes, ISA interrupt 4 is GSI 4, with the polarity and trigger mode of the ISA
        // bus, high and edge (§5.2.12.5).
        let mut serial = vec![2, 10, 0, 4];
        serial.extend(4_u32.to_le_bytes());
        serial.extend(0_u16.to_le_bytes());
        sink.add(TableEntry::Madt(serial));
    }
}

#[cfg(test)]
#[path = "ioapic_tests.rs"]
mod tests;
