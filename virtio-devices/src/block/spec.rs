//! What a user may say about a disk: `--disk`, `DiskConfig`, `vm.add-disk`.

use std::path::PathBuf;
use std::time::Duration;

use ::block::{Choice, Error, Format, Granularity, Image, Options, Type};
use device::{Build, Built, Calls, Host, Naming};
use sandbox::{HostPath, Use};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use spec::{Facts, Kind, Part, PciCommon, RateLimit, Refusal, Spec, Value};

use super::wire::SERIAL_LENGTH;
use super::{Disk, Parts};
use crate::rate::Limiter;

spec::choice! {
    /// The format of a disk image.
    pub enum ImageType {
        /// Bytes as the guest sees them.
        #[default]
        Raw = "raw",
        /// QEMU copy on write.
        Qcow2 = "qcow2",
        /// Virtual PC, fixed size.
        FixedVhd = "vhd",
        /// Hyper-V.
        Vhdx = "vhdx",
        /// VMware, flat.
        FlatVmdk = "vmdk",
    }
}

spec::choice! {
    /// How much of an image is locked.
    pub enum LockGranularity {
        /// The bytes that it has when it is opened.
        #[default]
        ByteRange = "byte-range",
        /// All of the file, whatever it grows to.
        Full = "full",
    }
}

spec::spec! {
    /// A disk on an image file or block device of the host.
    pub struct DiskSpec: "disk" {
        flatten {
            /// Naming and placement.
            pci: PciCommon,
            /// Limits.
            limits: RateLimit,
        }
        fields {
            /// The image file or block device.
            "path" => path: Option<PathBuf> = None,
            /// Open it read-only; the guest sees a read-only disk.
            "readonly" => readonly: bool = false,
            /// Go around the host's page cache (O_DIRECT).
            "direct" => direct: bool = false,
            /// Request queues, each with a thread; at most as many as vCPUs.
            "num_queues" => num_queues: usize = 1,
            /// Size of each queue: a power of two greater than 2.
            "queue_size" => queue_size: u16 = 128,
            /// Have another process serve the disk (vhost-user): it decides on everything but queues, name and place. Needs socket
            /// and --memory shared=on.
            "vhost_user" => vhost_user: bool = false,
            /// The socket of that process.
            "socket" => vhost_socket: Option<PathBuf> = None,
            /// The --rate-limit-group whose limit this disk shares, instead of a limit of its own.
            "rate_limit_group" => rate_limit_group: Option<String> = None,
            /// Host CPUs for the thread of each queue, such as [0@[2,3],1@[4-7]].
            "queue_affinity" => queue_affinity: QueueAffinity = QueueAffinity::default(),
            /// Serial number that the guest sees, at most 20 bytes; made from the image's identity when absent.
            "serial" => serial: Option<String> = None,
            /// Let a qcow2 image build upon other files, which it names; needs image_type=qcow2.
            "backing_files" => backing_files: bool = false,
            /// Let the guest give back space it does not use.
            "sparse" => sparse: bool = true,
            /// Format of the image. When absent it is recognised, with a warning; the guest may then not write to the first
            /// sector of a raw or VHD image, and no image may name other files. VHD and VMDK must be of a flat, fixed kind.
            "image_type" => image_type: DiskType = DiskType::default(),
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

/// Descriptors that every request needs: header and status.
const MIN_QUEUE_SIZE: u16 = 2;

impl Spec for DiskSpec {
    const FLAG: &'static str = DiskSpec::FLAG;
    const ABOUT: &'static str = DiskSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        let refuse = |text: String| Err(Refusal::invalid(text));
        if self.path.is_some() && self.vhost_socket.is_some() {
            return refuse("Disk path and vhost socket both provided".into());
        }
        if let Some(key) = self.unsupported() {
            return Err(Refusal::unsupported(format!("--disk {key}")));
        }
        if self.vhost_user {
            let limited = self.limits.is_active() || self.rate_limit_group.is_some();
            spec::vhost_user::check(self.vhost_socket.as_deref(), limited, facts)?;
        } else if self.path.is_none() {
            return refuse("Disk path missing".into());
        }
        spec::rate::check(&self.limits, self.rate_limit_group.as_deref(), facts)?;
        if self.num_queues == 0 {
            return refuse("Number of queues (0) of a disk must be at least 1".into());
        }
        spec::queues::check(self.num_queues, self.queue_size, facts)?;
        if self.queue_size <= MIN_QUEUE_SIZE {
            return refuse(format!(
                "Block queue size must be greater than {MIN_QUEUE_SIZE}: {}",
                self.queue_size
            ));
        }
        if let Some(serial) = self.serial.as_ref().filter(|serial| serial.len() > SERIAL_LENGTH) {
            return refuse(format!(
                "Block device serial length ({}) exceeds maximum allowed length ({SERIAL_LENGTH})",
                serial.len()
            ));
        }
        if let Some(entry) =
            self.queue_affinity.0.iter().find(|entry| usize::from(entry.queue_index) >= self.num_queues)
        {
            return refuse(format!("queue_affinity names queue {}, which does not exist", entry.queue_index));
        }
        self.pci.check(facts)
    }
}

impl Build for DiskSpec {
    const NAMING: Naming = Naming::Counted("disk");
    const CALLS: Calls = super::calls::CALLS;
    const REPLACEABLE: &'static [&'static str] = &[
        "path",
        "vhost_socket",
        "direct",
        "rate_limiter_config",
        "rate_limit_group",
        "queue_affinity",
        "lock_granularity",
        "disable_io_uring",
        "disable_aio",
    ];

    fn common(&self) -> Option<&PciCommon> {
        Some(&self.pci)
    }

    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        Some(&mut self.pci)
    }

    fn shares_memory(&self) -> bool {
        self.vhost_user
    }

    fn paths(&self) -> Vec<HostPath> {
        let used = if self.readonly { Use::Read } else { Use::ReadWrite };
        let image = self.path.iter().map(|path| HostPath::new(path, used));
        image.chain(self.vhost_socket.iter().map(|path| HostPath::new(path, Use::Connect))).collect()
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        if self.vhost_user {
            return Ok(Built::Virtio(Box::new(self.find(host)?)));
        }
        self.build_polling(host, Duration::ZERO)
    }
}

impl DiskSpec {
    /// As [`Build::build`], for a disk whose queues look for work by themselves for so long at most, before their threads sleep.
    ///
    /// # Errors
    /// As for [`Build::build`].
    pub fn build_polling(&mut self, host: &Host<'_>, polling: Duration) -> Result<Built, Refusal> {
        self.open(host, polling).map(|disk| Built::Virtio(Box::new(disk)))
    }

    /// The disk of a machine.
    #[cfg(test)]
    pub(super) fn make(&mut self, host: &Host<'_>) -> Result<Disk, Refusal> {
        self.open(host, Duration::ZERO)
    }

    /// Opens the image; its type is written back.
    pub(super) fn open(&mut self, host: &Host<'_>, polling: Duration) -> Result<Disk, Refusal> {
        let what = || format!("cannot add disk \"{}\"", host.id);
        let Some(path) = self.path.clone() else {
            return Err(Refusal::invalid("Disk path missing").within(what()));
        };
        let options = Options {
            path,
            readonly: self.readonly,
            direct: self.direct,
            format: match self.image_type {
                DiskType { stated: Some(kind), .. } => Type::Stated(format(kind)),
                DiskType { found: Some(kind), .. } => Type::Found(format(kind)),
                _ => Type::Unknown,
            },
            backing_files: self.backing_files,
            lock: match self.lock_granularity {
                LockGranularity::ByteRange => Granularity::ByteRange,
                LockGranularity::Full => Granularity::Full,
            },
        };
        let image = Image::open(&options).map_err(|e| Refusal::new(fault(&e), what()).because(e))?;
        self.image_type.found = Some(kind(image.format()));
        let text = self.serial.as_deref().unwrap_or(image.id());
        let mut serial = [0; SERIAL_LENGTH];
        for (to, from) in serial.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        let queues = u16::try_from(self.num_queues)
            .map_err(|_| Refusal::invalid(format!("Number of queues ({}) of a disk", self.num_queues)))?;
        Ok(Disk::new(Parts {
            id: host.id.to_owned(),
            image,
            engine: Choice { io_uring: !self.disable_io_uring, aio: !self.disable_aio },
            serial,
            sparse: self.sparse,
            limiter: Limiter::find(&self.limits, self.rate_limit_group.as_deref(), host.facts, host.kept),
            queues,
            queue_size: self.queue_size,
            cpus: self.queue_affinity.by_queue(self.num_queues),
            polling,
        }))
    }
}

fn format(kind: ImageType) -> Format {
    match kind {
        ImageType::Raw => Format::Raw,
        ImageType::Qcow2 => Format::Qcow2,
        ImageType::FixedVhd => Format::Vhd,
        ImageType::Vhdx => Format::Vhdx,
        ImageType::FlatVmdk => Format::Vmdk,
    }
}

fn kind(format: Format) -> ImageType {
    match format {
        Format::Raw => ImageType::Raw,
        Format::Qcow2 => ImageType::Qcow2,
        Format::Vhd => ImageType::FixedVhd,
        Format::Vhdx => ImageType::Vhdx,
        Format::Vmdk => ImageType::FlatVmdk,
    }
}

/// Who is at fault when an image cannot be opened or resized.
pub(crate) fn fault(error: &Error) -> Kind {
    match error {
        Error::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Kind::Invalid,
        Error::Directory { .. }
        | Error::NotADisk { .. }
        | Error::TooSmall { .. }
        | Error::DirectSize { .. }
        | Error::Malformed { .. }
        | Error::Resize { .. } => Kind::Invalid,
        Error::Backing { source, .. } => fault(source),
        Error::Locked { .. } => Kind::Conflict,
        _ => Kind::Host,
    }
}

/// The type of an image, and whether the user stated it.
///
/// What was found by looking at the image is shown, and stays so, but is never taken for what the user said: a reboot goes on
/// protecting the first sector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskType {
    stated: Option<ImageType>,
    found: Option<ImageType>,
}

impl DiskType {
    /// A type that the user stated.
    pub fn stated(kind: ImageType) -> Self {
        DiskType { stated: Some(kind), found: None }
    }
}

impl Value for DiskType {
    const SYNTAX: &'static str = ImageType::SYNTAX;

    fn convert(text: &str) -> Result<Self, String> {
        ImageType::convert(text).map(DiskType::stated)
    }

    fn show(&self) -> String {
        self.stated.as_ref().map(Value::show).unwrap_or_default()
    }

    fn is_absent(&self) -> bool {
        self.stated.or(self.found).is_none()
    }
}

impl Serialize for DiskType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.stated.or(self.found).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DiskType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The names of JSON; one of them says that the type is not stated.
        #[derive(Deserialize)]
        enum Name {
            Raw,
            Qcow2,
            FixedVhd,
            Vhdx,
            FlatVmdk,
            Unknown,
        }
        let stated = match Option::<Name>::deserialize(deserializer)? {
            None | Some(Name::Unknown) => None,
            Some(Name::Raw) => Some(ImageType::Raw),
            Some(Name::Qcow2) => Some(ImageType::Qcow2),
            Some(Name::FixedVhd) => Some(ImageType::FixedVhd),
            Some(Name::Vhdx) => Some(ImageType::Vhdx),
            Some(Name::FlatVmdk) => Some(ImageType::FlatVmdk),
        };
        Ok(DiskType { stated, found: None })
    }
}

/// Host CPUs for one queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// The queue, from 0.
    pub queue_index: u16,
    /// CPUs of the host that its thread may run on.
    pub host_cpus: Vec<usize>,
}

/// Host CPUs for the queues of a disk: `[0@[2,3],1@[4-7]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct QueueAffinity(pub Vec<Affinity>);

impl QueueAffinity {
    /// The CPUs of each of `queues` queues; none where any will do.
    fn by_queue(&self, queues: usize) -> Vec<Vec<usize>> {
        let mut list = vec![Vec::new(); queues];
        for entry in &self.0 {
            if let Some(place) = list.get_mut(usize::from(entry.queue_index)) {
                place.clone_from(&entry.host_cpus);
            }
        }
        list
    }
}

impl Value for QueueAffinity {
    const SYNTAX: &'static str = "<[queue@[cpus],…]>";

    fn convert(text: &str) -> Result<Self, String> {
        let entry = |(queue, cpus): (String, String)| {
            let queue_index = queue.parse().map_err(|_| format!("{queue} is no queue"))?;
            Ok(Affinity { queue_index, host_cpus: spec::value::integer_list(&cpus)? })
        };
        spec::value::tuple_list(text)?
            .into_iter()
            .map(entry)
            .collect::<Result<_, String>>()
            .map(QueueAffinity)
    }

    fn show(&self) -> String {
        String::new()
    }

    fn is_absent(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for QueueAffinity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list: Option<Vec<Affinity>> = Option::deserialize(deserializer).map_err(de::Error::custom)?;
        Ok(QueueAffinity(list.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
