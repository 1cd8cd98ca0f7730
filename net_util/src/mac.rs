//! Ethernet addresses.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A 48-bit Ethernet address, written as six groups of two hexadecimal digits separated by `:`.
///
/// Either case is read, lower case is printed. In JSON it is a string.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr([u8; 6]);

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a MAC address (expected six groups of two hex digits, as in 2e:11:22:33:44:55)")]
pub struct ParseMacError(String);

impl MacAddr {
    /// The address with these bytes, in the order of transmission.
    pub const fn new(bytes: [u8; 6]) -> Self {
        MacAddr(bytes)
    }

    /// The bytes in the order of transmission.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// An address drawn from the kernel's random numbers: locally administered, for one station (not a group).
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0u8; 6];
        loop {
            // SAFETY: `bytes` is writable for its length; up to 256 bytes are given whole or not at all.
            let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            if n == bytes.len() as isize {
                break;
            }
            let error = io::Error::last_os_error();
            if n >= 0 || error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        bytes[0] = (bytes[0] & !GROUP) | LOCAL;
        Ok(MacAddr(bytes))
    }

    /// Whether this is the address of one station, not of a group.
    pub const fn is_unicast(self) -> bool {
        self.0[0] & GROUP == 0
    }

    /// Whether the address was given out by an administrator rather than by a manufacturer.
    pub const fn is_local(self) -> bool {
        self.0[0] & LOCAL != 0
    }
}

/// First octet: group address (IEEE 802, I/G bit).
const GROUP: u8 = 0x01;
/// First octet: locally administered (IEEE 802, U/L bit).
const LOCAL: u8 = 0x02;

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        parse(text).map(MacAddr).ok_or_else(|| ParseMacError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0u8; 6];
    let mut groups = text.split(':');
    for byte in &mut bytes {
        let group = groups.next()?;
        // `from_str_radix` alone would take a sign.
        if group.len() != 2 || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(group, 16).ok()?;
    }
    groups.next().is_none().then_some(bytes)
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_either_case_and_prints_lower() {
        let mac: MacAddr = "2E:11:aB:33:44:fF".parse().unwrap();
        assert_eq!(mac.bytes(), [0x2e, 0x11, 0xab, 0x33, 0x44, 0xff]);
        assert_eq!(mac.to_string(), "2e:11:ab:33:44:ff");
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"2e:11:ab:33:44:ff\"");
        assert_eq!(serde_json::from_str::<MacAddr>("\"2e:11:ab:33:44:ff\"").unwrap(), mac);
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            "",
            "2e:11:22:33:44",
            "2e:11:22:33:44:55:66",
            "2e-11-22-33-44-55",
            "2e:11:22:33:44:5",
            "2e:11:22:33:44:555",
            "+e:11:22:33:44:55",
            "2e:11:22:33:44:5g",
            " 2e:11:22:33:44:55",
            "2e:11:22:33:44:55:",
        ] {
            let error = bad.parse::<MacAddr>().unwrap_err();
            assert!(error.to_string().contains(&format!("\"{bad}\"")), "{error}");
        }
        assert!(serde_json::from_str::<MacAddr>("\"zz\"").is_err());
        assert!(serde_json::from_str::<MacAddr>("17").is_err());
    }

    #[test]
    fn random_ones_are_local_unicast_and_differ() {
        let drawn: Vec<MacAddr> = (0..64).map(|_| MacAddr::random().unwrap()).collect();
        assert!(drawn.iter().all(|m| m.is_unicast() && m.is_local()));
        let distinct: std::collections::HashSet<_> = drawn.iter().collect();
        assert_eq!(distinct.len(), drawn.len());
    }
}
