//! `vm.snapshot` and `vm.restore`: where a machine is saved to, and how it comes back.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use device::Build;
use serde::{Deserialize, Serialize};
use spec::value::tuple_list;
use spec::{Facts, Refusal, Spec, Value};

use crate::VmSpec;
use crate::overrides::Overrides;

/// The body of `vm.snapshot`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// `file://` and an empty directory.
    pub destination_url: String,
}

impl SnapshotSpec {
    /// The directory.
    ///
    /// # Errors
    /// Another kind of URL.
    pub fn directory(&self) -> Result<PathBuf, Refusal> {
        directory("destination_url", &self.destination_url)
    }
}

/// The directory that a URL names.
fn directory(key: &str, url: &str) -> Result<PathBuf, Refusal> {
    match url.strip_prefix("file://") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err(Refusal::invalid(format!("{key} must be file:// and a directory, not {url:?}"))),
    }
}

spec::choice! {
    /// How memory comes back.
    pub enum MemoryRestoreMode {
        /// All of it is read before the machine is there.
        #[default]
        Copy = "copy",
        /// Pages are read when the guest first touches them, and in the background.
        OnDemand = "ondemand",
        /// The file is mapped privately: nothing is read before it is touched, and machines of one snapshot share its pages.
        Mmap = "mmap",
    }
}

spec::spec! {
    /// A saved machine to go on with. Devices' own flags replace what is different now: --disk id=_disk0,path=/copy.img.
    pub struct RestoreSpec: "restore" {
        flatten {}
        fields {
            /// file:// and the directory of the snapshot.
            "source_url" => source_url: Option<String> = None,
            /// How memory comes back; copy when absent. mmap is for memory that is neither shared with other processes nor in
            /// huge pages. With mmap the file memory-ranges must not be changed while the machine runs; it may be deleted.
            "memory_restore_mode" => memory_restore_mode: Option<MemoryRestoreMode> = None,
            /// Map all of memory at once, so that no access of the guest waits for it.
            "prefault" => prefault: bool = false,
            /// Open taps for network devices that had some when they were saved, such as [_net1@[3,4]].
            "net_fds" => net_fds: NetFds = NetFds::default(),
            /// Let the machine run at once; it is paused otherwise.
            "resume" => resume: bool = false,
        }
        unsupported {
            "vfio_fds" => vfio_fds,
            "iommufd_fd" => iommufd_fd,
            "zone_updates" => zone_updates,
        }
    }
}

impl Spec for RestoreSpec {
    const FLAG: &'static str = RestoreSpec::FLAG;
    const ABOUT: &'static str = RestoreSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        if let Some(key) = spec::Part::unsupported(self) {
            return Err(Refusal::unsupported(format!("--restore {key}")));
        }
        if self.prefault && self.memory_restore_mode == Some(MemoryRestoreMode::OnDemand) {
            return Err(Refusal::invalid(
                "'prefault' cannot be combined with 'memory_restore_mode=ondemand'",
            ));
        }
        let ids = &self.net_fds.0;
        let twice = ids.iter().enumerate().find(|(at, n)| ids[..*at].iter().any(|other| other.id == n.id));
        if let Some((_, twice)) = twice {
            return Err(Refusal::new(spec::Kind::Conflict, format!("Identifier {} is not unique", twice.id)));
        }
        self.directory().map(drop)
    }
}

impl RestoreSpec {
    /// The directory.
    ///
    /// # Errors
    /// There is none, or another kind of URL.
    pub fn directory(&self) -> Result<PathBuf, Refusal> {
        let url = self.source_url.as_deref();
        let url =
            url.ok_or_else(|| Refusal::invalid("source_url missing").within("Error parsing --restore"))?;
        directory("source_url", url)
    }
}

/// Taps for one network device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetFd {
    /// The device.
    pub id: String,
    /// How many; in a request over the API, that many descriptors come along, in the order of this list.
    pub num_fds: usize,
    /// Numbers on the command line. In JSON they say nothing about our descriptors.
    #[serde(skip)]
    pub numbers: Vec<RawFd>,
    /// Descriptors that came with a request.
    #[serde(skip)]
    pub received: Received,
}

/// Descriptors that came with a request; two lists are the same if they are the very same.
#[derive(Clone, Debug, Default)]
pub struct Received(pub Vec<Arc<OwnedFd>>);

impl PartialEq for Received {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// Taps for network devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetFds(pub Vec<NetFd>);

impl Value for NetFds {
    const SYNTAX: &'static str = "[<id>@[<fd>,…],…]";

    fn convert(text: &str) -> Result<Self, String> {
        let one = |(id, list): (String, String)| {
            let numbers: Vec<RawFd> = spec::value::integer_list(&list)?;
            Ok(NetFd { id, num_fds: numbers.len(), numbers, received: Received::default() })
        };
        tuple_list(text)?.into_iter().map(one).collect::<Result<_, String>>().map(NetFds)
    }

    fn show(&self) -> String {
        String::new()
    }

    fn is_absent(&self) -> bool {
        self.0.is_empty()
    }
}

/// The body of `vm.restore`: the way back, and what is different.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The way back.
    #[serde(flatten)]
    pub restore: RestoreSpec,
    /// What is different.
    #[serde(flatten)]
    pub overrides: Overrides,
}

impl RestoreRequest {
    /// Takes the descriptors that came with a request, in the order of `net_fds`.
    ///
    /// # Errors
    /// Their number is not the sum of `num_fds`.
    pub fn adopt(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), Refusal> {
        let nets = &mut self.restore.net_fds.0;
        let wanted = nets.iter().map(|n| n.num_fds).fold(0, usize::saturating_add);
        if wanted != descriptors.len() {
            return Err(Refusal::invalid(format!(
                "{} descriptors came with the request, and net_fds speaks of {wanted}",
                descriptors.len()
            )));
        }
        let mut all = descriptors.into_iter().map(Arc::new);
        for net in nets {
            net.received = Received(all.by_ref().take(net.num_fds).collect());
        }
        Ok(())
    }

    /// The numbers of the descriptors that a client sends along.
    pub fn lend(&self) -> Vec<RawFd> {
        self.restore.net_fds.0.iter().flat_map(|n| n.numbers.iter().copied()).collect()
    }

    /// Gives open taps to the network devices that had such; `with_fds` names those that had when they were saved.
    ///
    /// # Errors
    /// A device that needs taps and gets none or another number of them, or taps for a device that is not there.
    pub fn give_taps(&self, spec: &mut VmSpec, with_fds: &[(String, usize)]) -> Result<(), Refusal> {
        let nets = &self.restore.net_fds.0;
        for (id, count) in with_fds {
            let named = spec.net.iter().flatten().any(|n| n.pci.id.as_ref() == Some(id) && n.tap.is_some());
            match nets.iter().find(|n| n.id == *id) {
                None if named => {}
                None => {
                    return Err(Refusal::invalid(format!(
                        "Net id {id} is associated with FDs and is required"
                    )));
                }
                Some(net) if net.num_fds == *count => {}
                Some(net) => {
                    return Err(Refusal::invalid(format!(
                        "Number of Net FDs passed for '{id}' during Restore: {}. Expected: {count}",
                        net.num_fds
                    )));
                }
            }
        }
        for net in nets {
            let found = spec.net.iter_mut().flatten().find(|n| n.pci.id.as_ref() == Some(&net.id));
            let Some(found) = found else {
                log::warn!("net_fds: the saved machine has no network device {:?}", net.id);
                continue;
            };
            found.tap = None;
            Build::adopt(found, net.descriptors()?)?;
        }
        Ok(())
    }
}

impl NetFd {
    /// The taps: those that came with a request, or copies of those that the process was started with.
    fn descriptors(&self) -> Result<Vec<OwnedFd>, Refusal> {
        let failed =
            |e| Refusal::host(format!("Cannot use the descriptors for network device {:?}", self.id), e);
        let received = self.received.0.iter().map(|fd| fd.try_clone());
        let inherited = self.numbers.iter().map(|number| {
            if *number <= 2 {
                return Err(std::io::Error::other(format!("Reserved fd number (<= 2): {number}")));
            }
            // SAFETY: only for the length of this call, which fails if it is no open descriptor.
            unsafe { BorrowedFd::borrow_raw(*number) }.try_clone_to_owned()
        });
        received.chain(inherited).collect::<Result<_, _>>().map_err(failed)
    }
}

/// The network devices of a description, as it was saved, that had open taps, and how many; the numbers mean nothing any more.
pub fn fd_backed_nets(saved: &VmSpec) -> Vec<(String, usize)> {
    let nets = saved.net.iter().flatten().filter(|net| net.fds.told() != 0);
    nets.filter_map(|net| Some((net.pci.id.clone()?, net.fds.told()))).collect()
}
