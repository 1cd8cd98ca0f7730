//! What a device saves, so that another process can go on with it.
//!
//! A [`Node`] is a kind, a version and a body; nodes nest where a device is made of parts. State structures ([`State`]) are not
//! runtime types: a device makes one when it is saved and checks every field of one when it is loaded, because what is read back
//! is untrusted. Fields are only ever added, with defaults; a change of meaning raises [`State::VERSION`] and brings an
//! [`State::upgrade`]. A kind, version, field or part that nobody takes is an error that names it.
//!
//! Not state: counters and the limits of logs, which start anew, and output that the host has not read yet.
//!
//! Nothing here touches a file, guest memory or a live device.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use thiserror::Error;

/// The saved state of a device, or of a part of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// What it is the state of, such as `ioapic`.
    pub kind: String,
    /// Version of the body.
    pub version: u32,
    /// The state itself: the text that it is written as, which is looked at only by whoever takes it.
    pub(crate) body: Box<RawValue>,
    /// States of parts, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, Node>,
}

/// The form of one kind of state. Derive `Deserialize` with `deny_unknown_fields`.
pub trait State: Serialize + DeserializeOwned {
    /// Name of the kind.
    const KIND: &'static str;

    /// Version that is written.
    const VERSION: u32 = 1;

    /// Turns the body of an earlier version into one of [`State::VERSION`].
    ///
    /// # Errors
    /// Nothing is known of that version.
    fn upgrade(version: u32, _body: Value) -> Result<Value, StateError> {
        Err(StateError::Version { kind: Self::KIND, version, newest: Self::VERSION })
    }
}

/// Why a state cannot be loaded.
#[derive(Debug, Error)]
pub enum StateError {
    /// It is the state of something else.
    #[error("expected the state of kind {expected:?}, found {found:?}")]
    Kind {
        /// What loads it.
        expected: &'static str,
        /// What it says it is.
        found: String,
    },
    /// A version that this program does not know.
    #[error("state {kind:?} has version {version}, and this program knows versions up to {newest}")]
    Version {
        /// The kind.
        kind: &'static str,
        /// The version found.
        version: u32,
        /// The newest known.
        newest: u32,
    },
    /// The body does not have the form of its kind.
    #[error("state {kind:?} is malformed")]
    Malformed {
        /// The kind.
        kind: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A value that cannot be.
    #[error("state {kind:?}: {what}")]
    Value {
        /// The kind.
        kind: &'static str,
        /// What is wrong, naming field and value.
        what: String,
    },
    /// A part or a whole state is not there.
    #[error("the state of {0} is missing")]
    Missing(String),
    /// There is more than anybody takes.
    #[error("there is a state of {0}, which this machine does not have")]
    LeftOver(String),
}

impl StateError {
    /// A value that cannot be.
    pub fn value<S: State>(what: impl Into<String>) -> Self {
        StateError::Value { kind: S::KIND, what: what.into() }
    }
}

impl Node {
    /// The node of a state.
    ///
    /// # Errors
    /// None in practice: states are plain values.
    pub fn of<S: State>(state: &S) -> Result<Node, StateError> {
        let malformed = |source| StateError::Malformed { kind: S::KIND, source };
        let body = serde_json::value::to_raw_value(state).map_err(malformed)?;
        Ok(Node { kind: S::KIND.to_owned(), version: S::VERSION, body, parts: BTreeMap::new() })
    }

    /// Adds the state of a part.
    #[must_use]
    pub fn with(mut self, name: &str, part: Node) -> Node {
        self.parts.insert(name.to_owned(), part);
        self
    }

    /// Takes the state of a part out.
    ///
    /// # Errors
    /// There is none.
    pub fn part(&mut self, name: &str) -> Result<Node, StateError> {
        self.parts.remove(name).ok_or_else(|| StateError::Missing(format!("part {name:?}")))
    }

    /// Reads the state; its parts have been taken before.
    ///
    /// # Errors
    /// Another kind, an unknown version, a body of another form, or a part that nobody took.
    pub fn read<S: State>(self) -> Result<S, StateError> {
        if self.kind != S::KIND {
            return Err(StateError::Kind { expected: S::KIND, found: self.kind });
        }
        if let Some(name) = self.parts.keys().next() {
            return Err(StateError::LeftOver(format!("part {name:?}")));
        }
        let malformed = |source| StateError::Malformed { kind: S::KIND, source };
        match self.version {
            version if version == S::VERSION => serde_json::from_str(self.body.get()).map_err(malformed),
            version if (1..S::VERSION).contains(&version) => {
                let body = serde_json::from_str(self.body.get()).map_err(malformed)?;
                // By way of text here as there: a second set of deserialisers for every state would be hundreds of kilobytes.
                serde_json::from_str(&S::upgrade(version, body)?.to_string()).map_err(malformed)
            }
            version => Err(StateError::Version { kind: S::KIND, version, newest: S::VERSION }),
        }
    }
}

/// Loads nothing: for a device without state.
///
/// # Errors
/// There is a state all the same.
pub fn none(node: Option<Node>) -> Result<(), StateError> {
    node.map_or(Ok(()), |node| Err(StateError::LeftOver(format!("kind {:?}", node.kind))))
}

/// Loads a state that must be there.
///
/// # Errors
/// It is missing.
pub fn some(node: Option<Node>) -> Result<Node, StateError> {
    node.ok_or_else(|| StateError::Missing("the device".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Lamp {
        lit: bool,
        #[serde(default)]
        colour: u32,
    }

    impl State for Lamp {
        const KIND: &'static str = "lamp";
        const VERSION: u32 = 3;

        fn upgrade(version: u32, mut body: Value) -> Result<Value, StateError> {
            match version {
                // Version 2 told the opposite.
                2 => {
                    let dark = body["dark"].take().as_bool().unwrap_or_default();
                    Ok(json!({ "lit": !dark }))
                }
                _ => Err(StateError::Version { kind: Self::KIND, version, newest: Self::VERSION }),
            }
        }
    }

    fn node(version: u32, body: Value) -> Node {
        let body = serde_json::value::to_raw_value(&body).unwrap();
        Node { kind: "lamp".into(), version, body, parts: BTreeMap::new() }
    }

    #[test]
    fn what_was_saved_is_read_again() {
        let lamp = Lamp { lit: true, colour: 7 };
        let text = serde_json::to_string(&Node::of(&lamp).unwrap()).unwrap();
        assert_eq!(text, r#"{"kind":"lamp","version":3,"body":{"lit":true,"colour":7}}"#);
        let node: Node = serde_json::from_str(&text).unwrap();
        assert_eq!(node.read::<Lamp>().unwrap(), lamp);
    }

    #[test]
    fn older_versions_are_upgraded_and_unknown_ones_refused() {
        assert!(node(2, json!({ "dark": false })).read::<Lamp>().unwrap().lit);
        for version in [0, 1, 4, u32::MAX] {
            let e = node(version, json!({ "lit": true })).read::<Lamp>().unwrap_err();
            assert_eq!(
                e.to_string(),
                format!("state \"lamp\" has version {version}, and this program knows versions up to 3")
            );
        }
    }

    #[test]
    fn what_nobody_takes_is_refused_by_name() {
        let lit = || node(3, json!({ "lit": true }));
        let mut with = lit().with("bulb", lit());
        assert!(
            matches!(with.clone().read::<Lamp>(), Err(StateError::LeftOver(what)) if what.contains("bulb"))
        );
        with.part("bulb").unwrap();
        assert!(with.clone().read::<Lamp>().is_ok());
        assert!(matches!(with.part("bulb"), Err(StateError::Missing(_))));
        assert!(node(3, json!({ "lit": true, "smell": 1 })).read::<Lamp>().is_err());
        assert!(node(3, json!({ "lit": 1 })).read::<Lamp>().is_err());
        assert!(Node { kind: "oven".into(), ..lit() }.read::<Lamp>().is_err());
        assert!(none(Some(lit())).is_err() && none(None).is_ok());
        assert!(some(None).is_err());
    }
}
