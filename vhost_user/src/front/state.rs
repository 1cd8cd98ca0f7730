//! What is saved of a device that another process serves: what its driver was told of it, and what the driver wrote. What the other
//! process knows is its own business; it is at rest when this is saved, and has nothing under way.

use device::DeviceError;
use device::state::{Node, State, StateError};
use serde::{Deserialize, Serialize};

use super::shared::Shared;

/// A device behind a socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteState {
    /// Its type (virtio 1.3 §5).
    device: u16,
    /// The configuration space, as the back end told it.
    config: Vec<u8>,
    /// Offsets in it, and what the driver wrote there.
    written: Vec<(u16, u8)>,
}

impl State for RemoteState {
    const KIND: &'static str = "vhost-user";
}

impl Shared {
    pub(super) fn save(&self) -> Result<Node, DeviceError> {
        let (id, socket) = (&self.wish.id, &self.wish.way);
        let talk = self.talk();
        if self.wish.stateful && talk.driver.features.is_some() {
            let what = format!("what the back end of {id:?} at {socket} knows of its driver cannot be saved");
            return Err(DeviceError { what, source: None });
        }
        if talk.unsure {
            let what = format!(
                "the back end of {id:?} at {socket} went away with requests under way, and is not back"
            );
            return Err(DeviceError { what, source: None });
        }
        let shown = self.shown();
        let state = RemoteState {
            device: self.wish.number,
            config: shown.bytes.clone(),
            // At most 4096: see `Virtio::config_length`.
            written: shown.written.iter().map(|(at, byte)| (*at as u16, *byte)).collect(),
        };
        Node::of(&state).map_err(|e| DeviceError::new(format!("cannot save the state of {id:?}"), e))
    }

    pub(super) fn load(&self, node: Node) -> Result<(), StateError> {
        let saved: RemoteState = node.read()?;
        let (id, socket) = (&self.wish.id, &self.wish.way);
        let refuse = |what: String| Err(StateError::value::<RemoteState>(what));
        if saved.device != self.wish.number {
            return refuse(format!("{id:?} was a device of type {}", saved.device));
        }
        let mut shown = self.shown();
        let (then, now) = (saved.config.len(), shown.bytes.len());
        if then != now {
            return refuse(format!("{id:?} had {then} bytes of configuration, and has {now}"));
        }
        if let Err(what) = (self.wish.config.fits)(&saved.config, &shown.bytes) {
            return refuse(format!("{id:?} with the back end at {socket}: {what}"));
        }
        if let Some((at, _)) =
            saved.written.iter().find(|(at, _)| !self.wish.config.writable.contains(&usize::from(*at)))
        {
            return refuse(format!("no driver writes to offset {at} of the configuration"));
        }
        shown.bytes = saved.config;
        shown.written = saved.written.into_iter().map(|(at, byte)| (at.into(), byte)).collect();
        Ok(())
    }
}
