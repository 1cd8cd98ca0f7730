//! Values of a card's keys: forwarded ports, networks, and lists of them. In JSON they are lists of the same texts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use spec::value::string_list;
use spec::{Refusal, Value};

/// A transport protocol whose ports are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Forward {
    /// Of which protocol.
    pub protocol: Protocol,
    /// The host's address.
    pub address: IpAddr,
    /// The host's port, 1 to 65535.
    pub port: u16,
    /// The guest's, 1 to 65535.
    pub to: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || {
            format!(
                "expected tcp:<address>:<port>:<guest's port>, or udp, with an IPv6 address in brackets, not {text:?}"
            )
        };
        let (protocol, rest) = text.split_once(':').ok_or_else(hint)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(hint()),
        };
        let (rest, to) = rest.rsplit_once(':').ok_or_else(hint)?;
        let (address, port) = match rest.rsplit_once(':') {
            None => (Ipv4Addr::LOCALHOST.into(), rest),
            Some((address, port)) => match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
                Some(inner) => (IpAddr::V6(inner.parse().map_err(|_| hint())?), port),
                None => (IpAddr::V4(address.parse().map_err(|_| hint())?), port),
            },
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(hint);
        Ok(Forward { protocol, address, port: number(port)?, to: number(to)? })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        match self.address {
            IpAddr::V4(address) => write!(f, "{protocol}:{address}:{}:{}", self.port, self.to),
            IpAddr::V6(address) => write!(f, "{protocol}:[{address}]:{}:{}", self.port, self.to),
        }
    }
}

/// The addresses from a network's first to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            let free = width - u32::from(self.bits).min(width);
            a.checked_shr(free) == b.checked_shr(free)
        };
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => same(ours.to_bits().into(), other.to_bits().into(), 32),
            (IpAddr::V6(ours), IpAddr::V6(other)) => same(ours.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint =
            || format!("expected an address, or a network such as 10.0.0.0/8 or fd00::/8, not {text:?}");
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| hint())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), |bits| bits.parse().map_err(|_| hint()))?;
        if bits > width {
            return Err(hint());
        }
        Ok(Network { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// What is written as a text in JSON too.
macro_rules! texts {
    ($($t:ty)*) => {$(
        impl From<$t> for String {
            fn from(value: $t) -> String {
                value.to_string()
            }
        }

        impl TryFrom<String> for $t {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    )*};
}
texts!(Forward Network);

/// Lists of such values.
macro_rules! lists {
    ($($(#[$doc:meta])* $name:ident: $t:ty, $syntax:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Vec<$t>);

        impl Value for $name {
            const SYNTAX: &'static str = $syntax;

            fn convert(text: &str) -> Result<Self, String> {
                let item = |text: String| {
                    text.parse::<$t>().map_err(|e| e.to_string()).map_err(|e| format!("{text}: {e}"))
                };
                string_list(text)?.into_iter().map(item).collect::<Result<_, _>>().map($name)
            }

            fn show(&self) -> String {
                self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            }

            fn is_absent(&self) -> bool {
                self.0.is_empty()
            }
        }
    )*};
}
lists! {
    /// Ports of the host that lead into the guest.
    Forwards: Forward, "<list of ports>";
    /// Networks.
    Networks: Network, "<list of networks>";
    /// Addresses.
    Addresses: IpAddr, "<list of addresses>";
    /// Names of domains.
    Names: String, "<list of names>";
}

impl Forwards {
    /// No port is there twice.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        for (n, one) in self.0.iter().enumerate() {
            let alike = |other: &&Forward| {
                let everywhere = one.address.is_unspecified() || other.address.is_unspecified();
                one.protocol == other.protocol
                    && one.port == other.port
                    && (one.address == other.address || everywhere)
            };
            if let Some(other) = self.0[..n].iter().find(alike) {
                return Err(Refusal::invalid(format!(
                    "forward: {other} and {one} are of the same port of the host"
                )));
            }
        }
        Ok(())
    }
}

impl Names {
    /// They are names of domains (RFC 1035 §2.3.1, with underscores).
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let fits = |name: &String| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            (1..=253).contains(&name.len()) && name.chars().all(known) && !name.starts_with('-')
        };
        match self.0.iter().find(|name| !fits(name)) {
            Some(name) => Err(Refusal::invalid(format!("search: {name:?} is no name of a domain"))),
            None => Ok(()),
        }
    }
}
