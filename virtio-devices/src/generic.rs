//! A virtio device of any type, served by another process: this side knows nothing of it but its queues.

use std::path::PathBuf;

use device::{Build, Built, Calls, Host, Naming};
use sandbox::{HostPath, Use};
use serde::{Deserialize, Serialize};
use spec::{Facts, Part, PciCommon, Refusal, Spec, Value};
use vhost_user::front::{ConfigWish, Knows, Told, Way, Wish};

use crate::transport::pci::MAX_TYPE;

spec::spec! {
    /// A virtio device of any type that another process serves by vhost-user. Needs --memory shared=on.
    pub struct GenericSpec: "generic-vhost-user" {
        flatten {
            /// Naming and placement.
            pci: PciCommon,
        }
        fields {
            /// The type: its number in the virtio specification, or a name such as fs, i2c, gpio, sound, input.
            "device_type" => device_type: Option<DeviceType> = None,
            /// The socket of the process.
            "socket" => socket: Option<PathBuf> = None,
            /// Size of each queue, such as [128,128]: powers of two.
            "queue_sizes" => queue_sizes: QueueSizes = QueueSizes::default(),
            #[doc = ""]
            "virtio_id" => virtio_id: Option<DeviceType> = None,
        }
        unsupported {}
    }
}

/// Names of device types (virtio 1.3 §5), by their numbers; the contract has its own for those from 42 on.
const NAMES: &[(u32, &str)] = &[
    (1, "net"),
    (2, "block"),
    (3, "console"),
    (4, "rng"),
    (5, "balloon"),
    (6, "iomem"),
    (7, "rpmsg"),
    (8, "scsi"),
    (9, "9p"),
    (10, "mac80211_wlan"),
    (11, "rproc_serial"),
    (12, "caif"),
    (13, "memory_balloon"),
    (16, "gpu"),
    (17, "clock"),
    (18, "input"),
    (19, "vsock"),
    (20, "crypto"),
    (21, "signal_dist"),
    (22, "pstore"),
    (23, "iommu"),
    (24, "mem"),
    (25, "sound"),
    (26, "fs"),
    (27, "pmem"),
    (28, "rpmb"),
    (29, "mac80211_hwsim"),
    (30, "video_encoder"),
    (31, "video_decoder"),
    (32, "scmi"),
    (33, "nitro_sec_mod"),
    (34, "i2c"),
    (35, "watchdog"),
    (36, "can"),
    (37, "dmabuf"),
    (38, "param_serv"),
    (39, "audio_policy"),
    (40, "bt"),
    (41, "gpio"),
    (42, "rdma"),
    (43, "camera"),
    (44, "ism"),
    (45, "spi"),
    (46, "tee"),
    (47, "cpu_balloon"),
    (48, "media"),
    (49, "usb"),
];

/// Types whose work is in the machine itself: resetting it, translating addresses.
const NOT_THESE: [u32; 2] = [23, 35];

/// Features that belong to the type of a device (virtio 1.3 §2.2).
const OF_THE_TYPE: u64 = 0xff_ffff | u64::MAX << 50;

/// Bytes of a configuration space that are shown to the driver, as far as the other process has them.
const CONFIG_LENGTH: usize = 256;

/// The number of a device type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceType(pub u32);

impl Value for DeviceType {
    const SYNTAX: &'static str = "<number or name>";

    fn convert(text: &str) -> Result<Self, String> {
        let text = spec::grammar::dequote(text);
        if let Some((number, _)) = NAMES.iter().find(|(_, name)| *name == text) {
            return Ok(DeviceType(*number));
        }
        let hint = || "expected the number of a device type or its name".to_owned();
        if text.starts_with('0') {
            return Err(hint());
        }
        text.parse().map(DeviceType).map_err(|_| hint())
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// Sizes of queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueueSizes(pub Vec<u16>);

impl Value for QueueSizes {
    const SYNTAX: &'static str = "<list of sizes>";

    fn convert(text: &str) -> Result<Self, String> {
        spec::value::integer_list(text).map(QueueSizes)
    }

    fn show(&self) -> String {
        String::new()
    }

    fn is_absent(&self) -> bool {
        self.0.is_empty()
    }
}

impl GenericSpec {
    fn number(&self) -> Option<u32> {
        self.device_type.or(self.virtio_id).map(|kind| kind.0)
    }
}

impl Spec for GenericSpec {
    const FLAG: &'static str = GenericSpec::FLAG;
    const ABOUT: &'static str = GenericSpec::ABOUT;

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        let refuse =
            |what: &str| Err(Refusal::invalid(format!("Error parsing --generic-vhost-user: {what}")));
        if let Some(key) = self.unsupported() {
            return Err(Refusal::unsupported(format!("--generic-vhost-user {key}")));
        }
        match self.number() {
            None => return refuse("device_type missing"),
            Some(number) if NOT_THESE.contains(&number) => {
                return refuse(&format!("a device of type {number} cannot be served by another process"));
            }
            Some(number) if number == 0 || number > MAX_TYPE.into() => {
                return refuse(&format!("device_type {number} is none from 1 to {MAX_TYPE}"));
            }
            Some(_) => {}
        }
        if self.socket.is_none() {
            return refuse("socket missing");
        }
        if self.queue_sizes.0.is_empty() {
            return refuse("queue size missing");
        }
        if self.queue_sizes.0.len() > vhost_user::MAX_QUEUES {
            return refuse(&format!("more than {} queues", vhost_user::MAX_QUEUES));
        }
        spec::vhost_user::check(self.socket.as_deref(), false, facts)?;
        for size in &self.queue_sizes.0 {
            spec::queues::check(0, *size, facts)?;
        }
        self.pci.check(facts)
    }
}

impl Build for GenericSpec {
    const NAMING: Naming = Naming::Counted("generic_vhost_user");
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
        if self.virtio_id.is_some() {
            log::warn!("{}: virtio_id is an old name of device_type", host.id);
        }
        let way = Way::Connect(self.socket.clone().unwrap_or_default());
        // Checked before.
        let number = self.number().unwrap_or_default() as u16;
        // Whoever does not say how many queues it serves has those of the type, and the user says how many that is.
        let wish = Wish {
            features: OF_THE_TYPE,
            binding: u64::MAX,
            knows: Knows::Vital,
            parked: Some(crate::remote::parked(host)),
            config: ConfigWish { told: Told::Live, bytes: vec![0; CONFIG_LENGTH], ..ConfigWish::default() },
            ..Wish::new(host.id, way, number, self.queue_sizes.0.clone())
        };
        let found = crate::remote::find(wish, host);
        let found = found.map_err(|e| e.within(format!("cannot add vhost-user device \"{}\"", host.id)))?;
        Ok(Built::Virtio(Box::new(found)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_numbers_and_names_and_settings_that_cannot_work_are_refused() {
        let facts = Facts { shared_memory: true, ..Facts::default() };
        let check = |text: &str| GenericSpec::parse(text)?.check(&facts).map_err(|e| e.within("x"));
        let number = |text: &str| GenericSpec::parse(text).unwrap().number();
        let all = "device_type=i2c,socket=/s,queue_sizes=[64,128]";
        assert!(check(all).is_ok() && number(all) == Some(34));
        assert_eq!(GenericSpec::parse(all).unwrap().queue_sizes.0, [64, 128]);
        assert_eq!(number("virtio_id=usb,socket=/s,queue_sizes=64"), Some(49));
        let json: GenericSpec =
            serde_json::from_str(r#"{"socket":"/s","queue_sizes":[1],"device_type":26}"#).unwrap();
        assert_eq!(json.number(), Some(26));
        for (text, want) in [
            ("socket=/s,queue_sizes=[1]", "device_type missing"),
            ("device_type=4,queue_sizes=[1]", "socket missing"),
            ("device_type=4,socket=/s", "queue size missing"),
            ("device_type=4,socket=/s,queue_sizes=[3]", "Queue size must be a power of 2"),
            ("device_type=watchdog,socket=/s,queue_sizes=[1]", "type 35 cannot be served"),
            ("device_type=64,socket=/s,queue_sizes=[1]", "device_type 64 is none from 1 to 63"),
            ("device_type=04,socket=/s,queue_sizes=[1]", "expected the number of a device type or its name"),
            ("device_type=tea,socket=/s,queue_sizes=[1]", "expected the number of a device type or its name"),
        ] {
            let refusal = check(text).unwrap_err().chain().join(": ");
            assert!(refusal.contains(want), "{text}: {refusal}");
        }
    }
}
