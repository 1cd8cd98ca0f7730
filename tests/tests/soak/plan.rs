//! What a machine is made of, drawn anew for each: as a command line, and as what `vm.create` takes.

use std::path::Path;

use serde_json::{Value, json};
use tests::programs;

use crate::random::Random;

/// The card's address.
pub(crate) const MAC: &str = "52:54:00:10:ad:01";
pub(crate) const MAC_BYTES: [u8; 6] = [0x52, 0x54, 0, 0x10, 0xad, 1];
/// Seed of the pattern that the guest leaves in what it is given.
pub(crate) const SEED: u64 = 5;
/// Frames that are out at most.
const WINDOW: u64 = 32;
const MEMORY: u64 = 128 << 20;

/// Where a machine finds its devices.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    /// The first disk, in this format.
    pub(crate) disk: &'a Path,
    pub(crate) format: &'static str,
    /// The second, and where a daemon serves it.
    pub(crate) failing: &'a Path,
    pub(crate) disk_socket: &'a Path,
    /// The card's tap, and where a daemon serves it.
    pub(crate) tap: &'a str,
    pub(crate) net_socket: &'a Path,
}

/// What was drawn.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) over_api: bool,
    pub(crate) shared: bool,
    pub(crate) disk_served: bool,
    pub(crate) net_served: bool,
    pub(crate) resets: bool,
    direct: bool,
    no_uring: bool,
    no_aio: bool,
    interrupts: bool,
    cpus: u64,
}

impl Plan {
    pub(crate) fn draw(random: &mut Random) -> Plan {
        let disk_served = random.one_in(3);
        let net_served = random.one_in(3);
        let no_uring = random.one_in(2);
        Plan {
            over_api: random.one_in(2),
            shared: disk_served || net_served || random.one_in(3),
            disk_served,
            net_served,
            resets: random.one_in(2),
            direct: random.one_in(2),
            no_uring,
            no_aio: no_uring && random.one_in(2),
            interrupts: random.one_in(2),
            cpus: 1 + random.below(2),
        }
    }

    /// The probe's command line.
    pub(crate) fn cmdline(&self) -> String {
        let interrupts = if self.interrupts { "on" } else { "off" };
        let end = if self.resets { "reset" } else { "off" };
        format!(
            "probe.run=load probe.hotplug=on probe.failures=on probe.interrupts={interrupts} probe.end={end} \
             probe.window={WINDOW} probe.disks=2 probe.cards=1 probe.seed={SEED} probe.touch=2 probe.beat=500"
        )
    }

    /// What the command line has besides kernel and serial port.
    pub(crate) fn arguments(&self, places: &Places<'_>) -> Vec<String> {
        let on = |yes: bool, key: &str| if yes { format!(",{key}=on") } else { String::new() };
        let engine = [
            on(self.direct, "direct"),
            on(self.no_uring, "_disable_io_uring"),
            on(self.no_aio, "_disable_aio"),
        ]
        .concat();
        let first = format!("path={},image_type={},id=disk0{engine}", places.disk.display(), places.format);
        let second = match self.disk_served {
            true => format!("vhost_user=on,socket={},id=disk1", places.disk_socket.display()),
            false => format!("path={},image_type=raw,id=disk1{engine}", places.failing.display()),
        };
        let net = match self.net_served {
            true => format!("vhost_user=on,socket={},mac={MAC},id=net0", places.net_socket.display()),
            false => format!("tap={},mac={MAC},id=net0", places.tap),
        };
        let memory = format!("size={MEMORY}{}", on(self.shared, "shared"));
        [
            "--memory",
            &memory,
            "--cpus",
            &format!("boot={}", self.cpus),
            "--disk",
            &first,
            &second,
            "--net",
            &net,
        ]
        .map(str::to_owned)
        .into()
    }

    /// The same for `vm.create`.
    pub(crate) fn description(&self, places: &Places<'_>) -> Value {
        let format = match places.format {
            "qcow2" => "Qcow2",
            "vhdx" => "Vhdx",
            _ => "Raw",
        };
        let local = |id: &str, path: &Path, format: &str| {
            json!({"id": id, "path": path, "image_type": format, "direct": self.direct,
                   "disable_io_uring": self.no_uring, "disable_aio": self.no_aio})
        };
        let second = match self.disk_served {
            true => json!({"id": "disk1", "vhost_user": true, "vhost_socket": places.disk_socket}),
            false => local("disk1", places.failing, "Raw"),
        };
        let net = match self.net_served {
            true => {
                json!({"id": "net0", "mac": MAC, "vhost_user": true, "vhost_socket": places.net_socket})
            }
            false => json!({"id": "net0", "mac": MAC, "tap": places.tap}),
        };
        json!({
            "payload": {"kernel": programs::probe(), "cmdline": self.cmdline()},
            "cpus": {"boot_vcpus": self.cpus, "max_vcpus": self.cpus},
            "memory": {"size": MEMORY, "shared": self.shared},
            "disks": [local("disk0", places.disk, format), second],
            "net": [net],
            "serial": {"mode": "Tty"},
            "console": {"mode": "Off"},
        })
    }
}
