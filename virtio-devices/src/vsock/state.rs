//! What is saved of a socket device. Connections are not: their other ends are programs of this host's. The guest is told so when it
//! goes on.

use device::state::{Node, State, StateError};
use serde::{Deserialize, Serialize};

use super::Vsock;
use super::muxer::FIRST_PORT;

/// A socket device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VsockState {
    cid: u32,
    /// If a driver is active.
    #[serde(deserialize_with = "Option::deserialize")]
    driver: Option<Driver>,
}

/// What a driver may rely on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Driver {
    /// The host's port of the next connection that the host asks for: the guest may not have forgotten the earlier ones.
    pub(super) next_port: u32,
}

impl State for VsockState {
    const KIND: &'static str = "virtio-vsock";
}

impl Vsock {
    pub(super) fn save_state(&self) -> Result<Node, StateError> {
        let driver = self.next_port().map(|next_port| Driver { next_port });
        Node::of(&VsockState { cid: self.cid, driver })
    }

    /// Checks a state; it is put into effect when the device is activated, which it is if it was active before.
    pub(super) fn load_state(&self, node: Node) -> Result<(), StateError> {
        let saved: VsockState = node.read()?;
        let refuse = |what: String| Err(StateError::value::<VsockState>(what));
        if saved.cid != self.cid {
            return refuse(format!(
                "cid of {:?} is {}, and the specification's is {}",
                self.id, saved.cid, self.cid
            ));
        }
        if let Some(Driver { next_port }) = saved.driver
            && !(FIRST_PORT..u32::MAX).contains(&next_port)
        {
            return refuse(format!("next_port of {:?} is {next_port}, which is no port for it", self.id));
        }
        self.live().loaded = saved.driver;
        Ok(())
    }
}
