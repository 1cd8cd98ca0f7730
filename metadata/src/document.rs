//! The document, and what a path in it means.
//!
//! `/latest/meta-data/hostname` is a string's text; an object lists its names, a line each, with a slash behind those of objects. A client
//! that prefers JSON gets the part of the document as it is. A version in front that the document does not name, such as `2021-03-23`,
//! stands for `latest`, and where there is no `latest` either, for the whole document.

use std::fmt;

use serde_json::{Map, Value};

/// Most bytes of a document, written without spaces between its parts.
pub const MAX_DOCUMENT: usize = 51_200;

/// A JSON object of at most [`MAX_DOCUMENT`] bytes. What is in it may be secret and is not shown by `Debug`.
#[derive(Clone, Default, PartialEq)]
pub struct Document(Map<String, Value>);

/// What changes a document: a JSON merge patch (RFC 7396). `Debug` does not show it.
#[derive(Clone, PartialEq)]
pub struct Patch(Map<String, Value>);

/// Why something is no document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// No JSON, or not an object.
    #[error("it must be a JSON object")]
    Json(#[from] serde_json::Error),
    /// It is too large.
    #[error("it has {0} bytes, and {MAX_DOCUMENT} are possible")]
    TooLarge(usize),
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({} bytes)", self.to_json().len())
    }
}

impl fmt::Debug for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Patch")
    }
}

impl Patch {
    /// Reads a patch.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text).map(Patch)
    }
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// It is no JSON object, or too large.
    pub fn parse(text: &[u8]) -> Result<Self, DocumentError> {
        Document(serde_json::from_slice(text)?).within_bounds()
    }

    fn within_bounds(self) -> Result<Self, DocumentError> {
        match self.to_json().len() {
            0..=MAX_DOCUMENT => Ok(self),
            length => Err(DocumentError::TooLarge(length)),
        }
    }

    /// The document with the patch applied.
    ///
    /// # Errors
    /// It would be too large.
    pub fn patched(&self, patch: &Patch) -> Result<Self, DocumentError> {
        let mut document = self.clone();
        merge(&mut document.0, &patch.0);
        document.within_bounds()
    }

    /// The document as JSON.
    pub fn to_json(&self) -> String {
        // A map of texts to values always has a form in JSON.
        serde_json::to_string(&self.0).unwrap_or_default()
    }

    /// What is at a path; slashes in front, behind and twice mean nothing.
    pub fn find(&self, path: &str) -> Option<Found<'_>> {
        let mut steps = path.split('/').filter(|step| !step.is_empty()).peekable();
        let mut map = &self.0;
        if steps.peek().is_some_and(|first| is_version(first) && !map.contains_key(*first)) {
            steps.next();
            if let Some(Value::Object(latest)) = map.get(LATEST) {
                map = latest;
            }
        }
        let Some(first) = steps.next() else { return Some(Found::All(map)) };
        let mut value = child(map, first)?;
        for step in steps {
            value = child(value.as_object()?, step)?;
        }
        Some(match value {
            Value::Object(map) => Found::All(map),
            value => Found::One(value),
        })
    }
}

/// The version that is always there.
const LATEST: &str = "latest";

/// Whether the first step of a path is a version: `latest`, a date, or the oldest one's number.
fn is_version(step: &str) -> bool {
    let is_date = || {
        let digits = |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
        let mut parts = step.split('-');
        [4, 2, 2].into_iter().all(|count| parts.next().is_some_and(|part| digits(part, count)))
            && parts.next().is_none()
    };
    step == LATEST || step == "1.0" || is_date()
}

/// A member of an object. `0=name` is also found as `0`: so are keys of users listed in EC2.
fn child<'a>(map: &'a Map<String, Value>, step: &str) -> Option<&'a Value> {
    map.get(step).or_else(|| {
        let is_number = !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit());
        let numbered = |name: &str| name.strip_prefix(step).is_some_and(|rest| rest.starts_with('='));
        map.iter().find(|(name, _)| is_number && numbered(name)).map(|(_, value)| value)
    })
}

/// Part of a document.
#[derive(Debug)]
pub enum Found<'a> {
    /// An object.
    All(&'a Map<String, Value>),
    /// Anything else.
    One(&'a Value),
}

impl Found<'_> {
    /// As JSON.
    pub fn json(&self) -> String {
        match self {
            Found::All(map) => serde_json::to_string(map),
            Found::One(value) => serde_json::to_string(value),
        }
        // Values of a document always have a form in JSON.
        .unwrap_or_default()
    }

    /// As text: the names in an object; a string as it is; a list of plain values, a line each.
    pub fn text(&self) -> String {
        match self {
            Found::All(map) => {
                let line = |(name, value): (&String, &Value)| match value {
                    Value::Object(_) if !name.contains('=') => format!("{name}/"),
                    _ => name.clone(),
                };
                map.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            Found::One(Value::Array(list)) if !list.iter().any(|v| v.is_array() || v.is_object()) => {
                list.iter().map(plain).collect::<Vec<_>>().join("\n")
            }
            Found::One(value) => plain(value),
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// RFC 7396 §2. Nests no deeper than both were when they were read.
fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                target.remove(name);
            }
            Value::Object(patch) => {
                let entry = target.entry(name.clone()).or_insert(Value::Null);
                if !entry.is_object() {
                    *entry = Value::Object(Map::new());
                }
                if let Value::Object(target) = entry {
                    merge(target, patch);
                }
            }
            value => {
                target.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
