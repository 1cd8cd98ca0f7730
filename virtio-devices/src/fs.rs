//! virtio-fs (virtio 1.3 §5.11): a folder of the host, served by another process such as virtiofsd.

use std::path::PathBuf;

use device::{Build, Built, Calls, Host, Naming, VirtioKind};
use sandbox::{HostPath, Use};
use spec::{Facts, Part, PciCommon, Refusal, Spec};
use vhost_user::front::{ConfigWish, Knows, Way, Wish};

spec::spec! {
    /// A folder of the host that another process (virtiofsd) shows to the guest by vhost-user. Needs --memory shared=on.
    pub struct FsSpec: "fs" {
        flatten {
            /// Naming and placement.
            pci: PciCommon,
        }
        fields {
            /// The name by which the guest mounts it: at most 36 bytes.
            "tag" => tag: Option<String> = None,
            /// The socket of the process.
            "socket" => socket: Option<PathBuf> = None,
            /// Request queues; at most as many as vCPUs.
            "num_queues" => num_queues: usize = 1,
            /// Size of each queue: a power of two.
            "queue_size" => queue_size: u16 = 1024,
        }
        unsupported {}
    }
}

/// Bytes of the tag in the configuration space (§5.11.4).
pub const TAG_LENGTH: usize = 36;

impl Spec for FsSpec {
    const FLAG: &'static str = FsSpec::FLAG;
    const ABOUT: &'static str = FsSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::invalid(format!("Error parsing --fs: {what}")));
        if let Some(key) = self.unsupported() {
            return Err(Refusal::unsupported(format!("--fs {key}")));
        }
        match &self.tag {
            None => return refuse("tag missing".into()),
            Some(tag) if tag.is_empty() => return refuse("tag is empty".into()),
            Some(tag) if tag.len() > TAG_LENGTH => {
                return refuse(format!("max tag length is {TAG_LENGTH}"));
            }
            Some(_) => {}
        }
        if self.socket.is_none() {
            return refuse("socket missing".into());
        }
        if self.num_queues == 0 {
            return refuse("num_queues must be at least 1".into());
        }
        spec::vhost_user::check(self.socket.as_deref(), false, facts)?;
        spec::queues::check(self.num_queues, self.queue_size, facts)?;
        self.pci.check(facts)
    }
}

impl FsSpec {
    /// The configuration space: tag and number of request queues.
    fn config(&self) -> Vec<u8> {
        let mut bytes = self.tag.clone().unwrap_or_default().into_bytes();
        bytes.resize(TAG_LENGTH, 0);
        // At most as many as vCPUs.
        bytes.extend((self.num_queues as u32).to_le_bytes());
        bytes
    }
}

impl Build for FsSpec {
    const NAMING: Naming = Naming::Counted("fs");
    const CALLS: Calls = crate::remote::CALLS;
    const REPLACEABLE: &'static [&'static str] = &["socket"];

    fn common(&self) -> Option<&PciCommon> {
        Some(&self.pci)
    }

    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        Some(&mut self.pci)
    }

    fn shares_memory(&self) -> bool {
        true
    }

    fn paths(&self) -> Vec<HostPath> {
        self.socket.iter().map(|path| HostPath::new(path, Use::Connect)).collect()
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        let way = Way::Connect(self.socket.clone().unwrap_or_default());
        // One for requests that others must not hold up comes before them.
        let sizes = vec![self.queue_size; self.num_queues + 1];
        let wish = Wish {
            few_queues: 2,
            // Which files the guest has open. Whoever does not know them says so (FUSE has errors for that).
            knows: Knows::Missed,
            parked: Some(crate::remote::parked(host)),
            config: ConfigWish {
                bytes: self.config(),
                fits: |then, now| {
                    (then == now).then_some(()).ok_or_else(|| "another tag or more queues".into())
                },
                ..ConfigWish::default()
            },
            ..Wish::new(host.id, way, VirtioKind::Fs as u16, sizes)
        };
        let found = crate::remote::find(wish, host);
        let found = found.map_err(|e| e.within(format!("cannot add file system \"{}\"", host.id)))?;
        Ok(Built::Virtio(Box::new(found)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_folder_is_checked_and_told_the_driver() {
        let facts = Facts { shared_memory: true, boot_vcpus: 2, ..Facts::default() };
        let check = |text: &str| FsSpec::parse(text).unwrap().check(&facts).map_err(|e| e.chain().join(": "));
        assert_eq!(check("tag=t,socket=/s,num_queues=2,queue_size=512"), Ok(()));
        for (text, want) in [
            ("socket=/s", "Error parsing --fs: tag missing"),
            ("tag=t", "Error parsing --fs: socket missing"),
            (
                "tag=1234567890123456789012345678901234567,socket=/s",
                "Error parsing --fs: max tag length is 36",
            ),
            ("tag=t,socket=/s,num_queues=0", "Error parsing --fs: num_queues must be at least 1"),
            ("tag=t,socket=/s,num_queues=3", "Queue count (3) must not exceed boot vCPUs (2)"),
            ("tag=t,socket=/s,queue_size=3", "Queue size must be a power of 2 no greater than 32768: 3"),
        ] {
            assert_eq!(check(text), Err(want.to_owned()), "{text}");
        }
        let private = FsSpec::parse("tag=t,socket=/s").unwrap().check(&Facts::default()).unwrap_err();
        assert!(private.to_string().contains("requires using shared memory"), "{private}");
        let config = FsSpec::parse("tag=home,socket=/s,num_queues=2").unwrap().config();
        assert_eq!((config.len(), &config[..5], config[36]), (40, &b"home\0"[..], 2));
    }
}
