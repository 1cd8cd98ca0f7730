//! A disk to be served: what a user may say of it, and how it is opened.
//!
//! The disk itself is the one that machines have ([`DiskSpec`]); what is here is how it is called on this command line.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use device::{Build, Built, Host, Kept, Virtio};
use sandbox::{HostPath, Use};
use spec::{Facts, Kind, RateLimit, Refusal, Spec};
use vhost_user::daemon::Opened;
use vhost_user::{Door, MAX_QUEUES, Server};
use virtio_devices::block::{DiskSpec, DiskType, ImageType, LockGranularity};

spec::spec! {
    /// A disk, and the socket that it is served on. May be given several times.
    pub struct BackendSpec: "block-backend" {
        flatten {
            /// Limits.
            limits: RateLimit,
        }
        fields {
            /// The image file or block device.
            "path" => path: Option<PathBuf> = None,
            /// The socket to listen on; a socket that nobody listens on any more is replaced.
            "socket" => socket: Option<PathBuf> = None,
            /// Request queues, each with a thread; a front end may use fewer.
            "num_queues" => num_queues: usize = 1,
            /// Largest size of each queue: a power of two greater than 2.
            "queue_size" => queue_size: u16 = 1024,
            /// Open the image read-only; the guest sees a read-only disk.
            "readonly" => readonly: bool = false,
            /// Go around the host's page cache (O_DIRECT).
            "direct" => direct: bool = false,
            /// Have each queue look for requests by itself, for at most 50 us, where the last ones came soon.
            "poll_queue" => poll_queue: bool = true,
            /// Format of the image. It is never guessed.
            "image_type" => image_type: ImageType = ImageType::Raw,
            /// Let a qcow2 image build upon other files, which it names; needs image_type=qcow2.
            "backing_files" => backing_files: bool = false,
            /// Serial number that the guest sees, at most 20 bytes; made from the image's identity when absent.
            "serial" => serial: Option<String> = None,
            /// Let the guest give back space it does not use.
            "sparse" => sparse: bool = true,
            /// How much of the image to lock against other users.
            "lock_granularity" => lock_granularity: LockGranularity = LockGranularity::ByteRange,
            #[doc = ""]
            "_disable_io_uring" => disable_io_uring: bool = false,
            #[doc = ""]
            "_disable_aio" => disable_aio: bool = false,
        }
        unsupported {}
    }
}

/// How long a queue looks for requests by itself at most.
const POLLING: Duration = Duration::from_micros(50);

impl Spec for BackendSpec {
    const FLAG: &'static str = BackendSpec::FLAG;
    const ABOUT: &'static str = BackendSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        let missing = |key: &str| Refusal::invalid(format!("Error parsing --block-backend: {key} missing"));
        self.path.as_ref().ok_or_else(|| missing("path"))?;
        self.socket.as_ref().ok_or_else(|| missing("socket"))?;
        if self.num_queues > MAX_QUEUES {
            return Err(Refusal::invalid(format!(
                "Number of queues ({}) must not exceed {MAX_QUEUES}",
                self.num_queues
            )));
        }
        self.disk().check(&facts())
    }
}

/// There is no machine here whose vCPUs limit the number of queues.
fn facts() -> Facts {
    Facts { boot_vcpus: u32::MAX, ..Facts::default() }
}

impl BackendSpec {
    /// The disk, in the words of a machine.
    fn disk(&self) -> DiskSpec {
        DiskSpec {
            path: self.path.clone(),
            readonly: self.readonly,
            direct: self.direct,
            num_queues: self.num_queues,
            queue_size: self.queue_size,
            limits: self.limits,
            backing_files: self.backing_files,
            serial: self.serial.clone(),
            sparse: self.sparse,
            image_type: DiskType::stated(self.image_type),
            lock_granularity: self.lock_granularity,
            disable_io_uring: self.disable_io_uring,
            disable_aio: self.disable_aio,
            ..DiskSpec::default()
        }
    }

    fn socket(&self) -> &Path {
        self.socket.as_deref().unwrap_or(Path::new(""))
    }

    /// Opens the image.
    fn build(&self, id: &str) -> Result<Built, Refusal> {
        let host = Host { id, facts: &facts(), kept: &Kept::default() };
        self.disk().build_polling(&host, if self.poll_queue { POLLING } else { Duration::ZERO })
    }

    /// Opens image and socket.
    fn open(&self, id: &str) -> Result<Opened, Refusal> {
        let built = self.build(id)?;
        let Built::Virtio(device) = built else {
            return Err(Refusal::new(Kind::Bug, format!("disk \"{id}\" is no virtio device")));
        };
        let door = Door::open(&format!("disk \"{id}\""), self.socket(), false)?;
        Ok(Opened { name: format!("{id} on {}", self.socket().display()), device, door })
    }
}

/// Opens all disks; if one cannot be opened, none is.
///
/// # Errors
/// What cannot be, or what the host refused, naming image or socket.
pub fn open(specs: &[BackendSpec]) -> Result<Vec<Opened>, Refusal> {
    for spec in specs {
        spec.check(&Facts::default())?;
    }
    specs.iter().enumerate().map(|(n, spec)| spec.open(&format!("disk{n}"))).collect()
}

/// The paths that they are made of.
pub fn paths(specs: &[BackendSpec]) -> Vec<HostPath> {
    let one = |spec: &BackendSpec| {
        let socket = spec.socket.iter().map(|path| HostPath::new(path, Use::Listen));
        spec.disk().paths().into_iter().chain(socket).collect::<Vec<_>>()
    };
    specs.iter().flat_map(one).collect()
}

/// Looks at the sizes of raw images again; a disk whose image has another size than it has gets that size. The servers are those of `specs`.
pub fn look(specs: &[BackendSpec], servers: &[Server]) {
    for (spec, server) in specs.iter().zip(servers) {
        if let Err(e) = look_at(spec, server) {
            log::warn!("{}: {}", server.name(), e.chain().join(": "));
        }
    }
}

fn look_at(spec: &BackendSpec, server: &Server) -> Result<(), Refusal> {
    let (Some(path), ImageType::Raw) = (&spec.path, spec.image_type) else { return Ok(()) };
    let failed = |e| Refusal::host(format!("cannot look at the size of {}", path.display()), e);
    let bytes = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0))).map_err(failed)?;
    if !bytes.is_multiple_of(SECTOR) {
        return Err(Refusal::invalid(format!(
            "image {} has {bytes} bytes, not a multiple of {SECTOR}",
            path.display()
        )));
    }
    let resize = move |device: &dyn Virtio| {
        let mut sectors = [0; 8];
        device.read_config(0, &mut sectors);
        match device.resize() {
            Some(resize) if u64::from_le_bytes(sectors) != bytes / SECTOR => resize.resize(bytes),
            _ => Ok(()),
        }
    };
    server.with(resize).map_err(|e| Refusal::host("cannot resize", e))?
}

/// The unit in which a disk's size is told (virtio 1.3 §5.2.4).
const SECTOR: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let spec = BackendSpec::parse("path=a,socket=b").unwrap();
        assert_eq!((spec.num_queues, spec.queue_size), (1, 1024));
        assert_eq!((spec.readonly, spec.direct, spec.poll_queue), (false, false, true));
        assert!(spec.check(&Facts::default()).is_ok());
        let spec = BackendSpec::parse("path=a,socket=b,num_queues=256,queue_size=4,poll_queue=off").unwrap();
        assert!(spec.check(&Facts::default()).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, refusal) in [
            ("", "Error parsing --block-backend: path missing"),
            ("path=a", "Error parsing --block-backend: socket missing"),
            ("socket=a", "Error parsing --block-backend: path missing"),
            ("path=a,socket=b,num_queues=0", "Number of queues (0) of a disk must be at least 1"),
            ("path=a,socket=b,num_queues=257", "Number of queues (257) must not exceed 256"),
            ("path=a,socket=b,queue_size=3", "Queue size must be a power of 2 no greater than 32768: 3"),
            ("path=a,socket=b,queue_size=2", "Block queue size must be greater than 2: 2"),
        ] {
            let refused = BackendSpec::parse(text).unwrap().check(&Facts::default()).unwrap_err();
            assert_eq!(refused.to_string(), refusal, "{text}");
        }
        for text in ["path=a,sockt=b", "path", "path=a,socket=b,readonly=maybe", "path=a,num_queues=x"] {
            assert!(BackendSpec::parse(text).is_err(), "{text}");
        }
    }
}
