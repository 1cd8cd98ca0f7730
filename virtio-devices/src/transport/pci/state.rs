//! What is saved of a virtio function, and what is checked before it is believed.
//!
//! Whatever follows from something else is not saved: features and queues are fixed when the status says so, a device is active
//! once the driver said DRIVER_OK, and EVENT_IDX is a feature.

use device::DeviceError;
use device::state::{self, Node, State, StateError};
use device::virtio::feature;
use serde::{Deserialize, Serialize};

use super::common::{QueueRecord, SetupState};
use super::life::Position;
use super::link::{LinkState, status};
use super::window::WindowState;
use super::{VirtioPci, Wired};

/// Name of the part of the state that is the device's own.
const DEVICE: &str = "device";

/// A virtio device's registers and queues.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VirtioPciState {
    link: LinkState,
    setup: SetupState,
    /// One a queue; for those that are to run once the device is started.
    positions: Vec<Option<Position>>,
    window: WindowState,
}

impl State for VirtioPciState {
    const KIND: &'static str = "virtio-pci";
}

fn refuse(what: String) -> StateError {
    StateError::value::<VirtioPciState>(what)
}

impl VirtioPci {
    /// See [`device::Device::save`].
    pub(super) fn save_state(&self) -> Result<Node, DeviceError> {
        let wired = self.wired()?;
        let turn = wired.life.turn(&*self.device);
        let positions = turn.positions()?;
        let (link, setup) = (wired.link.save(), wired.setup().save());
        let lost =
            |(record, position): (&QueueRecord, &Option<Position>)| record.enabled && position.is_none();
        if runs(link.status)
            && let Some(index) = setup.queues.iter().zip(&positions).position(lost)
        {
            return Err(DeviceError { what: format!("queue {index} of {} was lost", self.id), source: None });
        }
        let state = VirtioPciState { link, setup, positions, window: wired.window().save() };
        let node = Node::of(&state)
            .map_err(|e| DeviceError::new(format!("cannot save the state of {}", self.id), e))?;
        Ok(match self.device.save()? {
            Some(device) => node.with(DEVICE, device),
            None => node,
        })
    }

    /// See [`device::Device::load`].
    pub(super) fn load_state(&self, node: Option<Node>) -> Result<(), StateError> {
        let mut node = state::some(node)?;
        let device = node.parts.remove(DEVICE);
        let saved: VirtioPciState = node.read()?;
        let unwired = || StateError::Missing(format!("the wiring of {}", self.id));
        let wired = self.wired.as_ref().ok_or_else(unwired)?;
        self.check_features(&saved)?;
        saved.check_status()?;
        saved.check_queues(wired)?;
        self.device.load(device)?;
        wired.setup().load(&saved.setup, saved.link.status);
        wired.link.load(&saved.link).map_err(refuse)?;
        wired.window().load(&saved.window);
        if saved.link.status & status::DRIVER_OK != 0 {
            let (features, mut queues) = wired.setup().fix_queues();
            for (queue, position) in queues.iter_mut().zip(&saved.positions) {
                *queue = queue.take().zip(*position).map(|(queue, position)| position.in_queue(queue));
            }
            wired.life.turn(&*self.device).resume(features, queues).map_err(|e| {
                let cause = e.source.as_ref().map(|s| format!(": {s}")).unwrap_or_default();
                refuse(format!("{} cannot be activated: {e}{cause}", self.id))
            })?;
        }
        Ok(())
    }

    /// The device must offer what it offered when the driver looked, which the driver may be using. What it could offer besides is kept to
    /// itself, for a driver that looks again must find the device that it knows; unless it binds a driver that does not know of it, or none could
    /// set the device up without.
    fn check_features(&self, saved: &VirtioPciState) -> Result<(), StateError> {
        let (then, now) = (saved.setup.offered, self.device.features());
        let (missing, new) =
            (then & !now, now & !then & (self.device.binding_features() | feature::VERSION_1));
        if missing != 0 {
            return Err(refuse(format!("{} no longer offers {}", self.id, self.names(missing))));
        }
        if new != 0 {
            return Err(refuse(format!("{} did not offer {} when it was saved", self.id, self.names(new))));
        }
        Ok(())
    }

    fn names(&self, features: u64) -> String {
        let table = [self.device.feature_names(), feature::NAMES].concat();
        let name = |bit: u32| match table.iter().find(|(feature, _)| *feature == 1 << bit) {
            Some((_, name)) => format!("feature {bit} ({name})"),
            None => format!("feature {bit}"),
        };
        let bits = (0..u64::BITS).filter(|bit| features >> bit & 1 != 0);
        bits.map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Whether the queues of a device with this status are to run: it is active and has not broken down.
fn runs(status: u8) -> bool {
    status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
}

impl VirtioPciState {
    /// A driver sets one bit after the other (virtio 1.3 §3.1.1).
    fn check_status(&self) -> Result<(), StateError> {
        let status = self.link.status;
        let steps = [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK];
        let reached = steps.iter().take_while(|bit| status & **bit != 0).fold(0, |all, bit| all | bit);
        if status & !(status::NEEDS_RESET | status::FAILED) != reached {
            return Err(refuse(format!("status is {status:#x}, which no driver reaches")));
        }
        let accepted = self.setup.accepted;
        if status & status::FEATURES_OK != 0
            && (accepted & !self.setup.offered != 0 || accepted & feature::VERSION_1 == 0)
        {
            let offered = self.setup.offered;
            return Err(refuse(format!("accepted is {accepted:#x}, and {offered:#x} were offered")));
        }
        Ok(())
    }

    fn check_queues(&self, wired: &Wired) -> Result<(), StateError> {
        wired.setup().check(&self.setup, &wired.ram.map()).map_err(refuse)?;
        let queues = &self.setup.queues;
        if self.positions.len() != queues.len() {
            let (found, queues) = (self.positions.len(), queues.len());
            return Err(refuse(format!("positions has {found} queues, and there are {queues}")));
        }
        for (n, (queue, position)) in queues.iter().zip(&self.positions).enumerate() {
            if position.is_some() != (queue.enabled && runs(self.link.status)) {
                return Err(refuse(format!(
                    "position of queue {n} is {position:?}, and the queue does {}run",
                    if position.is_some() { "not " } else { "" }
                )));
            }
            let Some(position) = position else { continue };
            // No more can have been taken and not been given back. Whether there is that much in the available ring is the
            // driver's to say, who may change its mind; it is checked whenever the ring is read.
            let Position { next_avail, next_used } = *position;
            if next_avail.wrapping_sub(next_used) > queue.size {
                return Err(refuse(format!(
                    "queue {n} of {} has taken up to {next_avail} and given back up to {next_used}",
                    queue.size
                )));
            }
        }
        Ok(())
    }
}
