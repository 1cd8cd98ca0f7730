//! What is different when a saved machine is restored: properties of its devices, given by the names they have in `vm.create`.
//!
//! On the command line the same is written with the device's own flag: `--restore source_url=file:///srv/snapshot --disk
//! id=_disk0,path=/srv/copy.img`. A device says which of its properties may change ([`device::Build::REPLACEABLE`]); everything
//! else is refused, because the guest relies on it.

use std::collections::BTreeMap;

use device::Build;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use spec::{ParseError, Refusal, Spec};

/// Properties to set; `null` is "not given".
pub type Patch = Map<String, Value>;

/// The patches of each property of a machine, such as `disks`. Properties that name no device are not looked at, as everywhere in
/// the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Overrides(pub BTreeMap<String, Value>);

impl Overrides {
    /// Adds a patch to a property that is a list.
    pub fn push(&mut self, field: &str, patch: Patch) {
        match self.0.entry(field.to_owned()).or_insert_with(|| Value::Array(Vec::new())) {
            Value::Array(list) => list.push(Value::Object(patch)),
            other => *other = Value::Array(vec![Value::Object(patch)]),
        }
    }

    /// Sets the patch of a property that is a single device.
    pub fn set(&mut self, field: &str, patch: Patch) {
        self.0.insert(field.to_owned(), Value::Object(patch));
    }

    /// The patch of a single device.
    ///
    /// # Errors
    /// Not a JSON object.
    pub fn one(&self, field: &str) -> Result<Option<&Patch>, Refusal> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(patch)) => Ok(Some(patch)),
            Some(_) => {
                Err(Refusal::invalid(format!("{field} must be a JSON object of properties to replace")))
            }
        }
    }

    /// The patches of a list of devices, each with the id of its device.
    ///
    /// # Errors
    /// Not a list of JSON objects, or one without `id`.
    pub fn many(&self, field: &str) -> Result<Vec<(&str, &Patch)>, Refusal> {
        let shape = || {
            Refusal::invalid(format!(
                "{field} must be a list of JSON objects, each with the id of its device"
            ))
        };
        let list = match self.0.get(field) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(shape()),
        };
        list.iter().map(|item| named(item).ok_or_else(shape)).collect()
    }
}

/// The id of a patch's device, and the patch.
fn named(item: &Value) -> Option<(&str, &Patch)> {
    let patch = item.as_object()?;
    Some((patch.get("id")?.as_str()?, patch))
}

/// The properties that an option text sets.
///
/// # Errors
/// What the grammar refused.
pub fn patch_of<S: Spec>(text: &str) -> Result<Patch, Refusal> {
    let parse = || -> Result<Patch, ParseError> {
        let keys = S::keys();
        let mut options = S::options(text)?;
        let whole = as_value(&S::take(&mut options)?).map_err(|e| ParseError::Other(e.to_string()))?;
        let set = keys.iter().filter(|key| options.is_set(key.name)).flat_map(|key| key.fields);
        Ok(set
            .map(|field| ((*field).to_owned(), whole.get(*field).cloned().unwrap_or(Value::Null)))
            .collect())
    };
    parse().map_err(|e| Refusal::new(e.kind(), format!("Error parsing --{}", S::FLAG)).because(e))
}

/// A specification as a JSON value. By way of its text: the program has the code for that anyway, and a second set of it would be
/// hundreds of kilobytes.
fn as_value(spec: &impl Serialize) -> serde_json::Result<Value> {
    serde_json::from_slice(&serde_json::to_vec(spec)?)
}

/// The specification with the patch's properties in place of its own.
///
/// # Errors
/// A property that may not change, or a value that it cannot have.
pub fn patched<S: Build>(spec: &S, patch: &Patch) -> Result<S, Refusal> {
    changed(spec, patch, S::REPLACEABLE)
}

/// The same for what is no device, where these properties may change.
///
/// # Errors
/// As for [`patched`].
pub fn changed<S: Spec>(spec: &S, patch: &Patch, replaceable: &[&str]) -> Result<S, Refusal> {
    let mut whole = match as_value(spec) {
        Ok(Value::Object(whole)) => whole,
        _ => return Err(Refusal::new(spec::Kind::Bug, format!("--{} has no form in JSON", S::FLAG))),
    };
    for (field, value) in patch {
        if field != "id" && !replaceable.contains(&field.as_str()) {
            return Err(Refusal::invalid(format!(
                "{field} of a restored --{} cannot be replaced, because the guest relies on it; what can: {}",
                S::FLAG,
                if replaceable.is_empty() { "nothing".to_owned() } else { replaceable.join(", ") }
            )));
        }
        whole.insert(field.clone(), value.clone());
    }
    serde_json::from_slice(Value::Object(whole).to_string().as_bytes())
        .map_err(|e| Refusal::invalid(format!("Cannot replace properties of --{}", S::FLAG)).because(e))
}

#[cfg(test)]
#[path = "overrides_tests.rs"]
mod tests;
