//! The two ways to configuration space: the enhanced window in memory (PCI Express 6.0 §7.2.2) and the ports of mechanism #1
//! (PCI Local Bus 3.0 §3.2.2.3.2). Buses other than 0, functions other than 0 and empty slots read all ones.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use device::{Effect, Node, Region, Registers, StateError};

use crate::state::PortsState;
use crate::{Segment, regs};

/// Length of a segment's enhanced window: one bus.
pub const ECAM_LENGTH: u64 = 1 << 20;
/// First port of mechanism #1.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// Number of ports: the address register and the data register.
pub const CONFIG_PORTS_LENGTH: u64 = 8;

/// A register somewhere in a segment.
struct Target {
    bus: u64,
    slot: u8,
    function: u64,
    offset: usize,
}

impl Target {
    /// From an offset in the enhanced window: bus, device and function above twelve bits of register.
    fn ecam(offset: u64) -> Self {
        Target {
            bus: offset >> 20,
            slot: (offset >> 15 & 0x1f) as u8,
            function: offset >> 12 & 7,
            offset: (offset & 0xfff) as usize,
        }
    }

    /// From the address register of mechanism #1; `None` unless its enable bit is set.
    fn ports(address: u32, byte: u64) -> Option<Self> {
        const ENABLE: u32 = 1 << 31;
        (address & ENABLE != 0).then(|| Target {
            bus: u64::from(address >> 16 & 0xff),
            slot: (address >> 11 & 0x1f) as u8,
            function: u64::from(address >> 8 & 7),
            offset: (address & 0xfc) as usize + byte as usize,
        })
    }

    fn read(&self, segment: &Segment, data: &mut [u8]) {
        let function = (self.bus == 0 && self.function == 0).then(|| segment.function(self.slot)).flatten();
        match function {
            Some(function) => function.read_config(self.offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, segment: &Segment, data: &[u8]) -> Effect {
        let function = (self.bus == 0 && self.function == 0).then(|| segment.function(self.slot)).flatten();
        // An access that leaves the function's space does not reach the next function.
        let within = data.len().min(regs::EXTENDED_END.saturating_sub(self.offset));
        function.map_or(Effect::None, |f| f.write_config(self.offset, &data[..within]))
    }
}

/// A segment's enhanced window; claim [`ECAM_LENGTH`] bytes for it.
///
/// It does not keep the segment: that holds the bus on which the window is claimed, and neither would ever go.
pub struct Ecam(Weak<Segment>);

impl Ecam {
    /// The window of this segment.
    pub fn new(segment: Arc<Segment>) -> Self {
        Ecam(Arc::downgrade(&segment))
    }
}

impl Registers for Ecam {
    fn read(&self, _: Region, offset: u64, data: &mut [u8]) {
        match self.0.upgrade() {
            Some(segment) => Target::ecam(offset).read(&segment, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, _: Region, offset: u64, data: &[u8]) -> Effect {
        self.0.upgrade().map_or(Effect::None, |segment| Target::ecam(offset).write(&segment, data))
    }
}

/// Mechanism #1, for segment 0; claim [`CONFIG_PORTS_LENGTH`] ports from [`CONFIG_PORTS`] for it.
pub struct ConfigPorts {
    segment: Arc<Segment>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// The ports of this segment.
    pub fn new(segment: Arc<Segment>) -> Self {
        ConfigPorts { segment, address: AtomicU32::new(0) }
    }

    /// The state: a guest may have been stopped between its two accesses.
    ///
    /// # Errors
    /// None in practice.
    pub fn save(&self) -> Result<Node, StateError> {
        Node::of(&PortsState { address: self.address.load(Ordering::Relaxed) })
    }

    /// Goes on from a state that [`ConfigPorts::save`] gave.
    ///
    /// # Errors
    /// It is no such state.
    pub fn load(&self, node: Node) -> Result<(), StateError> {
        // Any value can be written to the register.
        let PortsState { address } = node.read()?;
        self.address.store(address, Ordering::Relaxed);
        Ok(())
    }
}

/// Length of the address register; the data register follows.
const ADDRESS_LENGTH: u64 = 4;

impl Registers for ConfigPorts {
    fn read(&self, _: Region, offset: u64, data: &mut [u8]) {
        let address = self.address.load(Ordering::Relaxed);
        let Some(byte) = offset.checked_sub(ADDRESS_LENGTH) else {
            let register = address.to_le_bytes();
            for (at, byte) in (offset as usize..).zip(data) {
                *byte = register.get(at).copied().unwrap_or(0xff);
            }
            return;
        };
        match Target::ports(address, byte) {
            Some(target) => target.read(&self.segment, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, _: Region, offset: u64, data: &[u8]) -> Effect {
        let address = self.address.load(Ordering::Relaxed);
        let Some(byte) = offset.checked_sub(ADDRESS_LENGTH) else {
            // Two vCPUs that write parts of it at once get what they deserve; hardware knows no better.
            let mut register = address.to_le_bytes();
            for (part, byte) in register.iter_mut().skip(offset as usize).zip(data) {
                *part = *byte;
            }
            self.address.store(u32::from_le_bytes(register), Ordering::Relaxed);
            return Effect::None;
        };
        Target::ports(address, byte).map_or(Effect::None, |target| target.write(&self.segment, data))
    }
}
