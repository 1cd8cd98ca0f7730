//! What is saved of a network device: what its driver set up by command, which the tap has to be told again.
//!
//! The MAC is not compared: it is the specification's, and may have been changed on purpose for a copy of the machine. What waits
//! in the tap is no state of the device.

use std::sync::atomic::Ordering;

use device::state::{Node, State, StateError};
use serde::{Deserialize, Serialize};

use super::Net;
use super::wire::{STATUS_ANNOUNCE, STATUS_LINK_UP, feature};

/// A network device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetState {
    #[serde(deserialize_with = "Option::deserialize")]
    mtu: Option<u16>,
    /// If a driver is active.
    #[serde(deserialize_with = "Option::deserialize")]
    driver: Option<Settings>,
}

/// What a driver set up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Queue pairs in use.
    pub(super) pairs: u16,
    /// What the driver takes, as the bits of features.
    pub(super) offloads: u64,
    /// The driver is asked to announce itself and has not done so.
    pub(super) announce: bool,
}

impl State for NetState {
    const KIND: &'static str = "virtio-net";
}

impl Settings {
    /// Those of a driver that has accepted these features and given no command.
    pub(super) fn new(features: u64) -> Self {
        Settings { pairs: 1, offloads: features & feature::GUEST_OFFLOADS, announce: false }
    }

    /// Whether a driver with these features can have come there.
    pub(super) fn suit(&self, features: u64) -> bool {
        let first = Settings::new(features);
        let may = |bit| features & bit != 0;
        (self.pairs == first.pairs || may(feature::MQ))
            && (self.offloads == first.offloads || may(feature::CTRL_GUEST_OFFLOADS))
            && self.offloads & !first.offloads == 0
    }

    /// The status in the configuration space.
    pub(super) fn status(&self) -> u16 {
        STATUS_LINK_UP | if self.announce { STATUS_ANNOUNCE } else { 0 }
    }
}

/// The state of a device with this MTU.
pub(super) fn node(mtu: Option<u16>, driver: Option<Settings>) -> Result<Node, StateError> {
    Node::of(&NetState { mtu, driver })
}

/// What a driver had set up, for the device `id` with this MTU and so many pairs.
pub(super) fn settings(
    node: Node,
    id: &str,
    mtu: Option<u16>,
    pairs: usize,
) -> Result<Option<Settings>, StateError> {
    let saved: NetState = node.read()?;
    let refuse = |what: String| Err(StateError::value::<NetState>(what));
    if saved.mtu != mtu {
        return refuse(format!("mtu of {id:?} is {:?}, and the specification's is {mtu:?}", saved.mtu));
    }
    if let Some(driver) = saved.driver
        && !(1..=pairs).contains(&usize::from(driver.pairs))
    {
        return refuse(format!("pairs of {id:?} is {}, and there are {pairs}", driver.pairs));
    }
    Ok(saved.driver)
}

impl Net {
    pub(super) fn save_state(&self) -> Result<Node, StateError> {
        let shared = &self.shared;
        let active = shared.features.load(Ordering::Acquire) != 0;
        let driver = active.then(|| Settings {
            // At most 256: see `net_util::MAX_QUEUE_PAIRS`.
            pairs: shared.pairs.in_use() as u16,
            offloads: shared.offloads.load(Ordering::Acquire),
            announce: shared.status.load(Ordering::Acquire) & STATUS_ANNOUNCE != 0,
        });
        node(self.mtu, driver)
    }

    /// Checks a state; it is put into effect when the device is activated, which it is if it was active before.
    pub(super) fn load_state(&self, node: Node) -> Result<(), StateError> {
        *self.loaded() = settings(node, &self.shared.id, self.mtu, self.pairs())?;
        Ok(())
    }
}
