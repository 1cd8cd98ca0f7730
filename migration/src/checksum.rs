//! CRC-32 (IEEE 802.3) of files, holes included.
//!
//! It finds accidents: any burst of 32 bits, and any other damage but one in four thousand million. It is no defence against
//! somebody who writes a snapshot on purpose; what is read stays untrusted.

use std::fmt;
use std::str::FromStr;

use crc32fast::Hasher;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::PAGE;

/// A checksum; written as eight lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checksum(u32);

impl Checksum {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Checksum(crc32fast::hash(bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for Checksum {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let right = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let value = if right { u32::from_str_radix(text, 16).ok() } else { None };
        value.map(Checksum).ok_or("a checksum has eight lower-case hexadecimal digits")
    }
}

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Runs of zero bytes up to this length are read like any others: that is quicker than to calculate what they do.
const SHORT: u64 = 4 * PAGE;

static ZEROS: [u8; SHORT as usize] = [0; SHORT as usize];

/// The checksum of a file that is read from front to end. Zero bytes need not be read, so a file has the same checksum whether or not its holes are holes.
pub(crate) struct Running {
    hasher: Hasher,
    /// What 2^n zero bytes do, by n.
    zeros: Vec<Hasher>,
}

impl Running {
    pub(crate) fn new() -> Self {
        let mut byte = Hasher::new();
        byte.update(&[0]);
        let mut zeros = vec![byte];
        for n in 1..u64::BITS as usize {
            let half = &zeros[n - 1];
            let mut whole = half.clone();
            whole.combine(half);
            zeros.push(whole);
        }
        Running { hasher: Hasher::new(), zeros }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    pub(crate) fn zeros(&mut self, length: u64) {
        if length <= SHORT {
            self.hasher.update(&ZEROS[..length as usize]);
            return;
        }
        for (n, run) in self.zeros.iter().enumerate() {
            if length >> n & 1 == 1 {
                self.hasher.combine(run);
            }
        }
    }

    pub(crate) fn finish(self) -> Checksum {
        Checksum(self.hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_specification_is_met() {
        assert_eq!(Checksum::of(b"123456789"), Checksum(0xcbf4_3926));
    }

    #[test]
    fn zeros_need_not_be_read() {
        for length in [0, 1, 4095, 4096, SHORT, SHORT + 1, 1_000_000, (8 << 20) + 4096] {
            let mut bytes = b"before".to_vec();
            bytes.resize(6 + usize::try_from(length).unwrap(), 0);
            bytes.extend(b"behind");
            let mut running = Running::new();
            running.update(b"before");
            running.zeros(length);
            running.update(b"behind");
            assert_eq!(running.finish(), Checksum::of(&bytes), "{length} zeros");
        }
    }

    #[test]
    fn the_written_form_is_the_only_one() {
        let checksum = Checksum(0xab);
        assert_eq!(checksum.to_string(), "000000ab");
        assert_eq!("000000ab".parse(), Ok(checksum));
        for text in ["ab", "000000AB", "+00000ab", "000000abc", ""] {
            assert!(text.parse::<Checksum>().is_err(), "{text}");
        }
    }
}
