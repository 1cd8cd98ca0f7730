//! A device, what it is given, and what its register writes may ask for.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::state::{self, Node, StateError};
use crate::{Aperture, BarKind, Line, Needs, Ram, Region, Span, TableSink, Vector, Workers};

/// What a register write asks of the board. It is applied after the device has released its locks, on the vCPU's thread, before
/// the guest's next instruction: a pause can never deadlock against a BAR move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    #[default]
    None,
    /// What the functions of this PCI segment decode has changed: BARs moved, decoding switched, a doorbell came into use. The
    /// board lets the segment bring the address map in line with the functions' registers.
    Decode {
        /// The segment.
        segment: u16,
    },
    /// The guest gives these slots (bit n: slot n) back. Functions that may leave are hidden from it at once; the control thread
    /// then drops their devices ([`Request::Eject`]).
    Eject {
        /// The segment.
        segment: u16,
        /// The slots.
        slots: u32,
    },
    /// The guest asked for a reset.
    Reset,
    /// The guest powered itself off.
    PowerOff,
}

/// What a device, or a thread of it, may ask of the machine at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reboot the guest.
    Reset,
    /// Power the guest off.
    PowerOff,
    /// The functions in these slots (bit n: slot n) are hidden from the guest; their devices are to be dropped.
    Eject {
        /// The segment.
        segment: u16,
        /// The slots.
        slots: u32,
    },
    /// A thread of a device ended unexpectedly; the machine cannot go on.
    Fault,
}

/// Where devices report to: records for the event monitor, and requests to the machine.
pub trait Events: Send + Sync {
    /// A record for the event monitor, such as `virtio-device`, `activated`, `id = …`.
    fn record(&self, source: &str, event: &str, properties: &[(&str, &str)]);

    /// Asks the machine for something; returns at once.
    fn request(&self, request: Request);
}

/// Register accesses. Called from vCPU threads, several at once; a device locks what it must and no longer.
pub trait Registers: Send + Sync {
    /// Fills `data` with what the guest reads at `offset`; `data` is 1, 2, 4 or 8 bytes, or fewer at the end of a region.
    fn read(&self, region: Region, offset: u64, data: &mut [u8]);

    /// Takes what the guest wrote at `offset`.
    fn write(&self, region: Region, offset: u64, data: &[u8]) -> Effect;
}

/// The live things that the board gives to a device; dropping the device gives them back.
pub struct Grant {
    /// Guest memory.
    pub ram: Ram,
    /// MSI-X vectors, as many as [`crate::MsixNeed::vectors`].
    pub vectors: Vec<Arc<dyn Vector>>,
    /// Lines in the order of [`Needs::lines`].
    pub lines: Vec<Arc<dyn Line>>,
    /// Eventfds in the order of [`Needs::doorbells`]. Where the hypervisor has no doorbells, writes arrive as register writes.
    pub doorbells: Vec<EventFd>,
    /// Room for memory of the device's own, in the order of [`crate::PciNeeds::apertures`].
    pub apertures: Vec<Arc<dyn Aperture>>,
    /// Threads, on demand.
    pub workers: Workers,
    /// Where to report.
    pub events: Arc<dyn Events>,
}

/// Where a PCI function was placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedPci {
    /// Segment.
    pub segment: u16,
    /// Slot on bus 0; the function is 0.
    pub slot: u8,
    /// Index, kind and range of each BAR at boot.
    pub bars: Vec<(u8, BarKind, Span)>,
    /// Apertures in the order of [`crate::PciNeeds::apertures`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apertures: Vec<Span>,
}

/// Where a device was placed: data, so that a restore replays it instead of allocating again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The PCI function.
    pub pci: Option<PlacedPci>,
    /// Windows in the order of [`Needs::windows`].
    pub windows: Vec<Span>,
    /// Interrupt controller inputs in the order of [`Needs::lines`].
    pub lines: Vec<u32>,
}

/// Why a device could not be wired, started or stopped.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct DeviceError {
    /// What failed, naming the thing concerned.
    pub what: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl DeviceError {
    /// An error with a cause.
    pub fn new(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        DeviceError { what: what.into(), source: Some(source.into()) }
    }
}

/// A device as the board sees it.
pub trait Device: Registers {
    /// What the device needs; asked once, before [`Device::wire`].
    fn needs(&self) -> Needs;

    /// Takes what was granted.
    ///
    /// # Errors
    /// What could not be set up.
    fn wire(&mut self, grant: Grant) -> Result<(), DeviceError>;

    /// Begins or continues I/O: at boot and on resume. A second call does nothing. What is begun on another thread may still be on its way;
    /// [`Device::settle`] waits for that.
    ///
    /// # Errors
    /// What could not be started.
    fn start(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Waits for what [`Device::start`] began, so that the guest need not wait for a thread that it has no use of yet.
    ///
    /// # Errors
    /// What could not be started; the device is as good as stopped.
    fn settle(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Stops I/O; returns only when none is outstanding and guest memory is no longer written. A second call does nothing.
    ///
    /// # Errors
    /// What could not be stopped.
    fn stop(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The device's state; called while it is stopped. `None` for a device that has none.
    ///
    /// # Errors
    /// What could not be told.
    fn save(&self) -> Result<Option<Node>, DeviceError> {
        Ok(None)
    }

    /// Goes on from a state that [`Device::save`] gave, perhaps in another process; called once, after [`Device::wire`] and before
    /// the guest sees the device. The state is untrusted.
    ///
    /// # Errors
    /// The state is not one of this device: it is of no use any more and is dropped.
    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        state::none(node)
    }

    /// Describes the device in the firmware tables.
    fn describe(&self, _placed: &Placed, _sink: &mut dyn TableSink) {}

    /// Counters for `vm.counters`, if the device has any.
    fn counters(&self) -> Option<Counters> {
        None
    }

    /// The ability to signal a power button, if the device has it.
    fn power_button(&self) -> Option<&dyn PowerButton> {
        None
    }

    /// The ability to tell the guest that something happened, if the device has it.
    fn bell(&self) -> Option<&dyn Bell> {
        None
    }

    /// The ability to have PCI functions come and go, if the device has it.
    fn slots(&self) -> Option<&dyn Slots> {
        None
    }

    /// The ability to change its size, if the device has it.
    fn resize(&self) -> Option<&dyn Resize> {
        None
    }

    /// Whether a driver of the guest uses the device now.
    fn in_use(&self) -> bool {
        false
    }

    /// The ability to follow a terminal's size, if the device has it.
    fn terminal(&self) -> Option<&dyn Terminal> {
        None
    }

    /// Windows into the device in PCI configuration space, if it has any ([`crate::Capability::live`]).
    fn config_window(&self) -> Option<&dyn ConfigWindow> {
        None
    }
}

/// Names and values for `vm.counters`.
pub type Counters = BTreeMap<&'static str, u64>;

/// A device that can press the guest's power button.
pub trait PowerButton {
    /// Presses it once.
    fn press(&self);
}

/// What a [`Bell`] can tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// PCI functions came or are to go: [`Slots`] says which.
    Pci,
    /// The guest goes on from a saved state.
    Generation,
}

/// A device through which the platform tells the guest that something happened.
pub trait Bell {
    /// Tells it once; what the guest has not looked at yet is not told twice.
    fn ring(&self, what: Ring);
}

/// A device that tells the guest which PCI functions came and which are to go. The guest looks when a [`Bell`] rings.
pub trait Slots {
    /// A function is there that was not.
    fn came(&self, segment: u16, slot: u8);

    /// The guest is to let go of a function; it answers with [`Effect::Eject`], or does not.
    fn ask_back(&self, segment: u16, slot: u8);

    /// Nothing more is to be said of this slot: the function is gone.
    fn gone(&self, segment: u16, slot: u8);
}

/// A device whose size can change. It is stopped meanwhile ([`Device::stop`]).
pub trait Resize {
    /// Changes the size to this many bytes, and tells the driver.
    ///
    /// # Errors
    /// A size that cannot be, or what the host refused; the size is as before.
    fn resize(&self, bytes: u64) -> Result<(), spec::Refusal>;
}

/// A device that shows a terminal.
pub trait Terminal {
    /// Tells the guest the terminal's present size.
    fn resized(&self);
}

/// A capability whose bytes the device serves itself.
pub trait ConfigWindow {
    /// Reads `data` from the capability with this ordinal, at `offset` within its body.
    fn read(&self, capability: usize, offset: usize, data: &mut [u8]);

    /// Writes `data` to it.
    fn write(&self, capability: usize, offset: usize, data: &[u8]) -> Effect;
}
