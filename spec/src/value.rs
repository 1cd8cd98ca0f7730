//! Converting one value: switches, numbers, sizes, lists, paths.
//!
//! A type that implements [`Value`] can be a field of a [`crate::spec!`] struct; a group of keys that belongs together
//! implements [`Part`] and is flattened into the structs that have it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::grammar::{Hint, Key, Options, ParseError, dequote, split};

/// A value that follows `key=`.
pub trait Value: Sized {
    /// How to write it, for help texts: `<path>`, `on|off`.
    const SYNTAX: &'static str;

    /// Converts the text; `Err` says what would have been right.
    ///
    /// # Errors
    /// A hint such as `expected on or off`.
    fn convert(text: &str) -> Result<Self, String>;

    /// The value as it would be written, for the help's defaults.
    fn show(&self) -> String;

    /// Whether it is left out of JSON.
    fn is_absent(&self) -> bool {
        false
    }
}

/// A group of keys.
pub trait Part: Sized {
    /// The keys, in the order of the help.
    fn keys() -> Vec<Key>;

    /// Takes the group's values.
    ///
    /// # Errors
    /// What the grammar or a conversion refused.
    fn take(options: &mut Options) -> Result<Self, ParseError>;

    /// The first key in use that this version does not offer; asked of JSON bodies, which the grammar has not seen.
    fn unsupported(&self) -> Option<&'static str> {
        None
    }
}

/// Takes one key's value, or the default.
///
/// # Errors
/// [`ParseError::Convert`] with the key and a hint.
pub fn take<V: Value>(options: &Options, key: &str, default: V) -> Result<V, ParseError> {
    match options.raw(key) {
        None => Ok(default),
        Some(text) => V::convert(text).map_err(|hint| ParseError::Convert {
            key: key.to_owned(),
            value: text.to_owned(),
            hint: Hint(hint),
        }),
    }
}

impl Value for bool {
    const SYNTAX: &'static str = "on|off";

    fn convert(text: &str) -> Result<Self, String> {
        match dequote(text).to_ascii_lowercase().as_str() {
            "on" | "true" => Ok(true),
            "off" | "false" => Ok(false),
            _ => Err("expected on or off".into()),
        }
    }

    fn show(&self) -> String {
        if *self { "on" } else { "off" }.into()
    }
}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl Value for $t {
            const SYNTAX: &'static str = "<number>";

            fn convert(text: &str) -> Result<Self, String> {
                dequote(text)
                    .parse()
                    .map_err(|_| format!("expected a decimal number from {} to {}", <$t>::MIN, <$t>::MAX))
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
integers!(u8 u16 u32 u64 usize i32);

impl Value for String {
    const SYNTAX: &'static str = "<text>";

    fn convert(text: &str) -> Result<Self, String> {
        Ok(dequote(text))
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    const SYNTAX: &'static str = "<path>";

    fn convert(text: &str) -> Result<Self, String> {
        Ok(dequote(text).into())
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for IpAddr {
    const SYNTAX: &'static str = "<address>";

    fn convert(text: &str) -> Result<Self, String> {
        dequote(text).parse().map_err(|_| "expected an IPv4 or IPv6 address".into())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl<V: Value> Value for Option<V> {
    const SYNTAX: &'static str = V::SYNTAX;

    fn convert(text: &str) -> Result<Self, String> {
        V::convert(text).map(Some)
    }

    fn show(&self) -> String {
        self.as_ref().map(V::show).unwrap_or_default()
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

/// A size in bytes; written with an optional `K`, `M`, `G` or `T` (binary), in either case, with or without `iB` or `B`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Value for Bytes {
    const SYNTAX: &'static str = "<size>";

    fn convert(text: &str) -> Result<Self, String> {
        let hint =
            || "expected a number of bytes, or one with K, M, G or T (binary), below 16 EiB".to_owned();
        let text = dequote(text).to_ascii_lowercase();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
            "" if text.len() == digits.len() || text.ends_with('b') && !text.ends_with("ib") => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(hint()),
        };
        let number: u64 = digits.parse().map_err(|_| hint())?;
        number.checked_mul(1 << shift).map(Bytes).ok_or_else(hint)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A list of numbers: `[0,2-4,6]`, the outer brackets optional.
///
/// # Errors
/// A hint that says what a list looks like.
pub fn integer_list<T: TryFrom<u64>>(text: &str) -> Result<Vec<T>, String> {
    let hint = || "expected a list of numbers such as [0,2-4,6]".to_owned();
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let mut list = Vec::new();
    for item in inner.split(',') {
        let (first, last) = match item.split_once('-') {
            Some((a, b)) => {
                let (a, b) = (a.parse::<u64>().map_err(|_| hint())?, b.parse::<u64>().map_err(|_| hint())?);
                // A range is short enough to be written out by hand; a long one is a slip or an attack on memory.
                if a >= b || b - a > 65_536 {
                    return Err(hint());
                }
                (a, b)
            }
            None => item.parse::<u64>().map(|n| (n, n)).map_err(|_| hint())?,
        };
        for n in first..=last {
            list.push(T::try_from(n).map_err(|_| format!("{n} is out of range"))?);
        }
    }
    Ok(list)
}

/// A list of texts: `[a,b]`, the outer brackets optional.
///
/// # Errors
/// A hint when quotes or brackets do not balance.
pub fn string_list(text: &str) -> Result<Vec<String>, String> {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let pieces = split(inner).map_err(|e| e.to_string())?;
    Ok(pieces.into_iter().map(str::to_owned).collect())
}

/// A list of pairs: `[key@value,key@[1,2-3]]`, the outer brackets required; values are left as text.
///
/// # Errors
/// A hint that says what such a list looks like.
pub fn tuple_list(text: &str) -> Result<Vec<(String, String)>, String> {
    let hint = || "expected a list of pairs such as [0@[1,2-3],1@4]".to_owned();
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or_else(hint)?;
    let mut list = Vec::new();
    for item in split(inner).map_err(|_| hint())? {
        let (key, value) = item.trim().split_once('@').ok_or_else(hint)?;
        if key.is_empty() || value.contains('@') {
            return Err(hint());
        }
        list.push((dequote(key), value.to_owned()));
    }
    Ok(list)
}

/// A key of the contract that this version does not offer: accepted when it says "no" (`off`, `false`, null, 0, empty).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsupported(pub bool);

impl Value for Unsupported {
    const SYNTAX: &'static str = "";

    fn convert(text: &str) -> Result<Self, String> {
        match dequote(text).to_ascii_lowercase().as_str() {
            "off" | "false" | "0" => Ok(Unsupported(false)),
            _ => Err("not supported yet".into()),
        }
    }

    fn show(&self) -> String {
        String::new()
    }

    fn is_absent(&self) -> bool {
        !self.0
    }
}

impl Serialize for Unsupported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(self.0)
    }
}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyUse).map(Unsupported)
    }
}

/// Tells whether a JSON value asks for anything.
struct AnyUse;

impl<'de> serde::de::Visitor<'de> for AnyUse {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<bool, E> {
        Ok(v)
    }

    fn visit_i64<E>(self, v: i64) -> Result<bool, E> {
        Ok(v != 0)
    }

    fn visit_u64<E>(self, v: u64) -> Result<bool, E> {
        Ok(v != 0)
    }

    fn visit_f64<E>(self, v: f64) -> Result<bool, E> {
        Ok(v != 0.0)
    }

    fn visit_str<E>(self, v: &str) -> Result<bool, E> {
        Ok(!v.is_empty())
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_none<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        let mut any = false;
        while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {
            any = true;
        }
        Ok(any)
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut any = false;
        while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {
            any = true;
        }
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes_in_either_case() {
        for (text, bytes) in
            [("512", 512), ("1K", 1024), ("2m", 2 << 20), ("3GiB", 3 << 30), ("1tb", 1 << 40), ("7b", 7)]
        {
            assert_eq!(Bytes::convert(text), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "K", "1KM", "1.5G", "-1", "1x", "17179869184G", "1ib"] {
            assert!(Bytes::convert(text).is_err(), "{text}");
        }
        assert_eq!(Bytes(512 << 20).show(), "512M");
    }

    #[test]
    fn lists_take_ranges_and_refuse_what_is_none() {
        assert_eq!(integer_list::<u64>("[0,2-4,6]").unwrap(), [0, 2, 3, 4, 6]);
        assert_eq!(integer_list::<u8>("3").unwrap(), [3]);
        for text in ["[]", "[4-2]", "[1, 2]", "[a]", "[0-99999999999]"] {
            assert!(integer_list::<u64>(text).is_err(), "{text}");
        }
        assert!(integer_list::<u8>("[256]").is_err());
    }

    #[test]
    fn pairs_need_brackets_and_one_at_sign() {
        assert_eq!(
            tuple_list("[0@[1,2-3],1@4]").unwrap(),
            [("0".into(), "[1,2-3]".into()), ("1".into(), "4".into())]
        );
        for text in ["0@1", "[@1]", "[0]", "[0@1@2]"] {
            assert!(tuple_list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unsupported_key_may_say_no() {
        assert_eq!(Unsupported::convert("off"), Ok(Unsupported(false)));
        assert!(Unsupported::convert("/tmp/x").is_err());
    }
}
