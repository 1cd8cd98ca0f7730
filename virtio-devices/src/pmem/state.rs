//! What is saved of persistent memory: how much of it the guest knows, and what became of its writes. The content is in the file, which
//! may be at another place when the state is loaded, and be another file.

use device::MapMode;
use device::state::{Node, State, StateError};
use serde::{Deserialize, Serialize};

use super::Pmem;

/// Persistent memory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PmemState {
    /// Bytes that the guest sees.
    length: u64,
    /// Bytes that the whole file had.
    file_length: u64,
    /// What the guest wrote was dropped.
    readonly: bool,
    /// What the guest wrote went to copies.
    discard_writes: bool,
}

impl State for PmemState {
    const KIND: &'static str = "virtio-pmem";
}

impl Pmem {
    pub(super) fn save_state(&self) -> Result<Node, StateError> {
        Node::of(&PmemState {
            length: self.backing.length(),
            file_length: self.backing.file_length(),
            readonly: self.readonly(),
            discard_writes: self.mapping.mode() == MapMode::Private,
        })
    }

    pub(super) fn load_state(&self, node: Node) -> Result<(), StateError> {
        let saved: PmemState = node.read()?;
        let refuse = |what: String| Err(StateError::value::<PmemState>(what));
        let path = self.backing.path().display();
        let (length, file_length) = (self.backing.length(), self.backing.file_length());
        if saved.length != length {
            return refuse(format!(
                "the guest has {} bytes of {path}, and there are {length} now",
                saved.length
            ));
        }
        if saved.file_length != file_length {
            return refuse(format!(
                "the file had {} bytes, and {path} has {file_length}; it is another one",
                saved.file_length
            ));
        }
        for (what, before, now) in [
            ("readonly", saved.readonly, self.readonly()),
            ("discard_writes", saved.discard_writes, self.mapping.mode() == MapMode::Private),
        ] {
            if before != now {
                return refuse(format!("{what} of {path} was {before}, and is {now}"));
            }
        }
        Ok(())
    }
}
