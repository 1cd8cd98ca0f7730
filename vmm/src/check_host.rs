//! `--check-host`: the rest of what a host may have, after its KVM. Each finding says what it is good for and how to get it.
//!
//! Looks and touches nothing: devices are opened and closed again, no module is loaded, nothing is configured.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use hypervisor::check::{Finding, Report, State};

/// Looks at everything: KVM first, since nothing runs without.
pub fn check_host() -> Report {
    let mut report = hypervisor::check::check_host();
    let root = Path::new("/");
    report.findings.extend([
        tun(root),
        vhost(root, "vhost-net", "for taps whose packets the host's kernel moves"),
        vhost(root, "vhost-vsock", "for sockets served by the host's kernel"),
        vfio(root),
        hugepages(root),
        userfaultfd(),
        io_uring(),
        landlock(),
    ]);
    report
}

/// Opens a device for reading and writing; nothing is left open.
fn probe(path: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(path).map(drop)
}

/// A device that an option needs: absent, not permitted, or there.
fn device(root: &Path, path: &str, what: &str, purpose: &str, module: &str) -> Finding {
    let shown = format!("/{path}");
    match probe(&root.join(path)) {
        Ok(()) => Finding::ok(what, format!("{shown} present and permitted")),
        Err(error) => {
            let absent =
                |detail: String| Finding::new(what, State::NotNeeded, format!("{detail}; {purpose}"));
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    absent(format!("no {shown}")).with_remedy(format!("modprobe {module}"))
                }
                Some(libc::EACCES | libc::EPERM) => {
                    absent(format!("no permission for {shown}")).with_remedy(format!(
                        "run as a user who may open {shown}, or give access (setfacl -m u:USER:rw {shown})"
                    ))
                }
                _ => absent(format!("cannot open {shown}: {error}")),
            }
        }
    }
}

fn tun(root: &Path) -> Finding {
    device(root, "dev/net/tun", "tap networks", "for --net", "tun")
}

fn vhost(root: &Path, name: &str, purpose: &str) -> Finding {
    device(root, &format!("dev/{name}"), name, purpose, &name.replace('-', "_"))
}

/// VFIO needs its own device, an IOMMU, and a group for each device.
fn vfio(root: &Path) -> Finding {
    const WHAT: &str = "VFIO";
    const PURPOSE: &str = "for --device, host devices given to guests";
    let groups = fs::read_dir(root.join("sys/kernel/iommu_groups")).map_or(0, Iterator::count);
    if groups == 0 {
        return Finding::new(WHAT, State::NotNeeded, format!("no IOMMU groups; {PURPOSE}")).with_remedy(
            "enable the IOMMU in the firmware and in the kernel (intel_iommu=on or amd_iommu=on on its command line)",
        );
    }
    let finding = device(root, "dev/vfio/vfio", WHAT, PURPOSE, "vfio-pci");
    let detail = format!("{}, {groups} IOMMU groups", finding.detail);
    Finding { detail, ..finding }
}

/// Huge pages of each size, and how many are free.
fn hugepages(root: &Path) -> Finding {
    const WHAT: &str = "huge pages";
    const PURPOSE: &str = "for --memory hugepages=on";
    let mut sizes: Vec<(u64, u64, u64)> = fs::read_dir(root.join("sys/kernel/mm/hugepages"))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let kib = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let number = |file| fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok();
            Some((kib, number("nr_hugepages")?, number("free_hugepages")?))
        })
        .collect();
    sizes.sort_unstable();
    if sizes.is_empty() {
        return Finding::new(WHAT, State::NotNeeded, format!("this kernel has none; {PURPOSE}"));
    }
    let reserved: Vec<_> = sizes
        .iter()
        .filter(|(_, total, _)| *total > 0)
        .map(|(kib, total, free)| format!("{free} of {total} free of {}", size(*kib)))
        .collect();
    if reserved.is_empty() {
        let sizes: Vec<_> = sizes.iter().map(|(kib, ..)| size(*kib)).collect();
        return Finding::new(
            WHAT,
            State::NotNeeded,
            format!("none reserved (of {}); {PURPOSE}", sizes.join(", ")),
        )
        .with_remedy("sysctl vm.nr_hugepages=N reserves N of the default size");
    }
    Finding::ok(WHAT, reserved.join(", "))
}

fn size(kib: u64) -> String {
    match kib {
        kib if kib >= 1 << 20 => format!("{} GiB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{} MiB", kib >> 10),
        kib => format!("{kib} KiB"),
    }
}

/// Makes a system call that gives a descriptor, and closes that.
fn try_descriptor(number: libc::c_long, arguments: [usize; 2]) -> io::Result<()> {
    // SAFETY: called below with calls that read at most the memory they are given a pointer to, which is live.
    match unsafe { libc::syscall(number, arguments[0], arguments[1]) } {
        -1 => Err(io::Error::last_os_error()),
        fd => {
            let fd = i32::try_from(fd).map_err(io::Error::other)?;
            // SAFETY: the call has just made this descriptor, and nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(())
        }
    }
}

fn userfaultfd() -> Finding {
    const WHAT: &str = "userfaultfd";
    const PURPOSE: &str = "for restoring snapshots on demand and for post-copy migration";
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned() as usize;
    match try_descriptor(libc::SYS_userfaultfd, [flags, 0]) {
        Ok(()) => Finding::ok(WHAT, "works, for faults of the kernel too"),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            Finding::new(WHAT, State::NotNeeded, format!("this kernel has none; {PURPOSE}"))
        }
        Err(error) => Finding::new(WHAT, State::NotNeeded, format!("refused ({error}); {PURPOSE}"))
            .with_remedy("sysctl vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd"),
    }
}

fn io_uring() -> Finding {
    const WHAT: &str = "io_uring";
    /// Bytes of `struct io_uring_params`.
    const PARAMS: usize = 120;
    let mut params = [0u64; PARAMS / 8];
    let found = try_descriptor(libc::SYS_io_uring_setup, [1, params.as_mut_ptr() as usize]);
    let slower = "disks use slower I/O";
    match found {
        Ok(()) => Finding::ok(WHAT, "works"),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            Finding::new(WHAT, State::Degraded, format!("this kernel has none: {slower}"))
        }
        Err(error) => Finding::new(WHAT, State::Degraded, format!("refused ({error}): {slower}"))
            .with_remedy(
                "sysctl kernel.io_uring_disabled=0, and a container profile that allows io_uring_setup",
            ),
    }
}

fn landlock() -> Finding {
    const WHAT: &str = "Landlock";
    const PURPOSE: &str = "for --landlock";
    const VERSION: usize = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag, a null pointer and size 0, the call only answers a number.
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, VERSION) };
    if abi >= 1 {
        return Finding::ok(WHAT, format!("ABI {abi}"));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            Finding::new(WHAT, State::NotNeeded, format!("switched off at boot; {PURPOSE}"))
                .with_remedy("add landlock to the list of lsm= on the kernel's command line")
        }
        Some(libc::ENOSYS) => {
            Finding::new(WHAT, State::NotNeeded, format!("this kernel has none; {PURPOSE}"))
        }
        _ => Finding::new(WHAT, State::NotNeeded, format!("refused ({error}); {PURPOSE}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    fn tree(files: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().unwrap();
        for (path, content) in files {
            let path = root.as_path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn an_empty_host_is_told_what_to_load() {
        let root = tree(&[]);
        let finding = tun(root.as_path());
        assert_eq!(
            (finding.state, finding.detail.as_str()),
            (State::NotNeeded, "no /dev/net/tun; for --net")
        );
        assert_eq!(finding.remedy.unwrap(), "modprobe tun");
        assert_eq!(vhost(root.as_path(), "vhost-vsock", "x").remedy.unwrap(), "modprobe vhost_vsock");
        assert!(vfio(root.as_path()).detail.starts_with("no IOMMU groups"));
        assert!(hugepages(root.as_path()).detail.starts_with("this kernel has none"));
    }

    #[test]
    fn devices_that_open_are_there() {
        let root =
            tree(&[("dev/net/tun", ""), ("dev/vfio/vfio", ""), ("sys/kernel/iommu_groups/0/type", "DMA")]);
        assert_eq!(tun(root.as_path()).state, State::Ok);
        let finding = vfio(root.as_path());
        assert_eq!(finding.state, State::Ok);
        assert_eq!(finding.detail, "/dev/vfio/vfio present and permitted, 1 IOMMU groups");
    }

    #[test]
    fn huge_pages_are_counted_by_size() {
        let page = |kib: u64, file: &str| format!("sys/kernel/mm/hugepages/hugepages-{kib}kB/{file}");
        let files = |count: &'static str| {
            [
                (page(2048, "nr_hugepages"), count),
                (page(2048, "free_hugepages"), count),
                (page(1 << 20, "nr_hugepages"), "0\n"),
                (page(1 << 20, "free_hugepages"), "0\n"),
            ]
        };
        let build = |count| {
            let files = files(count);
            tree(&files.iter().map(|(path, content)| (path.as_str(), *content)).collect::<Vec<_>>())
        };
        let none = hugepages(build("0\n").as_path());
        assert_eq!(none.detail, "none reserved (of 2 MiB, 1 GiB); for --memory hugepages=on");
        let some = hugepages(build("400\n").as_path());
        assert_eq!((some.state, some.detail.as_str()), (State::Ok, "400 of 400 free of 2 MiB"));
    }

    #[test]
    fn every_finding_of_this_host_says_something() {
        let report = check_host();
        for what in [
            "/dev/kvm",
            "tap networks",
            "vhost-net",
            "vhost-vsock",
            "VFIO",
            "huge pages",
            "userfaultfd",
            "io_uring",
            "Landlock",
        ] {
            let finding = report.findings.iter().find(|finding| finding.what == what).expect(what);
            assert!(!finding.detail.is_empty(), "{what}");
        }
    }
}
