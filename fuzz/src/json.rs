//! Changes to a JSON document in single places, as somebody makes them who knows its form.

use serde_json::{Value, json};

use crate::input::Input;

/// The places of a document: pointers, in the order of the text.
pub fn places(value: &Value) -> Vec<String> {
    fn walk(value: &Value, path: &str, all: &mut Vec<String>) {
        all.push(path.to_owned());
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    walk(value, &format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), all);
                }
            }
            // The first few are as good as all.
            Value::Array(list) => {
                for (n, value) in list.iter().enumerate().take(8) {
                    walk(value, &format!("{path}/{n}"), all);
                }
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    walk(value, "", &mut all);
    all
}

fn number(input: &mut Input<'_>) -> Value {
    match input.u8() {
        0 => (-1).into(),
        1 => 0.5.into(),
        2 => i64::MIN.into(),
        3 => 1e300.into(),
        _ => input.value().into(),
    }
}

/// Values in a part that is put elsewhere or repeated, at most, and a sixteenth of those that repeating it makes: copies of copies would be more than
/// there is memory for, and none of it read from a file.
const HEAVY: usize = 4096;

/// How many values a value is.
fn weight(value: &Value) -> usize {
    let within = match value {
        Value::Array(list) => list.iter().map(weight).sum(),
        Value::Object(members) => members.values().map(weight).sum(),
        _ => 0,
    };
    1 + within
}

/// Changes a document in up to eight of its places.
pub fn change(value: &mut Value, places: &[String], input: &mut Input<'_>) {
    for _ in 0..1 + input.u8() % 8 {
        let place = &places[usize::from(input.u16()) % places.len()];
        let other = value
            .pointer(&places[usize::from(input.u8()) % places.len()])
            .filter(|other| weight(other) <= HEAVY);
        let other = other.cloned().unwrap_or_default();
        let how = input.u8();
        let Some(found) = value.pointer_mut(place) else { continue };
        match how % 10 {
            0..=3 => *found = number(input),
            4 => {
                *found = match input.u8() % 8 {
                    0 => Value::Null,
                    1 => true.into(),
                    2 => false.into(),
                    3 => "x".into(),
                    4 => json!([]),
                    5 => json!({}),
                    6 => "/".repeat(input.u8().into()).into(),
                    _ => json!([0, 0]),
                };
            }
            5 => *found = other,
            6 => match found {
                Value::Array(list) => {
                    let most = 16 * HEAVY / weight(&other);
                    list.resize(usize::from(input.u16() & 0x3ff).min(most), other);
                }
                Value::Object(members) => drop(members.insert("more".into(), other)),
                Value::String(text) => text.push('x'),
                Value::Bool(truth) => *truth = !*truth,
                _ => {}
            },
            7 => {
                if let Value::Array(list) = found {
                    list.pop();
                } else if let Value::Object(members) = found {
                    let nth = members.keys().nth(usize::from(input.u8())).cloned();
                    nth.and_then(|key| members.remove(&key));
                } else if let Some(n) = found.as_u64() {
                    *found = (n ^ 1 << (input.u8() & 63)).into();
                }
            }
            8 => {
                let length = input.u8().into();
                *found = String::from_utf8_lossy(input.bytes(length)).into();
            }
            _ => {
                if let Some(n) = found.as_u64() {
                    *found = n.wrapping_add(u64::from(input.u8())).wrapping_sub(128).into();
                }
            }
        }
    }
}
