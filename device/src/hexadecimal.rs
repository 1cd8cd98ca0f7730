//! Bytes in a saved state as one text of hexadecimal digits: thousands of numbers in a list take ten times as long to read.
//!
//! For `#[serde(with = "device::hexadecimal")]`.

use serde::de::{Deserialize as _, Error as _};
use serde::{Deserializer, Serializer};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes the text.
///
/// # Errors
/// Those of whoever writes it.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    let text: String = bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 0xf)]).collect();
    serializer.serialize_str(&text)
}

/// Reads the text.
///
/// # Errors
/// It is something else.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(pair).collect();
    bytes.ok_or_else(|| D::Error::custom("expected pairs of hexadecimal digits"))
}
