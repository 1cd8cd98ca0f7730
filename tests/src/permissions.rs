//! Programs that heed permissions although the tests run as root.

use std::ffi::{CString, OsStr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Drops privileges that let root read and write what its permissions forbid, so that they count in the program too.
pub fn heeding_permissions(command: &mut Command) -> &mut Command {
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;
    // SAFETY: prctl is a plain system call, safe between fork and exec. It fails only for those who have no privileges to drop.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH, 0, 0, 0);
            Ok(())
        })
    }
}

/// The user who has no privileges: `nobody`.
const NOBODY: u32 = 65_534;

/// Starts the program as a user without privileges.
pub fn unprivileged(command: &mut Command) -> &mut Command {
    // SAFETY: plain system calls, safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let done = libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(NOBODY, NOBODY, NOBODY) == 0
                && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        })
    }
}

fn mount(arguments: &[&OsStr]) {
    let done = Command::new("mount").args(arguments).output().expect("mount runs");
    assert!(done.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Gives the calling thread, and what it starts, mounts of its own: what it mounts is gone with them.
///
/// # Panics
/// Without root.
pub fn own_mounts() {
    // SAFETY: a plain system call; it changes only what this thread sees.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(done, 0, "these tests run as root: {}", std::io::Error::last_os_error());
    mount(&["--make-rprivate".as_ref(), "/".as_ref()]);
}

/// Shows the calling thread, which has [`own_mounts`], a file in the place of another.
///
/// # Panics
/// Without root.
pub fn in_place_of(there: &Path, shown: &Path) {
    mount(&["--bind".as_ref(), shown.as_os_str(), there.as_os_str()]);
}

/// Lets everybody come to these directories, and use KVM, as the calling thread sees it, which has [`own_mounts`].
///
/// # Panics
/// Without root.
pub fn open_to_everybody(directories: &[&Path], scratch: &Path) {
    let devices = scratch.join("devices");
    std::fs::create_dir(&devices).expect("the scratch directory takes another");
    mount(&["-t".as_ref(), "tmpfs".as_ref(), "tmpfs".as_ref(), devices.as_os_str()]);
    let node = devices.join("kvm");
    let made = Command::new("mknod").arg("-m0666").arg(&node).args(["c", "10", "232"]).status();
    assert!(made.is_ok_and(|status| status.success()), "a device node can be made");
    in_place_of(Path::new("/dev/kvm"), &node);
    for directory in directories {
        let closed = |path: &&Path| path.metadata().is_ok_and(|m| m.permissions().mode() & 1 == 0);
        let ancestors: Vec<&Path> = directory.ancestors().collect();
        let Some(outermost) = ancestors.into_iter().rev().find(closed) else { continue };
        let held = std::fs::File::open(directory).expect("the directory is there");
        mount(&[
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "-omode=755".as_ref(),
            "tmpfs".as_ref(),
            outermost.as_os_str(),
        ]);
        std::fs::create_dir_all(directory).expect("a new file system takes directories");
        // mount(8) would look up where the link leads, which is hidden by now.
        let (held, there) = (format!("/proc/self/fd/{}", held.as_raw_fd()), directory.as_os_str());
        let [held, there] =
            [held.as_bytes(), there.as_bytes()].map(|path| CString::new(path).expect("a path"));
        let none = std::ptr::null();
        // SAFETY: the paths end with a NUL.
        let done = unsafe { libc::mount(held.as_ptr(), there.as_ptr(), none, libc::MS_BIND, none.cast()) };
        assert_eq!(done, 0, "{}: {}", directory.display(), std::io::Error::last_os_error());
    }
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(scratch, open).expect("the directory is ours");
}

/// Makes the root directory that of the calling thread's mounts, of which it has [`own_mounts`]: the lab's commands run in a changed root
/// (`chroot`), where the kernel gives nobody a user namespace.
///
/// # Panics
/// Without root.
pub fn own_root() {
    let place = |path: &str| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).expect("there is a root");
    let held = std::fs::File::open("/").expect("there is a root");
    let before = place("/");
    let mounts = std::fs::File::open("/proc/thread-self/ns/mnt").expect("a thread has mounts");
    let done = |what: &str, result: libc::c_int| {
        assert_eq!(result, 0, "{what}: {}", std::io::Error::last_os_error());
    };
    // SAFETY: plain system calls and paths that end with a NUL; they change only what this thread sees. Coming to our own mounts once more
    // takes us to their root.
    unsafe {
        done("setns", libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS));
        done("fchdir", libc::fchdir(held.as_raw_fd()));
        if place("/") != before {
            let (none, here) = (std::ptr::null(), c".".as_ptr());
            done("mount", libc::mount(here, c"/".as_ptr(), none, libc::MS_MOVE, none.cast()));
            done("chroot", libc::chroot(here));
        }
    }
}
