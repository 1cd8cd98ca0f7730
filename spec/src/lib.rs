//! What a user may say, and how it is refused.
//!
//! One definition per option group: [`spec!`] turns a struct into its command-line grammar (`key=value,…`), its JSON body, its
//! help and its defaults. [`grammar`] splits text, [`value`] converts pieces, [`refusal`] is the one error that reaches a user.
//!
//! This crate never looks at the host: no file is opened, no system call made. Whatever depends on the host happens when a
//! device is built.

pub mod choice;
pub mod facts;
pub mod grammar;
pub mod macros;
pub mod pci;
pub mod plain;
pub mod queues;
pub mod rate;
pub mod refusal;
pub mod value;
pub mod vhost_user;

pub use facts::Facts;
pub use grammar::{Key, Options, ParseError};
pub use pci::PciCommon;
pub use plain::plain;
pub use rate::{RateLimit, RateLimitGroupSpec, TokenBucket};
pub use refusal::{Kind, Refusal, bounded};
pub use value::{Bytes, Part, Unsupported, Value};

// The macros name this crate by its public name, also when they expand here.
extern crate self as spec;

// What the macro's expansion needs, so that a user of the macro does not have to name the crates.
#[doc(hidden)]
pub use serde;

/// An option group that can be written after a flag and in a JSON body.
pub trait Spec: Part + Default + serde::Serialize + serde::de::DeserializeOwned {
    /// The flag without its dashes, such as `disk`.
    const FLAG: &'static str;

    /// One paragraph for `--help` and the manual page.
    const ABOUT: &'static str;

    /// The key that a text such as this leaves out in front of its first value; none for most flags.
    fn short(_text: &str) -> Option<&'static str> {
        None
    }

    /// Splits `key=value,…` as written after the flag.
    ///
    /// # Errors
    /// What the grammar refused.
    fn options(text: &str) -> Result<Options, ParseError> {
        match Self::short(text) {
            Some(key) => Options::parse(&format!("{key}={text}"), &Self::keys()),
            None => Options::parse(text, &Self::keys()),
        }
    }

    /// Parses `key=value,…` as written after the flag.
    ///
    /// # Errors
    /// A [`Refusal`] that names the flag, caused by what the grammar refused.
    fn parse(text: &str) -> Result<Self, Refusal> {
        let parse = || {
            let mut options = Self::options(text)?;
            Self::take(&mut options)
        };
        parse().map_err(|e: ParseError| {
            Refusal::new(e.kind(), format!("Error parsing --{}", Self::FLAG)).because(e)
        })
    }

    /// Checks the combination of values; the shapes of single values were checked when they were parsed.
    ///
    /// # Errors
    /// A [`Refusal`] in the words of the contract.
    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        Ok(())
    }
}
