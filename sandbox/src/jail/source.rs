//! What a jail takes from the host's files: each path resolved once, and what was found there.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::ids::{self, Ids};
use super::kernel::{self, Change};
use super::{JailError, at};
use crate::paths::{HostPath, Use};

/// What is wanted of one path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) writable: bool,
    /// A file is made if nothing is there.
    output: bool,
    /// The name of a socket in this directory that is connected to.
    socket: Option<CString>,
}

/// The paths, each once, those above others before them. Relative ones begin at `directory`.
pub(super) fn wanted(paths: &[HostPath], directory: &Path) -> BTreeMap<PathBuf, Wanted> {
    let mut all: BTreeMap<PathBuf, Wanted> = BTreeMap::new();
    for path in paths {
        let entry = all.entry(directory.join(path.subject())).or_default();
        entry.writable |= path.used.writes();
        entry.output |= path.used == Use::Output;
        if let (Use::Connect, Some(name)) = (path.used, path.path.file_name()) {
            entry.socket = CString::new(name.as_bytes()).ok();
        }
    }
    all
}

/// Permissions that nothing has.
const NEVER: libc::mode_t = 1 << 31;

/// What was found at a path.
pub(super) struct Source {
    file: OwnedFd,
    stat: libc::stat,
}

/// How something comes into the jail.
pub(super) enum Form {
    /// As a mount, on a directory or on a file.
    Mount { mount: OwnedFd, directory: bool },
    /// As a device node of its own, with this mode.
    Node { mode: libc::mode_t, device: libc::dev_t },
}

impl Source {
    /// Resolves the path, links and all, the only time.
    pub(super) fn open(path: &Path, wanted: &Wanted) -> io::Result<Source> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let open = |flags| kernel::open_at(kernel::here(), &name, flags, 0o600);
        let file = match wanted.output {
            true => match open(libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => open(libc::O_PATH),
                result => result,
            },
            false => open(libc::O_PATH),
        }?;
        let stat = kernel::stat(&file)?;
        Ok(Source { file, stat })
    }

    fn is(&self, kind: libc::mode_t) -> bool {
        self.stat.st_mode & libc::S_IFMT == kind
    }

    /// The form in which it comes into the jail of `owner`. `proc` shows the processes of the jail.
    pub(super) fn form(
        &self,
        wanted: &Wanted,
        owner: Option<Ids>,
        proc: Option<&OwnedFd>,
    ) -> Result<Form, JailError> {
        let device = self.is(libc::S_IFCHR) || self.is(libc::S_IFBLK);
        if device && owner.is_some() {
            let mode = self.stat.st_mode & libc::S_IFMT | if wanted.writable { 0o600 } else { 0o400 };
            return Ok(Form::Node { mode, device: self.stat.st_rdev });
        }
        self.mount(wanted, owner, proc)
    }

    /// The same as a mount, whatever it is.
    pub(super) fn mount(
        &self,
        wanted: &Wanted,
        owner: Option<Ids>,
        proc: Option<&OwnedFd>,
    ) -> Result<Form, JailError> {
        let mount = kernel::copy_tree(&self.file).map_err(at("cannot copy the mount"))?;
        let mut set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
        let terminals = kernel::file_system(&self.file).map_err(at("cannot look at the file system"))?
            == libc::DEVPTS_SUPER_MAGIC;
        if !(self.is(libc::S_IFCHR) || self.is(libc::S_IFBLK) || terminals) {
            set |= libc::MOUNT_ATTR_NODEV;
        }
        if !wanted.writable {
            set |= libc::MOUNT_ATTR_RDONLY;
        }
        kernel::change_mount(&mount, &Change { set, recursive: true, map: None })
            .map_err(at("cannot restrict the mount"))?;
        if let (Some(owner), Some(proc)) = (owner, proc)
            && let Some(theirs) = self.in_the_way(wanted, owner)
        {
            hand_over(&mount, theirs, owner, proc)?;
        }
        Ok(Form::Mount { mount, directory: self.is(libc::S_IFDIR) })
    }

    /// Whose place `owner` has to take to do what is wanted; nobody's if permissions allow it anyway. A socket that is not there yet is taken
    /// for the directory owner's.
    fn in_the_way(&self, wanted: &Wanted, owner: Ids) -> Option<Ids> {
        let socket = wanted.socket.as_ref().filter(|_| !wanted.writable);
        let (stat, needed) = match socket {
            Some(name) => (kernel::stat_at(self.file.as_fd(), name).unwrap_or(self.stat), 0o2),
            // What is in a directory may be its owner's alone. Into one that everybody may write to, files are put without being its owner,
            // who could remove those of others.
            None if self.is(libc::S_IFDIR) => (self.stat, if wanted.writable { 0o7 } else { NEVER }),
            None => (self.stat, 0o4 | if wanted.writable { 0o2 } else { 0 }),
        };
        let allowed = stat.st_uid == owner.uid || stat.st_mode & needed == needed;
        (!allowed).then_some(Ids { uid: stat.st_uid, gid: stat.st_gid })
    }
}

/// Has `owner` take the place of somebody else, in this mount. A file system that does not know of such stays as it is: permissions
/// decide.
fn hand_over(mount: &OwnedFd, theirs: Ids, owner: Ids, proc: &OwnedFd) -> Result<(), JailError> {
    let users = ids::namespace(proc, theirs, owner).map_err(at("cannot make a user namespace"))?;
    match kernel::change_mount(mount, &Change { set: 0, recursive: true, map: Some(&users) }) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EPERM | libc::EOPNOTSUPP)) => Ok(()),
        result => result.map_err(at("cannot map the owner")),
    }
}

/// A directory of the jail that is being made, and those above it.
pub(super) struct Walk<'a> {
    root: &'a OwnedFd,
    /// The device of the jail's own root, in which names are made; what was mounted is taken as it is.
    device: libc::dev_t,
    below: Vec<OwnedFd>,
    names: PathBuf,
}

impl<'a> Walk<'a> {
    pub(super) fn new(root: &'a OwnedFd) -> io::Result<Walk<'a>> {
        let device = kernel::stat(root)?.st_dev;
        Ok(Walk { root, device, below: Vec::new(), names: PathBuf::from("/") })
    }

    pub(super) fn here(&self) -> &OwnedFd {
        self.below.last().unwrap_or(self.root)
    }

    /// The path so far, without `..`.
    pub(super) fn path(&self) -> &Path {
        &self.names
    }

    /// Whether names are made here.
    fn is_ours(&self) -> io::Result<bool> {
        Ok(kernel::stat(self.here())?.st_dev == self.device)
    }

    /// One directory down.
    pub(super) fn down(&mut self, name: &CString) -> io::Result<()> {
        if self.is_ours()? {
            kernel::make_directory(self.here().as_fd(), name).or_else(present)?;
        }
        self.take(name, libc::O_DIRECTORY)
    }

    /// Down to a file, an empty one where names are made.
    pub(super) fn file(&mut self, name: &CString) -> io::Result<()> {
        if self.is_ours()? {
            kernel::make_node(self.here().as_fd(), name, libc::S_IFREG | 0o400, 0).or_else(present)?;
        }
        self.take(name, 0)
    }

    /// Makes a device node, which is the owner's alone.
    pub(super) fn node(
        &mut self,
        name: &CString,
        mode: libc::mode_t,
        device: libc::dev_t,
        owner: Ids,
    ) -> io::Result<()> {
        kernel::make_node(self.here().as_fd(), name, mode, device)?;
        kernel::give(self.here().as_fd(), name, owner.uid, owner.gid)?;
        self.names.push(name_of(name));
        Ok(())
    }

    fn take(&mut self, name: &CString, flags: libc::c_int) -> io::Result<()> {
        let next = kernel::open_at(self.here().as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW | flags, 0)?;
        if kernel::stat(&next)?.st_mode & libc::S_IFMT == libc::S_IFLNK {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        self.below.push(next);
        self.names.push(name_of(name));
        Ok(())
    }

    /// One directory up; above the root is the root.
    pub(super) fn up(&mut self) {
        self.below.pop();
        self.names.pop();
    }
}

fn name_of(name: &CString) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(name.as_bytes())
}

fn present(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_wanted_once_with_all_that_is_done_with_them() {
        let paths = [
            HostPath::new("/a/b", Use::Read),
            HostPath::new("/a", Use::Read),
            HostPath::new("/a/s", Use::Listen),
            HostPath::new("log", Use::Output),
            HostPath::new("/d/s", Use::Connect),
        ];
        let all: Vec<_> = wanted(&paths, Path::new("/w")).into_iter().collect();
        let is = |writable, output, socket: Option<&std::ffi::CStr>| Wanted {
            writable,
            output,
            socket: socket.map(Into::into),
        };
        let expected = [
            ("/a", is(true, false, None)),
            ("/a/b", is(false, false, None)),
            ("/d", is(false, false, Some(c"s"))),
            ("/w/log", is(true, true, None)),
        ];
        assert_eq!(all, expected.map(|(path, wanted)| (PathBuf::from(path), wanted)));
    }
}
