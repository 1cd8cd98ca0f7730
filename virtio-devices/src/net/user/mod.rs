//! A card that needs no privilege and no tap: passt, which is started for it, makes the guest's connections as sockets of the user's.
//!
//! Here is what a user may say of such a card, and what of it passt is told by which option (passt(1)). Who starts passt has only this
//! description and decides nothing.

mod arguments;
mod values;

use device::Host;
use serde::{Deserialize, Serialize};
use spec::{Kind, Refusal};
use vhost_user::front::{Program, Way};

use super::NetSpec;

pub use values::{Addresses, Forward, Forwards, Names, Network, Networks, Protocol};

spec::choice! {
    /// What of the host itself the guest reaches.
    pub enum HostAccess {
        /// None of its addresses.
        None = "none",
        /// What listens on its addresses in the network, as everybody there does.
        #[default]
        Network = "network",
        /// Its loopback addresses besides, at the address of the guest's gateway.
        Loopback = "loopback",
    }
}

spec::choice! {
    /// A version of the Internet Protocol.
    pub enum Family {
        /// IPv4.
        #[default]
        Ipv4 = "ipv4",
        /// IPv6.
        Ipv6 = "ipv6",
    }
}

spec::spec! {
    /// A network card by passt.
    pub struct UserNet: "user" {
        flatten {}
        fields {
            /// Have passt, a program that is started for the card, make the guest's connections as the user who runs this: no tap, no privilege. Memory is shared with it.
            "user" => user: Option<bool> = None,
            /// Ports of the host that lead into the guest, [tcp|udp:<address>:<port>:<guest's port>,…]; without address 127.0.0.1.
            "forward" => forward: Forwards = Forwards::default(),
            /// What of the host itself the guest reaches: nothing, what listens on its network addresses (default), or its loopback services too.
            "host_access" => host_access: Option<HostAccess> = None,
            /// Networks that the guest does not reach, [<address>/<bits>,…].
            "deny" => deny: Networks = Networks::default(),
            /// Only this version of the Internet Protocol; both when absent.
            "only" => only: Option<Family> = None,
            /// Name servers that the guest is told; those of the host when absent.
            "dns" => dns: Addresses = Addresses::default(),
            /// Domains in which the guest looks for names; those of the host when absent.
            "search" => search: Names = Names::default(),
        }
        unsupported {}
    }
}

/// Entries that a list of the card may have.
const MOST: usize = 128;

impl UserNet {
    /// Whether the card is one of passt's.
    pub fn is_on(&self) -> bool {
        self.user == Some(true)
    }

    /// Whether it is to be looked at whom the guest connects to: passt itself cannot be told.
    pub fn is_supervised(&self) -> bool {
        self.host_access == Some(HostAccess::None) || !self.deny.0.is_empty()
    }

    fn is_empty(&self) -> bool {
        let off = UserNet { user: self.user, ..UserNet::default() };
        *self == off
    }

    pub(super) fn check(&self, card: &NetSpec) -> Result<(), Refusal> {
        let refuse = |text: String| Err(Refusal::invalid(text));
        if !self.is_on() {
            return match self.is_empty() {
                true => Ok(()),
                false => refuse("forward, host_access, deny, only, dns and search need user=on".into()),
            };
        }
        if card.vhost_user {
            return refuse("user=on and vhost_user=on exclude each other".into());
        }
        let tap = card.tap.is_some() || card.ip.is_some() || card.host_mac.is_some();
        if tap || !card.fds.numbers().is_empty() {
            return refuse(
                "tap, fd, ip, mask and host_mac are of a tap, and a card with user=on has none".into(),
            );
        }
        if card.num_queues != 2 {
            return refuse(format!(
                "Number of queues ({}): passt serves one pair of queues, num_queues=2",
                card.num_queues
            ));
        }
        if card.limits.is_active() {
            return refuse("Rate limiting is not supported with user=on".into());
        }
        self.forward.check()?;
        self.search.check()?;
        let longest = [self.forward.0.len(), self.deny.0.len(), self.dns.0.len(), self.search.0.len()];
        if longest.iter().any(|length| *length > MOST) {
            return refuse(format!("A list of a card with user=on has more than {MOST} entries"));
        }
        Ok(())
    }
}

/// All that passt is told of a card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// What the user said.
    pub card: UserNet,
    /// The guest's MTU, if it is told one.
    pub mtu: Option<u16>,
}

impl NetSpec {
    /// How one comes to the card's passt.
    pub(super) fn passt(&self, host: &Host<'_>) -> Result<Way, Refusal> {
        let launcher = host.kept.launcher().ok_or_else(|| {
            let text = "user=on: this process starts no programs; give it --passt passt when it is started, so that cards that come \
                        over the API can be served by passt";
            Refusal::new(Kind::State, text)
        })?;
        let task = Task { card: self.user.clone(), mtu: self.mtu };
        let task = serde_json::to_string(&task)
            .map_err(|e| Refusal::new(Kind::Bug, "cannot write what passt is to do").because(e))?;
        Ok(Way::Start(Program { name: "passt", launcher: launcher.clone(), task }))
    }
}

#[cfg(test)]
mod tests;
