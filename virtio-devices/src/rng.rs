//! virtio-rng (virtio 1.3 §5.4): bytes from a file of the host for the guest's entropy pool.
//!
//! One queue, served by the thread that quiet devices share. A source that has nothing to give now (a FIFO, an old
//! `/dev/random`) is waited for without holding up anybody; the driver's request waits with it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use device::limit::LogLimit;
use device::virtio::feature;
use device::{
    Attached, Build, Built, Calls, DeviceError, Host, LiveQueue, Naming, Task, Virtio, VirtioGrant,
    VirtioKind, Watch, guest_warn,
};
use log::warn;
use sandbox::{Call, HostPath, Use, common};
use spec::{Facts, Part, PciCommon, Refusal, Spec};
use virtio_queue::{QueueOwnedT, QueueState};
use vmm_sys_util::epoll::EventSet;

use crate::buffers::{Direction, Pieces, drain_event, kick_again, next_chain};

/// Size of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// Most bytes given for one request; a driver that wants more asks again.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Most requests answered before other devices of the thread have their turn.
pub const BUDGET: usize = 4;

spec::spec! {
    /// The source of the guest's random numbers. Such a device is always there.
    pub struct RngSpec: "rng" {
        flatten {
            /// Naming and placement.
            pci: PciCommon,
        }
        fields {
            /// The file to read from.
            "src" => src: PathBuf = PathBuf::from("/dev/urandom"),
        }
        unsupported {}
    }
}

impl Spec for RngSpec {
    const FLAG: &'static str = RngSpec::FLAG;
    const ABOUT: &'static str = RngSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        match self.unsupported() {
            Some(key) => Err(Refusal::unsupported(format!("--rng {key}"))),
            None => self.pci.check(facts),
        }
    }
}

impl Build for RngSpec {
    const NAMING: Naming = Naming::Single("__rng");
    const CALLS: Calls =
        Calls { shared: &[&[Call::any(libc::SYS_readv)]], host: &[common::FILES], ..Calls::NONE };
    const REPLACEABLE: &'static [&'static str] = &["src"];

    fn common(&self) -> Option<&PciCommon> {
        Some(&self.pci)
    }

    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        Some(&mut self.pci)
    }

    fn paths(&self) -> Vec<HostPath> {
        vec![HostPath::new(&self.src, Use::Read)]
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        let source = open(&self.src).map_err(|e| {
            Refusal::host(format!("cannot open {} for random numbers", self.src.display()), e)
        })?;
        Ok(Built::Virtio(Box::new(Rng::new(host.id, source))))
    }
}

/// Opens the source so that reading never waits.
fn open(path: &Path) -> io::Result<File> {
    let mut how = OpenOptions::new();
    how.read(true).custom_flags(libc::O_NONBLOCK);
    let source = how.open(path)?;
    let kind = source.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if kind.is_fifo() {
        // With a writer of our own a FIFO has no end that a departing writer could bring about.
        return how.write(true).open(path).or(Ok(source));
    }
    Ok(source)
}

/// An entropy device.
pub struct Rng {
    id: String,
    source: Arc<File>,
    grant: OnceLock<VirtioGrant>,
    queue: Mutex<Option<Attached<Server>>>,
}

impl Rng {
    fn new(id: &str, source: File) -> Self {
        Rng { id: id.to_owned(), source: Arc::new(source), grant: OnceLock::new(), queue: Mutex::new(None) }
    }
}

impl Virtio for Rng {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Rng
    }

    fn features(&self) -> u64 {
        feature::VERSION_1
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn connect(&mut self, grant: VirtioGrant) {
        if self.grant.set(grant).is_err() {
            warn!("{}: connected twice", self.id);
        }
    }

    fn activate(&self, _features: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn start_queue(&self, _index: usize, queue: LiveQueue) -> Result<(), DeviceError> {
        let Some(grant) = self.grant.get() else {
            return Err(DeviceError { what: format!("\"{}\" is not connected", self.id), source: None });
        };
        let server = Server {
            id: self.id.clone(),
            queue,
            source: self.source.clone(),
            pieces: Pieces::new(),
            polling: false,
            dry: false,
        };
        let attached = grant
            .workers
            .shared()?
            .attach(server)
            .map_err(|e| DeviceError::new(format!("cannot start the queue of \"{}\"", self.id), e))?;
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(attached);
        Ok(())
    }

    fn stop_queue(&self, _index: usize) -> Option<QueueState> {
        let attached = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        attached.stop().map(|server| server.queue.state())
    }

    fn reset(&self) {}
}

const KICK: u32 = 0;
const SOURCE: u32 = 1;

static BAD_REQUEST: LogLimit = LogLimit::new();

/// Why a round ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// No requests are left.
    Idle,
    /// There may be more, but others wait.
    More,
    /// The source has nothing now.
    Waiting,
    /// The source will never have anything again.
    Dry,
}

/// Serves the queue.
struct Server {
    id: String,
    queue: LiveQueue,
    source: Arc<File>,
    pieces: Pieces,
    polling: bool,
    dry: bool,
}

impl Server {
    fn serve(&mut self, watch: &mut Watch<'_>) {
        let end = if self.dry { End::Dry } else { self.answer() };
        match end {
            End::More => kick_again(&self.queue.kick),
            End::Dry => self.dry = true,
            End::Idle | End::Waiting => {}
        }
        let source = (self.source.as_raw_fd(), SOURCE, EventSet::IN);
        if let Err(e) = watch.want(&mut self.polling, end == End::Waiting, source) {
            warn!("{}: cannot wait for random numbers: {e}", self.id);
        }
    }

    fn answer(&mut self) -> End {
        let Server { id, queue, source, pieces, .. } = self;
        let map = queue.ram.map();
        queue.quiet(&*map);
        let mut used = 0;
        let end = loop {
            if used == BUDGET {
                break End::More;
            }
            let Some(chain) = next_chain(queue, &map) else { break End::Idle };
            let head = chain.head_index();
            let given = match pieces.gather(&map, chain, Direction::ToDriver) {
                Err(e) => {
                    guest_warn!(BAD_REQUEST, "{id}: {e}");
                    0
                }
                Ok(buffers) if buffers.length() == 0 => 0,
                Ok(mut buffers) => {
                    buffers.truncate(MAX_REQUEST);
                    match buffers.fill_from(source) {
                        Ok(0) => {
                            warn!("{id}: the source of random numbers has come to its end");
                            queue.queue.go_to_previous_position();
                            break End::Dry;
                        }
                        Ok(count) => count,
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            queue.queue.go_to_previous_position();
                            break End::Waiting;
                        }
                        Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                            guest_warn!(BAD_REQUEST, "{id}: a buffer cannot be written");
                            0
                        }
                        Err(e) => {
                            warn!("{id}: cannot read random numbers: {e}");
                            queue.queue.go_to_previous_position();
                            break End::Dry;
                        }
                    }
                }
            };
            // At most `MAX_REQUEST`.
            queue.push(&map, head, given as u32);
            used += 1;
        };
        if used > 0 {
            queue.signal(&map);
        }
        end
    }
}

impl Task for Server {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(self.queue.kick.as_raw_fd(), KICK, EventSet::IN)?;
        self.serve(watch);
        Ok(())
    }

    fn ready(&mut self, token: u32, _: EventSet, watch: &mut Watch<'_>) {
        if token == KICK {
            drain_event(&self.queue.kick);
        }
        self.serve(watch);
    }

    fn stop(&mut self) {
        // The worker forgets the descriptors.
        self.polling = false;
    }
}

#[cfg(test)]
mod tests;
