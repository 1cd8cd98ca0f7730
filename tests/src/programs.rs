//! Where the programs under test are.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The VMM: `VIRGA_VMM` in the environment, else the one built beside this test.
pub fn cloud_hypervisor() -> PathBuf {
    beside("VIRGA_VMM", "cloud-hypervisor", "vmm")
}

/// The daemon that serves disks: `VIRGA_VHOST_USER_BLOCK` in the environment, else the one built beside this test.
pub fn vhost_user_block() -> PathBuf {
    beside("VIRGA_VHOST_USER_BLOCK", "vhost_user_block", "vhost_user_block")
}

/// The daemon that serves network cards: `VIRGA_VHOST_USER_NET` in the environment, else the one built beside this test.
pub fn vhost_user_net() -> PathBuf {
    beside("VIRGA_VHOST_USER_NET", "vhost_user_net", "vhost_user_net")
}

/// passt, which nobody here wrote: `VIRGA_PASST` in the environment, else the one on the `PATH`; `None` if there is none.
pub fn passt() -> Option<PathBuf> {
    let named = std::env::var_os("VIRGA_PASST").map(PathBuf::from);
    let found = || {
        let places = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&places).map(|place| place.join("passt")).find(|path| path.is_file())
    };
    let passt = named.or_else(found);
    if passt.is_none() {
        println!("SKIPPED: there is no passt on the PATH");
    }
    passt
}

/// `variable` in the environment, else `name` where cargo puts programs.
pub fn beside(variable: &str, name: &str, package: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let path = directory().join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo build -p {package}`, or set {variable}",
        path.display()
    );
    path
}

/// The VMM for release.
pub fn released() -> PathBuf {
    let path = directory().with_file_name("release").join("cloud-hypervisor");
    assert!(path.exists(), "{} is not there: run `cargo build --release`", path.display());
    path
}

/// Where cargo puts programs: the directory above this test's own.
fn directory() -> &'static Path {
    // Once: a thread with a root of its own is told another path.
    static TEST: OnceLock<PathBuf> = OnceLock::new();
    let test = TEST.get_or_init(|| std::env::current_exe().expect("a test knows its own path"));
    test.ancestors().nth(2).expect("a test lies in a directory of cargo's")
}

/// Has a program get this signal when the thread that starts it ends, however that comes about.
pub fn ends_with_us(command: &mut Command, signal: libc::c_int) {
    // SAFETY: prctl is a plain system call, safe between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the checkout")
}

/// The probe guest, built on first use unless `VIRGA_PROBE` in the environment names one.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        if let Some(path) = std::env::var_os("VIRGA_PROBE") {
            return path.into();
        }
        let script = checkout().join("scripts/build-probe");
        let output = Command::new(&script).output().expect("scripts/build-probe runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "scripts/build-probe failed: {err}");
        // It prints `PATH: SIZE bytes` for each.
        let mut paths =
            out.lines().filter_map(|line| line.split_once(": ")).map(|(path, _)| PathBuf::from(path));
        let probe = paths.find(|path| path.ends_with("probe"));
        probe.unwrap_or_else(|| panic!("scripts/build-probe says nothing of a path: {out}"))
    })
}
