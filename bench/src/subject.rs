//! The programs that are compared, and how each is told to run the same guest.
//!
//! All get one vCPU, 512 MiB and a serial port on standard output, and no device that the measurement does not need.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
}

/// What the guest gets besides CPU, memory and serial port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extra<'a> {
    /// Nothing.
    None,
    /// A PCI bus, with no more on it than the VMM's own.
    Bus,
    /// A disk on this raw image, with or without the host's page cache.
    Disk { path: &'a Path, direct: bool },
    /// A network card on this tap.
    Net { tap: &'a str },
}

/// Where QEMU's firmware leaves devices without addresses, the probe puts them here: above RAM and below the I/O APIC.
const QEMU_BARS: &str = "probe.bars=0xc0000000";
/// Memory of a machine that needs no more.
pub(crate) const USUAL_MIB: u64 = 512;
const MAC: &str = "52:54:00:be:5c:01";

impl Subject {
    /// Whether it can give a guest devices.
    pub(crate) fn has_devices(&self) -> bool {
        self.dialect != Dialect::Bare
    }

    /// Whether it takes questions over Cloud Hypervisor's API.
    pub(crate) fn has_api(&self) -> bool {
        self.dialect == Dialect::CloudHypervisor
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
                command.args(["--memory", &format!("size={mib}M"), "--cpus", "boot=1"]);
                command.args(["--serial", "tty", "--console", "off"]);
                if !cmdline.is_empty() {
                    command.args(["--cmdline", cmdline]);
                }
                match extra {
                    Extra::None | Extra::Bus => {}
                    Extra::Disk { path, direct } => {
                        let direct = if direct { "on" } else { "off" };
                        let disk = format!("path={},image_type=raw,direct={direct}", path.display());
                        command.args(["--disk", &disk]);
                    }
                    Extra::Net { tap } => {
                        command.args(["--net", &format!("tap={tap},mac={MAC}")]);
                    }
                }
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
                command.args(["-serial", "stdio", "-bios", "qboot.rom"]);
                command.arg("-kernel").arg(kernel).args(["-append", &format!("{QEMU_BARS} {cmdline}")]);
                match extra {
                    Extra::None | Extra::Bus => {}
                    Extra::Disk { path, direct } => {
                        let direct = if direct { "on" } else { "off" };
                        let file = format!(
                            "driver=file,filename={},aio=io_uring,cache.direct={direct},node-name=file",
                            path.display()
                        );
                        command.args(["-object", "iothread,id=io0", "-blockdev", &file]);
                        let raw = format!("driver=raw,file=file,cache.direct={direct},node-name=disk");
                        command.args(["-blockdev", &raw]);
                        command.args(["-device", "virtio-blk-pci,drive=disk,iothread=io0,disable-legacy=on"]);
                    }
                    Extra::Net { tap } => {
                        let netdev = format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off");
                        let device =
                            format!("virtio-net-pci,netdev=net,mac={MAC},disable-legacy=on,romfile=");
                        command.args(["-netdev", &netdev, "-device", &device]);
                    }
                }
            }
        }
        command
    }

    /// Boots Linux with its console, virtio, on standard output and the serial port off. `None` for what cannot.
    pub(crate) fn boot(&self, kernel: &Path, initramfs: &Path) -> Option<Command> {
        const CMDLINE: &str = "console=hvc0 quiet panic=-1";
        let mut command = self.command();
        match &self.dialect {
            Dialect::Bare => return None,
            Dialect::CloudHypervisor => {
                command.arg("--kernel").arg(kernel).arg("--initramfs").arg(initramfs);
                command.args(["--cmdline", CMDLINE, "--memory", "size=512M", "--cpus", "boot=1"]);
                command.args(["--serial", "off", "--console", "tty"]);
            }
            Dialect::Qemu(_) => {
                // Not microvm: Debian's kernels find their console on PCI only. Nor a split irqchip: with it, nothing came in the lab.
                command.args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "512"]);
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
                command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=c,signal=off"]);
                command.args(["-device", "virtconsole,chardev=c", "-device", "virtio-rng-pci"]);
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs).args(["-append", CMDLINE]);
            }
        }
        Some(command)
    }
}
