//! Virtio over PCI (virtio 1.3 §4.1), modern interface only.
//!
//! Turns register accesses into the life of a [`Virtio`] device and the device's signals into MSI-X. It knows no device type and
//! never touches guest memory. The guest may write any register, at any width, at any time: a write is served when the
//! specification allows it and dropped otherwise.
//!
//! Locks, in order: [`life`] (one change of the device's life at a time, held while it drains), then `setup` (a few instructions;
//! never held while the device is called). The device's way back, [`link`], takes none.

mod common;
mod layout;
mod life;
mod link;
mod state;
#[cfg(test)]
mod tests;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::grant::ConfigWindow;
use device::limit::LogLimit;
use device::{
    BarKind, Counters, Device, DeviceError, DriverLink, Effect, Grant, Needs, Node, Ram, Region, Registers,
    StateError, Virtio, VirtioGrant, VirtioKind, guest_warn,
};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

pub use layout::MAX_TYPE;

use common::{Field, Outcome, Part, Setup};
use life::{Life, Supplies};
use link::{Link, status};
use window::Window;

static ODD: LogLimit = LogLimit::new();

/// Why a device cannot be carried by PCI.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TransportError {
    /// No queue, or more than have doorbells.
    #[error("device {id} has {queues} queues, and 1 to {} are possible", layout::MAX_QUEUES)]
    Queues {
        /// The device.
        id: String,
        /// Its queues.
        queues: usize,
    },
    /// A queue size that is no power of two up to 32768.
    #[error("device {id} has a queue of {size}, which is no power of two from 1 to 32768")]
    QueueSize {
        /// The device.
        id: String,
        /// The size.
        size: u16,
    },
    /// A type without a PCI device ID.
    #[error("device {id} is of type {number}, and at most {} can be on PCI", layout::MAX_TYPE)]
    Type {
        /// The device.
        id: String,
        /// Its type.
        number: u16,
    },
    /// A configuration space beyond its window.
    #[error("device {id} has {length} bytes of configuration, and at most {} are possible", layout::DEVICE.length)]
    Config {
        /// The device.
        id: String,
        /// Its length.
        length: usize,
    },
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    id: String,
    device: Box<dyn Virtio>,
    needs: Needs,
    config_length: usize,
    wired: Option<Wired>,
}

/// What exists once the board has granted what was needed.
struct Wired {
    ram: Ram,
    link: Arc<Link>,
    doorbells: Vec<EventFd>,
    setup: Mutex<Setup>,
    life: Life,
    window: Mutex<Window>,
}

/// How BAR 0 of a device is placed: firmware looks for boot disks below 4 GiB.
pub fn bar_kind(kind: VirtioKind, segment: u16, at_boot: bool) -> BarKind {
    if kind == VirtioKind::Block && segment == 0 && at_boot {
        BarKind::Memory32
    } else {
        BarKind::Memory64 { prefetchable: false }
    }
}

impl VirtioPci {
    /// Puts a device behind PCI registers. `id` names it in events and errors; see [`bar_kind`] for `bar`.
    ///
    /// # Errors
    /// The device has more queues, larger queues or more configuration than the registers can express.
    pub fn new(id: impl Into<String>, device: Box<dyn Virtio>, bar: BarKind) -> Result<Self, TransportError> {
        let (id, sizes, config_length) = (id.into(), device.queue_sizes(), device.config_length());
        if !(1..=layout::MAX_QUEUES).contains(&sizes.len()) {
            return Err(TransportError::Queues { id, queues: sizes.len() });
        }
        // A power of two in 16 bits is at most 32768.
        if let Some(size) = sizes.iter().find(|s| !s.is_power_of_two()) {
            return Err(TransportError::QueueSize { id, size: *size });
        }
        if config_length > layout::DEVICE.length as usize {
            return Err(TransportError::Config { id, length: config_length });
        }
        let number = device.type_number();
        if number > MAX_TYPE {
            return Err(TransportError::Type { id, number });
        }
        let mut needs = layout::needs(number, sizes.len(), config_length > 0, bar);
        if let Some(pci) = &mut needs.pci {
            pci.apertures = device.apertures();
        }
        needs.calls = device.calls();
        Ok(VirtioPci { id, device, needs, config_length, wired: None })
    }

    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The device itself.
    pub fn virtio(&self) -> &dyn Virtio {
        &*self.device
    }

    fn read_common(&self, wired: &Wired, offset: usize, data: &mut [u8]) {
        let setup = wired.setup();
        for (at, byte) in (offset..).zip(data) {
            let value = |field| match field {
                Field::ConfigMsixVector => wired.link.config_vector().into(),
                Field::DeviceStatus => wired.link.status().into(),
                Field::ConfigGeneration => wired.link.generation().into(),
                Field::QueueMsixVector => wired.link.queue_vector(setup.selected()).into(),
                _ => setup.read(field),
            };
            *byte = common::field_at(at).map_or(0, |(field, n)| value(field).to_le_bytes()[n]);
        }
    }

    fn write_common(&self, wired: &Wired, offset: usize, data: &[u8]) {
        let outcome = match common::field_written(offset, data) {
            Some((Field::DeviceStatus, _, value)) => return self.write_status(wired, value as u8),
            Some((Field::QueueMsixVector, _, value)) => {
                let queue = wired.setup().selected();
                wired.link.set_queue_vector(queue, value as u16);
                self.device.vector_changed(queue.into());
                Outcome::Done
            }
            Some((field, part, value)) => wired.write_field(field, part, value),
            None => Outcome::Dropped,
        };
        match outcome {
            Outcome::Done => {}
            Outcome::Dropped => {
                guest_warn!(ODD, "{}: dropped a write of {data:x?} to common register {offset:#x}", self.id);
            }
            Outcome::BadRings => {
                guest_warn!(ODD, "{}: a queue was enabled whose rings are not in memory", self.id);
                wired.link.needs_reset();
            }
        }
    }

    /// The device status field (virtio 1.3 §2.1): bits are added one by one in their order, and zero resets.
    fn write_status(&self, wired: &Wired, value: u8) {
        let mut turn = wired.life.turn(&*self.device);
        if value == 0 {
            turn.reset();
            wired.setup().reset();
            wired.link.reset();
            return;
        }
        let before = wired.link.status();
        // The device's own bit is neither set nor cleared by a driver.
        if before & !status::NEEDS_RESET & !value != 0 {
            guest_warn!(ODD, "{}: dropped status {value:#x}, which takes bits of {before:#x} back", self.id);
            return;
        }
        let mut now = before;
        let mut add = |bit: u8, needs: u8, allowed: &mut dyn FnMut() -> bool| {
            let new = value & bit != 0 && now & bit == 0 && now & needs == needs && allowed();
            if new {
                now |= bit;
                wired.link.add_status(bit);
            }
            new
        };
        add(status::FAILED, 0, &mut || true);
        add(status::ACKNOWLEDGE, 0, &mut || true);
        add(status::DRIVER, status::ACKNOWLEDGE, &mut || true);
        add(status::FEATURES_OK, status::DRIVER, &mut || wired.setup().fix_features());
        // A device that broke before it began stays off until it is reset.
        let usable = before & (status::NEEDS_RESET | status::FAILED) == 0;
        if add(status::DRIVER_OK, status::FEATURES_OK, &mut || usable) {
            let (features, queues) = wired.setup().fix_queues();
            if let Err(e) = turn.activate(features, queues) {
                let cause = e.source.as_ref().map(|s| format!(": {s}")).unwrap_or_default();
                guest_warn!(ODD, "{}: {e}{cause}", self.id);
                wired.link.needs_reset();
            }
        }
    }

    /// Reads the device's configuration; zeros beyond its end.
    fn read_device(&self, offset: usize, data: &mut [u8]) {
        let within = self.config_length.saturating_sub(offset).min(data.len());
        let (inside, beyond) = data.split_at_mut(within);
        if !inside.is_empty() {
            self.device.read_config(offset, inside);
        }
        beyond.fill(0);
    }

    fn write_device(&self, offset: usize, data: &[u8]) {
        let within = self.config_length.saturating_sub(offset).min(data.len());
        if within != 0 {
            self.device.write_config(offset, &data[..within]);
        }
    }

    fn wired(&self) -> Result<&Wired, DeviceError> {
        let unwired = || DeviceError { what: format!("device {} is not wired", self.id), source: None };
        self.wired.as_ref().ok_or_else(unwired)
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let (Some(wired), Some((structure, at))) = (&self.wired, structure(offset)) else { return };
        match structure {
            Structure::Common => self.read_common(wired, at, data),
            Structure::Isr => data[..1].copy_from_slice(&[wired.link.take_isr()]),
            Structure::Device => self.read_device(at, data),
            Structure::Notify => {}
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        let (Some(wired), Some((structure, at))) = (&self.wired, structure(offset)) else { return };
        match structure {
            Structure::Common => self.write_common(wired, at, data),
            Structure::Isr => {}
            Structure::Device => self.write_device(at, data),
            Structure::Notify => wired.ring(at),
        }
    }
}

impl Wired {
    fn setup(&self) -> MutexGuard<'_, Setup> {
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_field(&self, field: Field, part: Part, value: u64) -> Outcome {
        match field {
            Field::ConfigMsixVector => self.link.set_config_vector(value as u16),
            _ => return self.setup().write(field, part, value, &self.ram.map()),
        }
        Outcome::Done
    }

    /// Kicks the queue whose doorbell is at this offset, as the hypervisor would. A queue that does not run finds its kick when it
    /// starts.
    fn ring(&self, at: usize) {
        let multiplier = layout::NOTIFY_MULTIPLIER as usize;
        if let Some(doorbell) = self.doorbells.get(at / multiplier).filter(|_| at.is_multiple_of(multiplier))
            && let Err(e) = doorbell.write(1)
        {
            guest_warn!(ODD, "cannot kick queue {}: {e}", at / multiplier);
        }
    }
}

enum Structure {
    Common,
    Isr,
    Device,
    Notify,
}

/// The structure at an offset of BAR 0, and the offset within it.
fn structure(offset: u64) -> Option<(Structure, usize)> {
    let within = |place: layout::Place| {
        let at = offset.checked_sub(place.offset.into())?;
        (at < place.length.into()).then_some(at as usize)
    };
    within(layout::NOTIFY)
        .map(|at| (Structure::Notify, at))
        .or_else(|| within(layout::COMMON).map(|at| (Structure::Common, at)))
        .or_else(|| within(layout::ISR).map(|at| (Structure::Isr, at)))
        .or_else(|| within(layout::DEVICE).map(|at| (Structure::Device, at)))
}

impl Registers for VirtioPci {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        if region == Region::Bar(layout::BAR) && !data.is_empty() {
            self.read_bar(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> Effect {
        if region == Region::Bar(layout::BAR) && !data.is_empty() {
            self.write_bar(offset, data);
        }
        Effect::None
    }
}

impl ConfigWindow for VirtioPci {
    fn read(&self, _capability: usize, offset: usize, data: &mut [u8]) {
        let Some(wired) = &self.wired else { return data.fill(0) };
        let asked = wired.window().asked(offset, data.len());
        if let Some(asked) = asked {
            let mut read = [0; 4];
            self.read_bar(asked.offset, &mut read[..asked.length]);
            wired.window().store(&read[..asked.length]);
        }
        wired.window().read(offset, data);
    }

    fn write(&self, _capability: usize, offset: usize, data: &[u8]) -> Effect {
        let Some(wired) = &self.wired else { return Effect::None };
        let asked = {
            let mut window = wired.window();
            window.write(offset, data);
            window.asked(offset, data.len())
        };
        if let Some(asked) = asked {
            self.write_bar(asked.offset, &asked.data[..asked.length]);
        }
        Effect::None
    }
}

impl Device for VirtioPci {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn wire(&mut self, grant: Grant) -> Result<(), DeviceError> {
        let sizes = self.device.queue_sizes();
        if grant.vectors.len() != sizes.len() + 1 || grant.doorbells.len() != sizes.len() {
            return Err(DeviceError {
                what: format!("device {} was not granted what it needs", self.id),
                source: None,
            });
        }
        let clone = |e: &EventFd| e.try_clone();
        let doorbells = grant.doorbells.iter().map(clone).collect::<Result<Vec<_>, _>>();
        let doorbells = doorbells
            .map_err(|e| DeviceError::new(format!("cannot wire the doorbells of {}", self.id), e))?;
        let link = Arc::new(Link::new(grant.vectors, sizes.len()));
        self.device.connect(VirtioGrant {
            ram: grant.ram.clone(),
            link: link.clone(),
            workers: grant.workers,
            events: grant.events.clone(),
        });
        self.device.fill(grant.apertures)?;
        let capability = self.needs.pci.iter().flat_map(|p| &p.capabilities).find(|c| c.live);
        let window = Window::new(capability.map_or(&[], |c| &c.body));
        let life = Life::new(Supplies {
            ram: grant.ram.clone(),
            link: link.clone(),
            doorbells: grant.doorbells,
            events: grant.events,
            id: self.id.clone(),
        });
        self.wired = Some(Wired {
            ram: grant.ram,
            link,
            doorbells,
            setup: Mutex::new(Setup::new(self.device.features(), &sizes)),
            life,
            window: Mutex::new(window),
        });
        Ok(())
    }

    fn start(&self) -> Result<(), DeviceError> {
        self.wired()?.life.turn(&*self.device).start()
    }

    fn stop(&self) -> Result<(), DeviceError> {
        self.wired()?.life.turn(&*self.device).stop();
        Ok(())
    }

    fn save(&self) -> Result<Option<Node>, DeviceError> {
        self.save_state().map(Some)
    }

    fn load(&self, node: Option<Node>) -> Result<(), StateError> {
        self.load_state(node)
    }

    fn counters(&self) -> Option<Counters> {
        self.device.counters()
    }

    fn in_use(&self) -> bool {
        self.wired.as_ref().is_some_and(|wired| wired.link.status() & status::DRIVER_OK != 0)
    }

    fn resize(&self) -> Option<&dyn device::grant::Resize> {
        self.device.resize()
    }

    fn terminal(&self) -> Option<&dyn device::grant::Terminal> {
        (self.device.kind() == VirtioKind::Console).then_some(self as _)
    }

    fn config_window(&self) -> Option<&dyn ConfigWindow> {
        Some(self)
    }
}

impl device::grant::Terminal for VirtioPci {
    fn resized(&self) {
        self.device.resized();
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        // Nothing may write guest memory once the device is gone.
        if let Some(wired) = &self.wired {
            wired.life.turn(&*self.device).stop();
        }
    }
}
