//! The programs that are compared, and how each is told to run the same guest.
//!
//! All get one vCPU (as many as a device has queues, if it has several), 512 MiB and a serial port on standard output, and no device that the measurement does not need.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::grid::Place;
use crate::network;
use crate::vhost::QUEUE_SIZE;

/// How a program wants to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `bare-kvm`: no devices at all.
    Bare,
    /// Cloud Hypervisor's flags: ours, and others that have the same.
    CloudHypervisor,
    /// QEMU; the words that start it.
    Qemu(Vec<String>),
}

/// One program.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) dialect: Dialect,
    /// What it is told besides, whatever it runs.
    pub(crate) words: Vec<String>,
}

/// What the guest gets besides CPU, memory and serial port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extra<'a> {
    /// Nothing.
    None,
    /// A PCI bus, with no more on it than the VMM's own.
    Bus,
    /// A disk on this image.
    Disk { place: Place<'a>, queues: usize },
    /// A disk that another process serves.
    Served { socket: &'a Path, queues: usize },
    /// A network card on this tap.
    Net { tap: &'a str, pairs: usize },
    /// A folder that another process serves.
    Folder { socket: &'a Path },
    /// Sockets, at this one of the host.
    Sockets { socket: &'a Path },
}

/// Where QEMU's firmware leaves devices without addresses, the probe puts them here: above RAM and below the I/O APIC.
const QEMU_BARS: &str = "probe.bars=0xc0000000";
/// Memory of a machine that needs no more.
pub(crate) const USUAL_MIB: u64 = 512;
const MAC: &str = "52:54:00:be:5c:01";

impl Extra<'_> {
    /// Whether another process must see the machine's memory.
    fn shares_memory(&self) -> bool {
        matches!(self, Extra::Served { .. } | Extra::Folder { .. })
    }

    /// CPUs of the machine: some programs give a device no more queues than that. The guest runs on the first.
    fn cpus(&self) -> usize {
        match self {
            Extra::Disk { queues, .. } | Extra::Served { queues, .. } => *queues,
            Extra::Net { pairs, .. } => *pairs,
            _ => 1,
        }
    }

    /// What Cloud Hypervisor is told of it.
    fn words(&self) -> Vec<String> {
        let [flag, value] = match self {
            Extra::None | Extra::Bus => return Vec::new(),
            Extra::Disk { place, queues } => {
                let direct = if place.direct { "on" } else { "off" };
                let keys = format!("num_queues={queues},queue_size={QUEUE_SIZE}");
                let (path, format) = (place.path.display(), place.format);
                ["--disk", &format!("path={path},image_type={format},direct={direct},{keys}")]
                    .map(str::to_owned)
            }
            Extra::Served { socket, queues } => {
                let keys = format!("num_queues={queues},queue_size={QUEUE_SIZE}");
                ["--disk", &format!("vhost_user=on,socket={},{keys}", socket.display())].map(str::to_owned)
            }
            Extra::Net { tap, pairs } => {
                ["--net", &format!("tap={tap},mac={MAC},num_queues={}", 2 * pairs)].map(str::to_owned)
            }
            Extra::Folder { socket } => {
                ["--fs", &format!("tag=bench,socket={}", socket.display())].map(str::to_owned)
            }
            Extra::Sockets { socket } => {
                ["--vsock", &format!("cid=3,socket={}", socket.display())].map(str::to_owned)
            }
        };
        vec![flag, value]
    }

    /// What QEMU is told of it, on a machine with PCI; nothing of what it cannot do.
    fn words_of_qemu(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut tell = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        match self {
            Extra::None | Extra::Bus | Extra::Sockets { .. } => {}
            Extra::Disk { place, queues } => {
                let direct = if place.direct { "on" } else { "off" };
                let (path, format) = (place.path.display(), place.format);
                let threads = (0..*queues).map(|n| format!("io{n}"));
                threads.clone().for_each(|io| tell("-object", format!("iothread,id={io}")));
                let file = format!("driver=file,filename={path},aio=io_uring,node-name=file");
                tell("-blockdev", format!("{file},cache.direct={direct}"));
                tell("-blockdev", format!("driver={format},file=file,cache.direct={direct},node-name=disk"));
                // A thread for each queue.
                let threads: Vec<_> = threads.map(|io| json!({ "iothread": io })).collect();
                let device = json!({
                    "driver": "virtio-blk-pci", "drive": "disk", "disable-legacy": "on", "num-queues": queues,
                    "queue-size": QUEUE_SIZE, "iothread-vq-mapping": threads,
                });
                tell("-device", device.to_string());
            }
            Extra::Served { socket, queues } => {
                tell("-chardev", format!("socket,id=peer,path={}", socket.display()));
                let keys = format!("num-queues={queues},queue-size={QUEUE_SIZE},disable-legacy=on");
                tell("-device", format!("vhost-user-blk-pci,chardev=peer,{keys}"));
            }
            Extra::Net { tap, pairs } => {
                let (vhost, mut many) = (network::vhost(), (String::new(), String::new()));
                if *pairs > 1 {
                    // A vector for each queue, one for the control queue, and one for changes.
                    many = (format!(",queues={pairs}"), format!(",mq=on,vectors={}", 2 * pairs + 2));
                }
                let tap = format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost={vhost}");
                tell("-netdev", tap + &many.0);
                let card = format!("virtio-net-pci,netdev=net,mac={MAC},disable-legacy=on,romfile=");
                tell("-device", card + &many.1);
            }
            Extra::Folder { socket } => {
                tell("-chardev", format!("socket,id=peer,path={}", socket.display()));
                tell("-device", "vhost-user-fs-pci,chardev=peer,tag=bench".to_owned());
            }
        }
        words
    }
}

impl Subject {
    /// Whether it can give a guest devices.
    pub(crate) fn has_devices(&self) -> bool {
        self.dialect != Dialect::Bare
    }

    /// Whether it takes questions over Cloud Hypervisor's API.
    pub(crate) fn has_api(&self) -> bool {
        self.dialect == Dialect::CloudHypervisor
    }

    /// Whether it takes QEMU's options.
    pub(crate) fn is_qemu(&self) -> bool {
        matches!(self.dialect, Dialect::Qemu(_))
    }

    fn command(&self) -> Command {
        let mut command = match &self.dialect {
            Dialect::Qemu(words) => {
                let mut command = Command::new(&self.program);
                command.args(words);
                command
            }
            _ => Command::new(&self.program),
        };
        command.args(&self.words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a PVH guest whose serial port is standard output.
    pub(crate) fn run(&self, kernel: &Path, cmdline: &str, extra: Extra<'_>) -> Command {
        self.run_with(kernel, cmdline, USUAL_MIB, extra)
    }

    /// Continues a snapshot that the same program has taken, at once, its memory brought back by `mode`.
    pub(crate) fn restored(&self, snapshot: &Path, mode: &str) -> Command {
        let mut command = self.command();
        let source = snapshot.display();
        let restore = format!("source_url=file://{source},memory_restore_mode={mode},resume=on");
        command.args(["--restore", &restore]);
        command
    }

    /// The same as [`run`](Subject::run) with `mib` of memory.
    pub(crate) fn run_with(&self, kernel: &Path, cmdline: &str, mib: u64, extra: Extra<'_>) -> Command {
        let mut command = self.command();
        match &self.dialect {
            Dialect::Bare => {
                command.arg(kernel).arg(cmdline).arg(mib.to_string());
            }
            Dialect::CloudHypervisor => {
                command.arg("--kernel").arg(kernel);
                let shared = if extra.shares_memory() { ",shared=on" } else { "" };
                command.args(["--memory", &format!("size={mib}M{shared}")]);
                command.args(["--cpus", &format!("boot={}", extra.cpus())]);
                command.args(["--serial", "tty", "--console", "off"]);
                if !cmdline.is_empty() {
                    command.args(["--cmdline", cmdline]);
                }
                command.args(extra.words());
            }
            Dialect::Qemu(_) => {
                // Its lightest machine where that will do; modern virtio on PCI where devices are compared.
                let machine = match extra {
                    Extra::None => {
                        "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=on,kernel-irqchip=split"
                    }
                    _ => "q35,kernel-irqchip=split",
                };
                // Some hosts' KVM reports an ARCH_CAPABILITIES that it does not accept back.
                command.args([
                    "-M",
                    machine,
                    "-accel",
                    "kvm",
                    "-cpu",
                    "host,-arch-capabilities",
                    "-m",
                    &mib.to_string(),
                ]);
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
                // Threads are told apart by their names.
                command.args(["-name", "bench,debug-threads=on"]);
                command.args(["-serial", "stdio", "-bios", "qboot.rom"]);
                command.arg("-kernel").arg(kernel).args(["-append", &format!("{QEMU_BARS} {cmdline}")]);
                command.args(["-smp", &extra.cpus().to_string()]);
                if extra.shares_memory() {
                    command.args(["-object", &format!("memory-backend-memfd,id=ram,size={mib}M,share=on")]);
                    command.args(["-machine", "memory-backend=ram"]);
                }
                command.args(extra.words_of_qemu());
            }
        }
        command
    }

    /// Boots Linux with its console, virtio, on standard output and the serial port off, and these words for it. `None` for what cannot.
    pub(crate) fn boot(
        &self,
        kernel: &Path,
        initramfs: &Path,
        (words, extra): (&str, Extra<'_>),
    ) -> Option<Command> {
        let cmdline = format!("console=hvc0 quiet panic=-1 {words}");
        let mut command = self.command();
        match &self.dialect {
            Dialect::Bare => return None,
            Dialect::CloudHypervisor => {
                command.arg("--kernel").arg(kernel).arg("--initramfs").arg(initramfs);
                command.args(["--cmdline", &cmdline, "--memory", "size=512M", "--cpus", "boot=1"]);
                command.args(["--serial", "off", "--console", "tty"]);
                command.args(extra.words());
            }
            Dialect::Qemu(_) => {
                // Not microvm: Debian's kernels find their console on PCI only. Nor a split irqchip: with it, nothing came in the lab.
                command.args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "512"]);
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
                command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=c,signal=off"]);
                command.args(["-device", "virtconsole,chardev=c", "-device", "virtio-rng-pci"]);
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs).args(["-append", &cmdline]);
                command.args(extra.words_of_qemu());
            }
        }
        Some(command)
    }
}
