//! What is saved of a device that another process serves: what its driver was told of it, what the driver wrote, and what the other
//! process knows beyond that, where it can say so ([`super::handover`]). It is at rest when this is saved, and has nothing under way.

use device::DeviceError;
use device::state::{Node, State, StateError};
use serde::{Deserialize, Serialize};

use super::dial::{self, Knows};
use super::handover;
use super::shared::{Shared, Talk};
use crate::wire::protocol;
use crate::{BackError, PeerError};

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
    /// What the back end knows of its driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    known: Option<Known>,
}

/// Bytes that mean something to back ends.
#[derive(Debug, Serialize, Deserialize)]
struct Known(#[serde(with = "device::hexadecimal")] Vec<u8>);

impl State for RemoteState {
    const KIND: &'static str = "vhost-user";
}

impl Shared {
    pub(super) fn save(&self) -> Result<Node, DeviceError> {
        let (id, socket) = (&self.wish.id, &self.wish.way);
        let mut talk = self.talk();
        let known = match self.wish.knows != Knows::Nothing && talk.driver.features.is_some() {
            true => Some(self.known(&mut talk)?),
            false => None,
        };
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
            known,
        };
        Node::of(&state).map_err(|e| DeviceError::new(format!("cannot save the state of {id:?}"), e))
    }

    /// Asks the back end what it knows of its driver.
    fn known(&self, talk: &mut Talk) -> Result<Known, DeviceError> {
        let cannot = |why: String| {
            let (id, socket) = (&self.wish.id, &self.wish.way);
            let what =
                format!("what the back end of {id:?} at {socket} knows of its driver cannot be saved: {why}");
            DeviceError { what, source: None }
        };
        if talk.client.is_some() && talk.agreed & protocol::DEVICE_STATE == 0 {
            return Err(cannot(lacks().line()));
        }
        let asked = self.say(talk, |client, _| match handover::take(client) {
            // It goes on all the same.
            Err(e @ (BackError::Refused(_) | BackError::KnowsTooMuch)) => Ok(Err(e)),
            other => other.map(Ok),
        });
        match asked {
            Ok(Some(Ok(known))) => Ok(Known(known)),
            Ok(Some(Err(e))) | Err(e) => Err(cannot(e.line())),
            Ok(None) => Err(cannot("it is away".to_owned())),
        }
    }

    /// Tells the back end what another one knew of the driver.
    fn tell_known(&self, known: &[u8]) -> Result<(), BackError> {
        let mut talk = self.talk();
        if talk.client.is_some() && talk.agreed & protocol::DEVICE_STATE == 0 {
            return Err(lacks());
        }
        let told = self.say(&mut talk, |client, _| handover::give(client, known))?;
        talk.told = told.is_some();
        told.ok_or(BackError::Peer(PeerError::HungUp))
    }

    pub(super) fn load(&self, node: Node) -> Result<(), StateError> {
        let saved: RemoteState = node.read()?;
        let (id, socket) = (&self.wish.id, &self.wish.way);
        let refuse = |what: String| Err(StateError::value::<RemoteState>(what));
        if saved.device != self.wish.number {
            return refuse(format!("{id:?} was a device of type {}", saved.device));
        }
        if let Some(Known(known)) = &saved.known {
            if self.wish.knows == Knows::Nothing || known.len() > handover::MOST {
                let count = known.len();
                return refuse(format!("no back end of {id:?} had {count} bytes to say of its driver"));
            }
            if let Err(e) = self.tell_known(known) {
                let why = e.line();
                return refuse(format!(
                    "{id:?} with the back end at {socket}, which is to know of its driver what another one did: {why}"
                ));
            }
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

/// What a back end needs that is to say, or to be told, what is known of a driver.
fn lacks() -> BackError {
    BackError::Lacks(dial::names(protocol::DEVICE_STATE, protocol::NAMES))
}
