//! Whom a guest may connect to, where passt itself cannot be told.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use virtio_devices::net::user::{HostAccess, Network, Protocol, UserNet};

/// Ports of name servers (RFC 1035, RFC 7858).
const NAME_SERVICE: [u16; 2] = [53, 853];

/// See the module.
#[derive(Debug)]
pub(super) struct Policy {
    no_host: bool,
    denied: Vec<Network>,
    /// passt asks them in the guest's name, wherever they are.
    resolvers: Vec<IpAddr>,
    /// Ports of the host's at which passt answers its peers.
    udp: Vec<u16>,
}

impl Policy {
    /// Of a card, on a host with these name servers.
    pub(super) fn of(card: &UserNet, resolvers: Vec<IpAddr>) -> Self {
        let udp = card.forward.0.iter().filter(|f| f.protocol == Protocol::Udp).map(|f| f.port).collect();
        let no_host = card.host_access == Some(HostAccess::None);
        Policy { no_host, denied: card.deny.0.clone(), resolvers, udp }
    }

    /// Whether a socket bound to `from` may connect to `to`.
    pub(super) fn allows(&self, to: SocketAddr, from: Option<SocketAddr>) -> bool {
        let address = to.ip().to_canonical();
        if NAME_SERVICE.contains(&to.port()) && self.resolvers.contains(&address) {
            return true;
        }
        // Of the host's own programs at a forwarded port. A guest reaches no loopback address by itself.
        if address.is_loopback() && from.is_some_and(|from| self.udp.contains(&from.port())) {
            return true;
        }
        if self.no_host && is_ours(to) {
            return false;
        }
        !self.denied.iter().any(|network| network.contains(address))
    }
}

/// Whether an address is one of the host's own. In doubt it is.
fn is_ours(mut address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    if ip.is_unspecified() || ip.is_loopback() {
        return true;
    }
    if ip.is_multicast() {
        return false;
    }
    address.set_port(0);
    // Only its own addresses can be bound to.
    !matches!(UdpSocket::bind(address), Err(e) if e.kind() == std::io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use spec::Spec;
    use virtio_devices::net::NetSpec;

    use super::*;

    fn policy(text: &str, resolver: &str) -> Policy {
        Policy::of(&NetSpec::parse(text).unwrap().user, vec![resolver.parse().unwrap()])
    }

    #[test]
    fn the_host_is_denied_but_for_its_name_server_and_answers_to_its_own_programs() {
        let policy = policy("user=on,host_access=none,forward=[udp:5000:5000,tcp:6000:6000]", "127.0.0.53");
        let from = |port: u16| Some(SocketAddr::from(([0, 0, 0, 0], port)));
        for (to, from, allowed) in [
            ("127.0.0.1:80", None, false),
            ("0.0.0.0:80", None, false),
            ("[::1]:80", None, false),
            ("[::]:80", None, false),
            ("[::ffff:127.0.0.1]:80", None, false),
            ("127.0.0.53:53", None, true),
            ("127.0.0.53:80", None, false),
            ("127.0.0.54:53", None, false),
            ("127.0.0.1:40000", from(5000), true),
            ("127.0.0.1:40000", from(6000), false),
            ("198.51.100.1:80", None, true),
            ("[2001:db8::1]:80", None, true),
        ] {
            assert_eq!(policy.allows(to.parse().unwrap(), from), allowed, "{to} {from:?}");
        }
    }

    #[test]
    fn networks_are_denied_in_whatever_form_an_address_comes() {
        let policy = policy("user=on,deny=[10.0.0.0/8,fd00::/8]", "10.0.0.53");
        for (to, allowed) in [
            ("10.1.2.3:80", false),
            ("[::ffff:10.1.2.3]:80", false),
            ("[fd00::1]:80", false),
            ("10.0.0.53:53", true),
            ("11.0.0.1:80", true),
            ("127.0.0.1:80", true),
        ] {
            assert_eq!(policy.allows(to.parse().unwrap(), None), allowed, "{to}");
        }
    }
}
