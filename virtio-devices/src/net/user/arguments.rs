//! The options by which passt is told what a card is to be (passt(1)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use super::{Family, Forward, HostAccess, Protocol, Task};

/// Where the guest finds the host's name server if that listens where no guest comes: at the host's loopback address.
const NAME_SERVER: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(169, 254, 2, 53), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x53));

impl Task {
    /// passt's options, for a connection at descriptor `fd` and a host that has these name servers.
    pub fn arguments(&self, fd: RawFd, resolvers: &[IpAddr]) -> Vec<String> {
        let card = &self.card;
        let mut all: Vec<String> = ["--vhost-user", "--foreground", "--quiet", "--fd"].map(Into::into).into();
        all.push(fd.to_string());
        let mut say = |option: &str, value: &dyn ToString| all.extend([option.into(), value.to_string()]);
        if let Some(mtu) = self.mtu {
            say("--mtu", &mtu);
        }
        if card.host_access != Some(HostAccess::Loopback) {
            say("--map-host-loopback", &"none");
        }
        if !card.dns.0.is_empty() {
            card.dns.0.iter().for_each(|address| say("--dns", address));
        } else if let Some(resolver) = resolvers.first().filter(|first| first.is_loopback()) {
            let seen: IpAddr = match resolver {
                IpAddr::V4(_) => NAME_SERVER.0.into(),
                IpAddr::V6(_) => NAME_SERVER.1.into(),
            };
            say("--dns", &seen);
            say("--dns-forward", &seen);
            say("--dns-host", resolver);
        }
        if !card.search.0.is_empty() {
            say("--search", &card.search.0.join(" "));
        }
        for (option, protocol) in [("--tcp-ports", Protocol::Tcp), ("--udp-ports", Protocol::Udp)] {
            let mut any = false;
            for Forward { address, port, to, .. } in card.forward.0.iter().filter(|f| f.protocol == protocol)
            {
                say(option, &format!("{address}/{port}:{to}"));
                any = true;
            }
            if !any {
                say(option, &"none");
            }
        }
        match card.only {
            Some(Family::Ipv4) => all.push("--ipv4-only".into()),
            Some(Family::Ipv6) => all.push("--ipv6-only".into()),
            None => {}
        }
        all
    }
}
