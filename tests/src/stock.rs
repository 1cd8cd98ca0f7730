//! What stock guests boot from: Debian's kernels, the small initramfs, the Debian disk image; and what they work with.  `scripts/` fetches and builds them.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::programs;

/// The kernels' names: an old one and a current one.
pub const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// The environment variable that carries all paths to a story elsewhere.
const VARIABLE: &str = "VIRGA_STOCK";

/// Paths of what is there.
#[derive(Debug)]
pub struct Stock(Vec<(String, PathBuf)>);

impl Stock {
    /// All of it; fetched and built at the first call of all, which takes minutes.
    pub fn get() -> &'static Stock {
        static STOCK: OnceLock<Stock> = OnceLock::new();
        STOCK.get_or_init(|| match std::env::var(VARIABLE) {
            Ok(text) => Stock::parse(&text),
            Err(_) => Stock::make(),
        })
    }

    /// The uncompressed ELF of a kernel, booted by PVH.
    pub fn vmlinux(&self, kernel: &str) -> PathBuf {
        self.path(&format!("vmlinux-{kernel}"))
    }

    /// The bzImage of a kernel.
    pub fn bzimage(&self, kernel: &str) -> PathBuf {
        self.path(&format!("bzimage-{kernel}"))
    }

    /// The small initramfs with a kernel's drivers.
    pub fn initramfs(&self, kernel: &str) -> PathBuf {
        self.path(&format!("initramfs-{kernel}"))
    }

    /// The disk image with Debian, not to be written to.
    pub fn debian(&self) -> PathBuf {
        self.path("debian")
    }

    /// A root file system as a directory, with a compiler, make and git; `wrappers/` in it has `ssh` and `ssh-keygen` for the host.
    pub fn workshop(&self) -> PathBuf {
        self.path("workshop")
    }

    /// The archive with the sources of a project in C that needs no configuration.
    pub fn project(&self) -> PathBuf {
        self.path("project")
    }

    /// A disk image with Debian and cloud-init.
    pub fn cloud(&self) -> PathBuf {
        self.path("cloud")
    }

    /// As `NAME=VALUE` for the environment of a story elsewhere.
    pub fn variables(&self) -> [String; 1] {
        let pairs: Vec<String> =
            self.0.iter().map(|(name, path)| format!("{name}={}", path.display())).collect();
        [format!("{VARIABLE}={}", pairs.join("\n"))]
    }

    fn path(&self, wanted: &str) -> PathBuf {
        let found = self.0.iter().find(|(name, _)| name == wanted);
        found.unwrap_or_else(|| panic!("there is no {wanted} among {:?}", self.0)).1.clone()
    }

    fn parse(text: &str) -> Stock {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Stock(pairs.map(|(name, path)| (name.to_string(), path.into())).collect())
    }

    fn make() -> Stock {
        let mut all = Vec::new();
        for kernel in KERNELS {
            let made = script("guest-kernels", &["--path", "vmlinux", kernel]);
            all.push((format!("vmlinux-{kernel}"), made));
            all.push((format!("bzimage-{kernel}"), script("guest-kernels", &["--path", "bzimage", kernel])));
            all.push((format!("initramfs-{kernel}"), script("guest-image", &["initramfs", kernel])));
        }
        for kind in ["debian", "cloud", "workshop", "project"] {
            all.push((kind.to_string(), script("guest-image", &[kind])));
        }
        Stock(all)
    }
}

/// Runs one of `scripts/`; its last line of output is a path.
fn script(name: &str, arguments: &[&str]) -> PathBuf {
    let path = programs::checkout().join("scripts").join(name);
    let output = Command::new(&path).args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|e| panic!("cannot run {}: {e}", path.display()));
    assert!(output.status.success(), "scripts/{name} {} failed", arguments.join(" "));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().last().unwrap_or_else(|| panic!("scripts/{name} prints no path")).into()
}
