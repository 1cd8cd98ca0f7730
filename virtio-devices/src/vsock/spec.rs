//! What a user may say about a socket device: `--vsock`, `VsockConfig`, `vm.add-vsock`.

use std::path::PathBuf;
use std::sync::Arc;

use device::{Build, Built, Calls, Host, Naming};
use sandbox::{HostPath, Use};
use spec::{Facts, Kind, Part, PciCommon, Refusal, Spec};
use terminal::{Listener, TerminalError};

use super::Vsock;

spec::spec! {
    /// Sockets between guest and host (virtio-vsock). Programs of the host's connect to the socket, say CONNECT, a port and a newline, and are
    /// connected to that port of the guest. What the guest connects to on port P of the host is the socket whose path ends in _P.
    pub struct VsockSpec: "vsock" {
        flatten {
            /// Naming and placement.
            pci: PciCommon,
        }
        fields {
            /// The guest's context ID: 3 or more.
            "cid" => cid: Option<u32> = None,
            /// The UNIX socket to listen on.
            "socket" => socket: Option<PathBuf> = None,
        }
        unsupported {}
    }
}

impl Spec for VsockSpec {
    const FLAG: &'static str = VsockSpec::FLAG;
    const ABOUT: &'static str = VsockSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        if let Some(key) = self.unsupported() {
            return Err(Refusal::unsupported(format!("--vsock {key}")));
        }
        match self.cid {
            None => return Err(missing("cid")),
            // Hypervisor, local, host, any (virtio 1.3 §5.10.4).
            Some(cid @ (0..=2 | u32::MAX)) => {
                return Err(Refusal::invalid(format!("{cid} is a special VSOCK CID")));
            }
            Some(_) => {}
        }
        if self.socket.is_none() {
            return Err(missing("socket"));
        }
        self.pci.check(facts)
    }
}

fn missing(key: &str) -> Refusal {
    Refusal::invalid(format!("Error parsing --vsock: {key} missing"))
}

impl Build for VsockSpec {
    const NAMING: Naming = Naming::Counted("vsock");
    const CALLS: Calls = super::calls::CALLS;
    const REPLACEABLE: &'static [&'static str] = &["socket"];

    fn common(&self) -> Option<&PciCommon> {
        Some(&self.pci)
    }

    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        Some(&mut self.pci)
    }

    fn paths(&self) -> Vec<HostPath> {
        self.socket.iter().map(|path| HostPath::new(path, Use::Listen)).collect()
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        self.make(host).map(|vsock| Built::Virtio(Box::new(vsock)))
    }
}

impl VsockSpec {
    /// Listens, and builds the device. The socket stays over a reboot.
    pub(super) fn make(&self, host: &Host<'_>) -> Result<Vsock, Refusal> {
        let (cid, path) = (self.cid.ok_or_else(|| missing("cid"))?, self.socket.as_deref());
        let path = path.ok_or_else(|| missing("socket"))?;
        let refused = |e: TerminalError| {
            let kind = if matches!(e, TerminalError::SocketTaken(_)) { Kind::Conflict } else { Kind::Host };
            Refusal::new(kind, format!("cannot set up the socket of {:?}", host.id)).because(e)
        };
        let listener =
            host.kept.keep(host.id, || Listener::bind_private(path).map(Arc::new)).map_err(refused)?;
        Ok(Vsock::new(host.id, cid, listener))
    }
}
