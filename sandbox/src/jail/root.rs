//! The root of a jail: an empty file system, what the program needs mounted in it, and nothing that could be written to it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::ids::Ids;
use super::kernel::{self, Change, check};
use super::source::{self, Form, Source, Walk, Wanted};
use super::{JailError, at};
use crate::paths::HostPath;

/// What was put into the jail, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path in the jail.
    pub path: PathBuf,
    /// Whether it may be written to.
    pub writable: bool,
}

/// Enters new namespaces of mounts, messages and names, and these besides.
pub(super) fn namespaces(more: libc::c_int) -> Result<(), JailError> {
    for (flag, what) in [
        (libc::CLONE_NEWNS, "mount"),
        (libc::CLONE_NEWIPC, "IPC"),
        (libc::CLONE_NEWUTS, "UTS"),
        (more, "network"),
    ] {
        if flag != 0 {
            kernel::unshare(flag).map_err(at(format!("cannot make a {what} namespace")))?;
        }
    }
    let name = b"jail";
    // SAFETY: the name is valid for its length.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into())
        .map_err(at("cannot set the host's name"))?;
    kernel::part_mounts().map_err(at("cannot part with the host's mounts"))
}

/// A view of the processes of the jail, mounted nowhere yet: those that may be looked at, and nothing else of the kernel's.
pub(super) fn processes() -> Result<OwnedFd, JailError> {
    let options = [(c"subset", c"pid"), (c"hidepid", c"invisible")];
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    kernel::new_mount(c"proc", &options, attributes).map_err(at("cannot mount /proc of the jail"))
}

/// Makes the root for a process of `owner` and moves there, to `directory` if it is there. What is mounted is returned.
pub(super) fn build(
    paths: &[HostPath],
    directory: &Path,
    owner: Option<Ids>,
    proc: Option<&OwnedFd>,
) -> Result<Vec<Place>, JailError> {
    // What is made here may be looked at by whoever the process becomes; files that it makes are its own.
    umask(0);
    let mut found = Vec::new();
    for (path, wanted) in source::wanted(paths, directory) {
        let failed = |e| at(format!("cannot take {} into the jail", path.display()))(e);
        let source = Source::open(&path, &wanted).map_err(failed)?;
        // User namespaces are made before a new root lies on the old one: the kernel takes this process for one in a chroot then.
        let form = source.form(&wanted, owner, proc);
        let outer = |e: JailError| JailError {
            what: format!("cannot take {} into the jail: {}", path.display(), e.what),
            source: e.source,
        };
        let form = form.map_err(outer)?;
        found.push((path, wanted, source, form));
    }
    // Device nodes work in it if it is root that mounts it.
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    let options = [(c"mode", c"0755"), (c"size", c"1m")];
    let root = kernel::new_mount(c"tmpfs", &options, attributes).map_err(at("cannot mount an empty root"))?;
    let below = kernel::open_at(kernel::here(), c"/", libc::O_PATH, 0).map_err(at("cannot open the root"))?;
    kernel::attach(&root, below.as_fd()).map_err(at("cannot mount an empty root"))?;
    let mut places = Vec::with_capacity(found.len());
    for (path, wanted, source, form) in found {
        places.push(put(&root, &path, &wanted, &source, form, owner)?);
    }
    if let Some(proc) = proc {
        let failed = || at("cannot mount /proc of the jail");
        let mut walk = Walk::new(&root).map_err(failed())?;
        walk.down(&c"proc".to_owned()).map_err(failed())?;
        kernel::attach(proc, walk.here().as_fd()).map_err(failed())?;
        kernel::change_mount(proc, &Change { set: libc::MOUNT_ATTR_RDONLY, ..Change::default() })
            .map_err(failed())?;
    }
    let sealed = Change { set: libc::MOUNT_ATTR_RDONLY, ..Change::default() };
    kernel::change_mount(&root, &sealed).map_err(at("cannot make the root read-only"))?;
    kernel::replace_root(&root).map_err(at("cannot change the root"))?;
    umask(0o077);
    // Relative paths were put where they belong; without any there is no such directory, and no need for it.
    if let Err(e) = std::env::set_current_dir(directory)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(at(format!("cannot go to {} in the jail", directory.display()))(e));
    }
    Ok(places)
}

fn umask(mask: libc::mode_t) {
    // SAFETY: it takes a number and cannot fail.
    unsafe { libc::umask(mask) };
}

/// Puts what was found at a path there in the jail.
fn put(
    root: &OwnedFd,
    path: &Path,
    wanted: &Wanted,
    source: &Source,
    mut form: Form,
    owner: Option<Ids>,
) -> Result<Place, JailError> {
    let what = || format!("cannot put {} into the jail", path.display());
    let failed = |e: io::Error| match e.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR) => JailError::new(format!(
            "{}: it leads through a link in a directory that is in the jail too; name the file itself",
            what()
        )),
        _ => at(what())(e),
    };
    let mut walk = Walk::new(root).map_err(failed)?;
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                names.push(Some(CString::new(name.as_bytes()).map_err(|e| failed(io::Error::other(e)))?));
            }
            Component::ParentDir => names.push(None),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let last = names.pop().flatten();
    for name in names {
        match name {
            Some(name) => walk.down(&name).map_err(failed)?,
            None => walk.up(),
        }
    }
    let Some(last) = last else {
        return Err(JailError::new(format!(
            "{}: name it without \"..\" at the end, and not the root",
            what()
        )));
    };
    if let (Form::Node { mode, device }, Some(owner)) = (&form, owner) {
        match walk.node(&last, *mode, *device, owner) {
            // Root of a user namespace makes no devices; in a directory that was mounted, the host's is there.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EEXIST | libc::EROFS)) => {
                form = source.mount(wanted, None, None)?;
            }
            result => result.map_err(failed)?,
        }
    }
    if let Form::Mount { mount, directory } = &form {
        if *directory { walk.down(&last) } else { walk.file(&last) }.map_err(failed)?;
        kernel::attach(mount, walk.here().as_fd()).map_err(failed)?;
    }
    Ok(Place { path: walk.path().to_owned(), writable: wanted.writable })
}
