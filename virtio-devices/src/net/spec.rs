//! What a user may say about a network device: `--net`, `NetConfig`, `vm.add-net`.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use device::{Build, Built, Calls, Host, Naming, Virtio};
use log::warn;
use metadata::Store;
use net_util::{LinkConfig, MacAddr, TapSet};
use sandbox::{HostPath, Use};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use spec::{Facts, Kind, Part, PciCommon, RateLimit, Refusal, Spec, Value};

use super::pair::{PairError, Pairs};
use super::service::Service;
use super::user::UserNet;
use super::wire::feature;
use super::{Commands, Net, Parts};

spec::choice! {
    /// Who makes the connection of a vhost-user device.
    pub enum VhostMode {
        /// We connect.
        #[default]
        Client = "client",
        /// We wait for a connection.
        Server = "server",
    }
}

spec::spec! {
    /// A network device on a tap of the host. Without `tap` or `fd` a tap named vmtap0, vmtap1, … is made, which disappears with the VM.
    pub struct NetSpec: "net" {
        flatten {
            /// Naming and placement.
            pci: PciCommon,
            /// Limits.
            limits: RateLimit,
            /// What a card by passt is to be.
            user: UserNet,
        }
        fields {
            /// The tap: one that exists, a macvtap too, or the name for a new one.
            "tap" => tap: Option<String> = None,
            /// IP address of the host's end; needs mask.
            "ip" => ip: Option<IpAddr> = None,
            /// Network mask of the host's end; needs ip.
            "mask" => mask: Option<IpAddr> = None,
            /// MAC address that the guest sees; when absent, a random one, or that of a macvtap.
            "mac" => mac: Option<Mac> = None,
            /// MAC address of the host's end.
            "host_mac" => host_mac: Option<Mac> = None,
            /// MTU of the tap, also told to the guest; at least 1280.
            "mtu" => mtu: Option<u16> = None,
            /// Open taps, inherited or sent with the request: one for each pair of queues, all of one interface.
            "fd" => fds: TapFds = TapFds::default(),
            /// Receive and transmit queues together, twice the number of pairs.
            "num_queues" => num_queues: usize = 2,
            /// Size of each queue: a power of two.
            "queue_size" => queue_size: u16 = 256,
            /// Have another process move the frames (vhost-user); there is no tap then. Needs socket and --memory shared=on.
            "vhost_user" => vhost_user: bool = false,
            /// The socket of that process.
            "socket" => vhost_socket: Option<PathBuf> = None,
            /// Who connects to it: client means that we do.
            "vhost_mode" => vhost_mode: VhostMode = VhostMode::Client,
            /// Pass large TCP segments through in one piece; needs offload_csum.
            "offload_tso" => offload_tso: bool = true,
            /// Pass large UDP datagrams, and several in one, through in one piece; needs offload_csum.
            "offload_ufo" => offload_ufo: bool = true,
            /// Leave checksums of frames that do not leave the host undone.
            "offload_csum" => offload_csum: bool = true,
            /// Whether the guest finds the machine's metadata over this card; if --metadata is given, when absent.
            "metadata" => metadata: Option<bool> = None,
        }
        unsupported {}
    }
}

/// Smallest MTU (virtio 1.3 §5.1.4.1 asks for as much as IPv6 does).
const MIN_MTU: u16 = 1280;

impl Spec for NetSpec {
    const FLAG: &'static str = NetSpec::FLAG;
    const ABOUT: &'static str = NetSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        let refuse = |text: String| Err(Refusal::invalid(text));
        if let Some(key) = self.unsupported() {
            return Err(Refusal::unsupported(format!("--net {key}")));
        }
        self.user.check(self)?;
        if self.user.is_on() {
            spec::vhost_user::check_memory(facts)?;
        }
        if self.vhost_user {
            spec::vhost_user::check(self.vhost_socket.as_deref(), self.limits.is_active(), facts)?;
        } else if self.vhost_socket.is_some() {
            return refuse("A socket without vhost_user=on".into());
        }
        match self.metadata {
            Some(true) if self.vhost_user || self.user.is_on() => {
                let which = if self.vhost_user { "vhost_user=on" } else { "user=on" };
                return refuse(format!(
                    "metadata=on with {which}: the frames of such a card do not come by here"
                ));
            }
            Some(true) if !facts.metadata => return refuse("metadata=on without --metadata".into()),
            _ => {}
        }
        let pairs = self.num_queues / 2;
        spec::queues::check(pairs, self.queue_size, facts)?;
        if self.num_queues < 2 {
            return refuse(format!(
                "Number of queues ({}) to virtio_net should be higher than 2",
                self.num_queues
            ));
        }
        let fds = self.fds.numbers();
        if !fds.is_empty() && 2 * fds.len() != self.num_queues {
            return refuse(format!(
                "Number of queues ({}) to virtio_net does not match the number of FDs ({})",
                self.num_queues,
                2 * fds.len()
            ));
        }
        if let Some(fd) = fds.iter().find(|fd| **fd <= 2) {
            return refuse(format!("Reserved fd number (<= 2): {fd}"));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return refuse(format!(
                "Provided MTU {mtu} is lower than {MIN_MTU} (expected by VIRTIO specification)"
            ));
        }
        if !self.offload_csum && (self.offload_tso || self.offload_ufo) {
            return refuse("\"offload_tso\" and \"offload_ufo\" depend on \"offload_csum\"".into());
        }
        match (self.ip, self.mask) {
            (None, Some(_)) => return refuse("Mask provided without an IP".into()),
            (Some(_), None) => return refuse("IP provided without a mask".into()),
            _ => {}
        }
        self.pci.check(facts)
    }
}

impl NetSpec {
    /// The features that the offload switches stand for, on a kernel that packs datagrams or one that does not.
    pub(super) fn offloads(&self, packs_datagrams: bool) -> u64 {
        let mut offered = 0;
        if self.offload_csum {
            offered |= feature::CSUM | feature::GUEST_CSUM | feature::CTRL_GUEST_OFFLOADS;
        }
        if self.offload_tso {
            offered |= feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN;
            offered |= feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN;
        }
        if self.offload_ufo {
            offered |= feature::HOST_UFO | feature::GUEST_UFO;
            if packs_datagrams {
                offered |= feature::HOST_USO | feature::GUEST_USO4 | feature::GUEST_USO6;
            }
        }
        offered
    }

    /// Opens the tap as asked.
    fn open(&self, id: &str) -> Result<Arc<Pairs>, PairError> {
        if let Some(pairs) = &self.fds.ahead {
            return Ok(pairs.clone());
        }
        let set = if self.fds.numbers().is_empty() {
            let link =
                LinkConfig { ip: self.ip.zip(self.mask), mac: self.host_mac.map(|m| m.0), mtu: self.mtu };
            TapSet::open(self.tap.as_deref(), self.num_queues / 2, &link)?
        } else {
            if self.tap.is_some() || self.ip.is_some() || self.host_mac.is_some() {
                warn!("{id}: tap, ip, mask and host_mac are not looked at when fd is given");
            }
            TapSet::from_fds(&self.fds.numbers())?
        };
        Ok(Arc::new(Pairs::new(set)?))
    }
}

impl Build for NetSpec {
    const NAMING: Naming = Naming::Counted("net");
    const CALLS: Calls = super::calls::CALLS;
    const REPLACEABLE: &'static [&'static str] = &[
        "tap",
        "ip",
        "mask",
        "mac",
        "host_mac",
        "rate_limiter_config",
        "vhost_socket",
        "vhost_mode",
        "forward",
        "host_access",
        "deny",
        "only",
        "dns",
        "search",
        "metadata",
    ];

    fn common(&self) -> Option<&PciCommon> {
        Some(&self.pci)
    }

    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        Some(&mut self.pci)
    }

    fn adopt(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), Refusal> {
        self.fds = TapFds::received(descriptors);
        Ok(())
    }

    fn lend(&mut self) -> Vec<RawFd> {
        std::mem::take(&mut self.fds).numbers()
    }

    fn ahead(&mut self) -> Result<(), Refusal> {
        if !self.vhost_user && !self.user.is_on() && self.fds.numbers().is_empty() {
            let id = self.pci.id.as_deref().unwrap_or(Self::FLAG);
            self.fds.ahead = Some(self.open(id).map_err(|e| no_tap(e, id))?);
        }
        Ok(())
    }

    fn paths(&self) -> Vec<HostPath> {
        if self.vhost_user {
            let used = if self.vhost_mode == VhostMode::Server { Use::Listen } else { Use::Connect };
            return self.vhost_socket.iter().map(|path| HostPath::new(path, used)).collect();
        }
        let opens = self.fds.numbers().is_empty() && self.fds.ahead.is_none() && !self.user.is_on();
        opens.then(|| HostPath::new(net_util::TUN_PATH, Use::ReadWrite)).into_iter().collect()
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        Ok(Built::Virtio(if self.vhost_user || self.user.is_on() {
            Box::new(self.find(host)?)
        } else {
            Box::new(self.make(host)?)
        }))
    }

    fn shares_memory(&self) -> bool {
        self.vhost_user || self.user.is_on()
    }
}

impl NetSpec {
    /// The MAC, drawn if the user does not say, and written back.
    pub(super) fn drawn_mac(&mut self) -> Result<MacAddr, Refusal> {
        let mac = match self.mac {
            Some(Mac(mac)) => mac,
            None => MacAddr::random().map_err(|e| Refusal::host("cannot draw a MAC address", e))?,
        };
        self.mac = Some(Mac(mac));
        Ok(mac)
    }

    /// Builds the device; the tap's name and the MAC are written back.
    pub(super) fn make(&mut self, host: &Host<'_>) -> Result<Net, Refusal> {
        let pairs = self.take(host)?;
        self.mac = self.mac.or(pairs.mac.map(Mac));
        self.drawn_mac()?;
        let service = self.service(host)?;
        Ok(self.device(host, pairs, Commands::Ours, service))
    }

    /// Builds the device for a front end in another process, which gives it a MAC if nothing else does and has the control queue to
    /// itself. The tap's name is written back.
    ///
    /// # Errors
    /// What the host refused.
    pub fn served(&mut self, host: &Host<'_>) -> Result<Box<dyn Virtio>, Refusal> {
        let pairs = self.take(host)?;
        self.mac = self.mac.or(pairs.mac.map(Mac));
        Ok(Box::new(self.device(host, pairs, Commands::FrontEnds, None)))
    }

    /// The tap, opened now or before.
    fn take(&mut self, host: &Host<'_>) -> Result<Arc<Pairs>, Refusal> {
        let pairs = host.kept.keep(host.id, || self.open(host.id)).map_err(|e| no_tap(e, host.id))?;
        if self.fds.numbers().is_empty() {
            self.tap = Some(pairs.name.clone());
        }
        Ok(pairs)
    }

    /// The metadata service, if this card has it.
    fn service(&self, host: &Host<'_>) -> Result<Option<Service>, Refusal> {
        if !host.facts.metadata || self.metadata == Some(false) {
            return Ok(None);
        }
        let store = host.kept.find::<Arc<Store>>(metadata::KEPT);
        let store = store.ok_or_else(|| Refusal::new(Kind::Bug, "the machine's metadata was not kept"))?;
        Service::new(store, self.mtu).map(Some)
    }

    fn device(
        &self,
        host: &Host<'_>,
        pairs: Arc<Pairs>,
        commands: Commands,
        service: Option<Service>,
    ) -> Net {
        Net::new(Parts {
            id: host.id.to_owned(),
            offloads: self.offloads(pairs.packs_datagrams),
            pairs,
            mac: self.mac.map(|mac| mac.0),
            mtu: self.mtu,
            queue_size: self.queue_size,
            limits: self.limits,
            commands,
            service,
        })
    }
}

fn no_tap(error: PairError, id: &str) -> Refusal {
    Refusal::new(fault(&error), format!("cannot set up the tap of \"{id}\"")).because(error)
}

/// Who is at fault when a tap cannot be had.
fn fault(error: &PairError) -> Kind {
    use net_util::Error;
    match error {
        PairError::Tap(
            Error::BadFd { .. }
            | Error::FdNotATap(_)
            | Error::FdFlags { .. }
            | Error::FdTwice(_)
            | Error::FdOtherTap { .. },
        ) => Kind::Invalid,
        _ => Kind::Host,
    }
}

/// A MAC address as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(pub MacAddr);

impl Value for Mac {
    const SYNTAX: &'static str = "<mac>";

    fn convert(text: &str) -> Result<Self, String> {
        spec::grammar::dequote(text).parse().map(Mac).map_err(|e: net_util::ParseMacError| e.to_string())
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// Open taps. Numbers written by the user name descriptors that the process inherited; those that came with an API
/// request are owned, and closed when the last copy of the configuration goes.
///
/// In JSON they are printed and never read, only counted: a number in a request's body says nothing about our descriptors.
#[derive(Clone, Debug, Default)]
pub struct TapFds {
    inherited: Vec<RawFd>,
    received: Vec<Arc<OwnedFd>>,
    /// How many there were in JSON.
    told: usize,
    /// The tap that the description names, opened before it is needed.
    ahead: Option<Arc<Pairs>>,
}

impl TapFds {
    /// Descriptors that came with a request.
    pub fn received(fds: Vec<OwnedFd>) -> Self {
        TapFds { received: fds.into_iter().map(Arc::new).collect(), ..TapFds::default() }
    }

    /// The numbers, in order.
    pub fn numbers(&self) -> Vec<RawFd> {
        let received = self.received.iter().map(|fd| fd.as_raw_fd());
        self.inherited.iter().copied().chain(received).collect()
    }

    /// How many there were in the JSON that this was read from, such as a saved machine's; none of them is here.
    pub fn told(&self) -> usize {
        self.told
    }
}

impl PartialEq for TapFds {
    fn eq(&self, other: &Self) -> bool {
        self.numbers() == other.numbers()
    }
}

impl Value for TapFds {
    const SYNTAX: &'static str = "<list of fds>";

    fn convert(text: &str) -> Result<Self, String> {
        Ok(TapFds { inherited: spec::value::integer_list(text)?, ..TapFds::default() })
    }

    fn show(&self) -> String {
        String::new()
    }

    fn is_absent(&self) -> bool {
        self.inherited.is_empty() && self.received.is_empty()
    }
}

impl Serialize for TapFds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.numbers().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TapFds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Still checked for its shape, so that a slip is not taken in silence.
        let written: Option<Vec<i64>> = Option::deserialize(deserializer).map_err(de::Error::custom)?;
        let told = written.map_or(0, |written| written.len());
        if told != 0 {
            warn!(
                "fd numbers of a network device in JSON are not used: send the descriptors with the request"
            );
        }
        Ok(TapFds { told, ..TapFds::default() })
    }
}

#[cfg(test)]
mod tests;
