//! Names of network interfaces.

use std::fmt;

use crate::Error;

/// A name that the kernel will take for an interface: 1 to 15 bytes, no `/`, no `:`, no blanks, not `.` or `..`.
///
/// It may be a template with one `%d`, for which the kernel puts the first free number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IfName(String);

impl IfName {
    /// Longest name in bytes: `IFNAMSIZ` without the final NUL.
    pub const MAX_LEN: usize = libc::IFNAMSIZ - 1;

    /// Checks `name`.
    pub fn new(name: &str) -> Result<Self, Error> {
        if name.len() > Self::MAX_LEN {
            return Err(Error::NameTooLong(name.to_owned()));
        }
        let bad = |b: u8| b == b'/' || b == b':' || b.is_ascii_whitespace() || b.is_ascii_control();
        if name.is_empty() || name == "." || name == ".." || name.bytes().any(bad) {
            return Err(Error::NameInvalid(name.to_owned()));
        }
        Ok(IfName(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_kernel_takes() {
        for good in ["a", "tap0", "vmtap%d", "fifteen-bytes-x", "tap.100"] {
            assert_eq!(IfName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "a\tb", "a\0b"] {
            assert!(matches!(IfName::new(bad), Err(Error::NameInvalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn says_how_long_a_long_name_is() {
        let error = IfName::new("sixteen-bytes-xx").unwrap_err();
        assert_eq!(error.to_string(), "tap name \"sixteen-bytes-xx\" is too long: 16 bytes, at most 15");
    }
}
