//! A network card to be served: what a user may say of it, and how its tap is opened.
//!
//! The card itself is the one that machines have ([`NetSpec`]); what is here is how it is called on this command line.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use device::{Build, Host, Kept};
use sandbox::{HostPath, Use};
use spec::{Facts, RateLimit, Refusal, Spec};
use vhost_user::daemon::Opened;
use vhost_user::{Door, MAX_QUEUES};
use virtio_devices::net::{Mac, NetSpec};

spec::spec! {
    /// A network card, and the socket that it is served on. May be given several times.
    pub struct BackendSpec: "net-backend" {
        flatten {
            /// Limits.
            limits: RateLimit,
        }
        fields {
            /// The tap: one that exists, a macvtap too, or the name for a new one; a new one named vmtap0, vmtap1, … when absent.
            "tap" => tap: Option<String> = None,
            /// IP address of the host's end.
            "ip" => ip: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 100, 1)),
            /// Network mask of the host's end.
            "mask" => mask: IpAddr = IpAddr::V4(Ipv4Addr::new(255, 255, 255, 0)),
            /// MAC address that the guest sees; the front end gives it one when absent.
            "mac" => mac: Option<Mac> = None,
            /// MAC address of the host's end; when absent, a new tap has a random one and another keeps its own.
            "host_mac" => host_mac: Option<Mac> = None,
            /// MTU of the tap, also told to the guest; at least 1280.
            "mtu" => mtu: Option<u16> = None,
            /// The socket to listen on, where a socket that nobody listens on any more is replaced; with client=on, that of the front end.
            "socket" => socket: Option<PathBuf> = None,
            /// Go to the front end instead of waiting for it to come.
            "client" => client: bool = false,
            /// Receive and transmit queues together, twice the number of pairs; a front end may use fewer.
            "num_queues" => num_queues: usize = 2,
            /// Largest size of each queue: a power of two.
            "queue_size" => queue_size: u16 = 256,
            /// Pass large TCP segments through in one piece; needs offload_csum.
            "offload_tso" => offload_tso: bool = true,
            /// Pass large UDP datagrams, and several in one, through in one piece; needs offload_csum.
            "offload_ufo" => offload_ufo: bool = true,
            /// Leave checksums of frames that do not leave the host undone.
            "offload_csum" => offload_csum: bool = true,
        }
        unsupported {}
    }
}

impl Spec for BackendSpec {
    const FLAG: &'static str = BackendSpec::FLAG;
    const ABOUT: &'static str = BackendSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        if self.socket.is_none() {
            return Err(Refusal::invalid("Error parsing --net-backend: socket missing"));
        }
        let queues = self.num_queues;
        if queues > MAX_QUEUES {
            return Err(Refusal::invalid(format!(
                "Number of queues ({queues}) must not exceed {MAX_QUEUES}"
            )));
        }
        if !queues.is_multiple_of(2) {
            return Err(Refusal::invalid(format!(
                "Number of queues ({queues}) must be even: each pair has one to receive and one to transmit"
            )));
        }
        self.card().check(&facts())
    }
}

/// There is no machine here whose vCPUs limit the number of queues.
fn facts() -> Facts {
    Facts { boot_vcpus: u32::MAX, ..Facts::default() }
}

impl BackendSpec {
    /// The card, in the words of a machine.
    fn card(&self) -> NetSpec {
        NetSpec {
            tap: self.tap.clone(),
            ip: Some(self.ip),
            mask: Some(self.mask),
            mac: self.mac,
            host_mac: self.host_mac,
            mtu: self.mtu,
            num_queues: self.num_queues,
            queue_size: self.queue_size,
            limits: self.limits,
            offload_tso: self.offload_tso,
            offload_ufo: self.offload_ufo,
            offload_csum: self.offload_csum,
            ..NetSpec::default()
        }
    }
}

/// A card to be opened.
pub struct Card {
    /// For messages.
    id: String,
    card: NetSpec,
    socket: PathBuf,
    client: bool,
}

/// The cards that are asked for.
///
/// # Errors
/// What cannot be.
pub fn cards(specs: Vec<BackendSpec>) -> Result<Vec<Card>, Refusal> {
    let one = |(n, spec): (usize, BackendSpec)| {
        spec.check(&Facts::default())?;
        let (id, card, client) = (format!("net{n}"), spec.card(), spec.client);
        Ok(Card { id, card, socket: spec.socket.unwrap_or_default(), client })
    };
    specs.into_iter().enumerate().map(one).collect()
}

/// Opens what can be had only before the process leaves the host behind; the paths that are opened later.
///
/// # Errors
/// What the host refused, naming the tap.
pub fn ahead(cards: &mut [Card]) -> Result<Vec<HostPath>, Refusal> {
    let one = |card: &mut Card| {
        card.card.ahead()?;
        Ok(HostPath::new(&card.socket, if card.client { Use::Connect } else { Use::Listen }))
    };
    cards.iter_mut().map(one).collect()
}

/// Opens all cards; if one cannot be opened, none is.
///
/// # Errors
/// What the host refused, naming tap or socket.
pub fn open(cards: Vec<Card>) -> Result<Vec<Opened>, Refusal> {
    cards.into_iter().map(Card::open).collect()
}

impl Card {
    /// Opens tap and socket.
    fn open(mut self) -> Result<Opened, Refusal> {
        let (id, socket) = (self.id.as_str(), self.socket.as_path());
        // The socket comes last: who sees it finds everything ready.
        let device = self.card.served(&Host { id, facts: &facts(), kept: &Kept::default() })?;
        let door = Door::open(&format!("network card \"{id}\""), socket, self.client)?;
        Ok(Opened { name: format!("{id} on {}", socket.display()), device, door })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let spec = BackendSpec::parse("socket=a").unwrap();
        assert_eq!((spec.num_queues, spec.queue_size, spec.client), (2, 256, false));
        assert_eq!(
            (spec.ip.to_string(), spec.mask.to_string()),
            ("192.168.100.1".into(), "255.255.255.0".into())
        );
        assert_eq!((spec.tap.is_none(), spec.mac, spec.host_mac, spec.mtu), (true, None, None, None));
        assert!(spec.check(&Facts::default()).is_ok());
        let all = "tap=t,ip=fd00::1,mask=ffff::,mac=2e:00:00:00:00:02,host_mac=2e:00:00:00:00:01,mtu=1400,socket=s,\
                   client=on,num_queues=256,queue_size=1024";
        assert!(BackendSpec::parse(all).unwrap().check(&Facts::default()).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, refusal) in [
            ("", "Error parsing --net-backend: socket missing"),
            ("tap=a", "Error parsing --net-backend: socket missing"),
            ("socket=a,num_queues=0", "Number of queues (0) to virtio_net should be higher than 2"),
            (
                "socket=a,num_queues=3",
                "Number of queues (3) must be even: each pair has one to receive and one to transmit",
            ),
            ("socket=a,num_queues=258", "Number of queues (258) must not exceed 256"),
            ("socket=a,queue_size=3", "Queue size must be a power of 2 no greater than 32768: 3"),
            ("socket=a,mtu=1279", "Provided MTU 1279 is lower than 1280 (expected by VIRTIO specification)"),
            ("socket=a,offload_csum=off", "\"offload_tso\" and \"offload_ufo\" depend on \"offload_csum\""),
        ] {
            let refused = BackendSpec::parse(text).unwrap().check(&Facts::default()).unwrap_err();
            assert_eq!(refused.to_string(), refusal, "{text}");
        }
        for text in
            ["socket=a,sockt=b", "socket", "socket=a,mac=x", "socket=a,ip=1.2.3", "socket=a,client=maybe"]
        {
            assert!(BackendSpec::parse(text).is_err(), "{text}");
        }
    }
}
