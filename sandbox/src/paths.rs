//! Which paths of the host's a process may open, and keeping it to those (Landlock, `Documentation/userspace-api/landlock.rst`).
//!
//! What is open already is not touched. A domain can only be made smaller; it holds for the calling thread and those that it starts.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError,
};
use thiserror::Error;

use crate::call::{Call, Set};

mod trail;

pub use trail::{FOLLOW, Follower, Trail};

/// System calls of this module.
pub const RESTRICT: Set = &[
    Call::any(libc::SYS_landlock_create_ruleset),
    Call::any(libc::SYS_landlock_add_rule),
    Call::any(libc::SYS_landlock_restrict_self),
];

/// What the kernel must have: Linux 6.2, the first that also tells truncating from writing.
const NEEDED: ABI = ABI::V3;

/// What is done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is read; of a directory, all that is in it.
    Read,
    /// It is written; in a directory, files are made and removed as well.
    Write,
    /// Both.
    ReadWrite,
    /// A file for output: made if it is not there, emptied if it is.
    Output,
    /// A socket is bound there, and removed.
    Listen,
    /// A socket is connected to, which may come and go.
    Connect,
}

impl Use {
    /// Whether anything is changed by it.
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Use::Read | Use::Connect)
    }
}

/// A path of the host's and what is done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPath {
    /// The path.
    pub path: PathBuf,
    /// What is done with it.
    pub used: Use,
}

impl HostPath {
    /// A path and what is done with it.
    pub fn new(path: impl Into<PathBuf>, used: Use) -> Self {
        HostPath { path: path.into(), used }
    }

    /// What is opened in the end: of a socket, its directory.
    pub(crate) fn subject(&self) -> &Path {
        match self.used {
            Use::Listen | Use::Connect => self.directory(),
            _ => &self.path,
        }
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// What a rule has to name that allows this: of a file for output that is not there, its directory, in which it is made.
    pub fn place(&self) -> &Path {
        match self.used {
            Use::Output if !self.path.exists() => self.directory(),
            _ => self.subject(),
        }
    }

    fn rights(&self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self.used {
            Use::Read => read,
            Use::Write => AccessFs::from_write(NEEDED),
            Use::ReadWrite => read | AccessFs::from_write(NEEDED),
            Use::Output => AccessFs::WriteFile | AccessFs::Truncate,
            Use::Listen => AccessFs::MakeSock | AccessFs::RemoveFile,
            // Not the kernel's concern.
            Use::Connect => BitFlags::empty(),
        }
    }
}

/// Why a process could not be kept to paths; it must not go on as if it were.
#[derive(Debug, Error)]
pub enum PathError {
    /// One of the paths is not there, or cannot be looked at.
    #[error("cannot allow {path}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// The kernel has no Landlock, or an old one, or refuses.
    #[error(
        "the kernel does not restrict paths: Landlock of Linux 6.2 is needed, and enabled (lsm= on its command line)"
    )]
    Kernel(#[source] RulesetError),
    /// The domain has no descriptor for another thread.
    #[error("cannot copy the descriptor of a domain")]
    Copy(#[source] io::Error),
}

/// The paths that a process is kept to.
#[derive(Debug)]
pub struct Domain(Vec<(PathBuf, BitFlags<AccessFs>)>);

impl Domain {
    /// From now on the calling thread and those that it starts open nothing else; others find it on the trail. Files for output are made, so
    /// that they can be named.
    ///
    /// # Errors
    /// A path that is not there, or a kernel that does not do it; then nothing is restricted.
    pub fn enter(paths: &[HostPath], trail: &Trail) -> Result<Domain, PathError> {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(NEEDED))
            .and_then(Ruleset::create);
        let mut ruleset = ruleset.map_err(PathError::Kernel)?;
        let mut allowed = Vec::with_capacity(paths.len());
        for wanted in paths.iter().filter(|wanted| !wanted.rights().is_empty()) {
            let failed = |source| PathError::Path { path: wanted.path.clone(), source };
            if wanted.used == Use::Output {
                make(&wanted.path).map_err(failed)?;
            }
            let subject = wanted.subject();
            let real = subject.canonicalize().map_err(failed)?;
            let rights = match real.is_dir() {
                true => wanted.rights(),
                false => wanted.rights() & AccessFs::from_file(NEEDED),
            };
            let opened = PathFd::new(&real).map_err(|e| failed(io::Error::other(e)))?;
            ruleset = ruleset.add_rule(PathBeneath::new(opened, rights)).map_err(PathError::Kernel)?;
            allowed.push((real, rights));
        }
        let copy = ruleset.try_clone().map_err(PathError::Copy)?;
        ruleset.restrict_self().map_err(PathError::Kernel)?;
        trail.add(copy);
        Ok(Domain(allowed))
    }

    /// How many paths are allowed.
    pub fn rules(&self) -> usize {
        self.0.len()
    }

    /// Whether this may be done with a path. A path that leads nowhere may be used as far as that goes; a file for output is made.
    pub fn covers(&self, wanted: &HostPath) -> bool {
        let place = wanted.place();
        let Ok(real) = place.canonicalize() else { return true };
        let needed = match real.is_dir() {
            true if place != wanted.subject() => wanted.rights() | AccessFs::MakeReg,
            true => wanted.rights(),
            false => wanted.rights() & AccessFs::from_file(NEEDED),
        };
        let beneath = self.0.iter().filter(|(path, _)| real.starts_with(path));
        let granted = beneath.fold(BitFlags::<AccessFs>::empty(), |all, (_, rights)| all | *rights);
        granted.contains(needed)
    }
}

/// Makes a file if nothing is there; what is there stays as it is, and a FIFO is not waited for.
fn make(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory that goes with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("virga-paths-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_thread_opens_what_it_may_and_nothing_else() {
        let scratch = Scratch::new("domain");
        let at = |name: &str| scratch.0.join(name);
        for name in ["read", "both", "other"] {
            fs::write(at(name), name).unwrap();
        }
        fs::create_dir(at("room")).unwrap();
        fs::create_dir(at("sockets")).unwrap();
        let allowed = [
            HostPath::new(at("read"), Use::Read),
            HostPath::new(at("both"), Use::ReadWrite),
            HostPath::new(at("output"), Use::Output),
            HostPath::new(at("room"), Use::ReadWrite),
            HostPath::new(at("sockets/s"), Use::Listen),
        ];
        // Only this thread is restricted.
        let inside = std::thread::scope(|scope| {
            let work = || {
                let domain = Domain::enter(&allowed, &Trail::default()).unwrap();
                let denied =
                    |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::PermissionDenied;
                assert_eq!(fs::read(at("read")).unwrap(), b"read");
                assert!(denied(fs::write(at("read"), "x")));
                fs::write(at("both"), "new").unwrap();
                fs::write(at("output"), "out").unwrap();
                assert!(denied(fs::read(at("output")).map(drop)));
                assert!(denied(fs::read(at("other")).map(drop)));
                assert!(denied(fs::write(at("another"), "x")));
                fs::write(at("room/file"), "x").unwrap();
                fs::rename(at("room/file"), at("room/renamed")).unwrap();
                fs::remove_file(at("room/renamed")).unwrap();
                drop(std::os::unix::net::UnixListener::bind(at("sockets/s")).unwrap());
                fs::remove_file(at("sockets/s")).unwrap();
                assert!(denied(fs::write(at("sockets/file"), "x")));
                // A thread that it starts is restricted as well.
                let other = at("other");
                let child = std::thread::Builder::new().spawn(move || fs::read(other).map(drop));
                assert!(denied(child.unwrap().join().unwrap()));
                domain
            };
            scope.spawn(work).join().unwrap()
        });
        let covers = |name: &str, used| inside.covers(&HostPath::new(at(name), used));
        for (name, used, answer) in [
            ("read", Use::Read, true),
            ("read", Use::ReadWrite, false),
            ("both", Use::ReadWrite, true),
            ("other", Use::Read, false),
            ("room", Use::ReadWrite, true),
            ("sockets/t", Use::Listen, true),
            ("room/t", Use::Listen, true),
            ("t", Use::Listen, false),
            ("nowhere", Use::Read, true),
            ("output", Use::Output, true),
            ("room/log", Use::Output, true),
            ("sockets/log", Use::Output, false),
            ("log", Use::Output, false),
            ("read", Use::Output, false),
        ] {
            assert_eq!(covers(name, used), answer, "{name} {used:?}");
        }
        // A link leads where it leads.
        std::os::unix::fs::symlink(at("other"), at("room/link")).unwrap();
        assert!(!covers("room/link", Use::Read));
        assert_eq!(fs::read(at("other")).unwrap(), b"other");
    }

    #[test]
    fn a_path_that_is_not_there_restricts_nothing() {
        let scratch = Scratch::new("missing");
        let (wanted, trail) = (HostPath::new(scratch.0.join("missing"), Use::Read), Trail::default());
        let error = Domain::enter(std::slice::from_ref(&wanted), &trail).unwrap_err();
        assert!(error.to_string().ends_with("missing"), "{error}");
        trail.follower().follow().unwrap();
        assert!(fs::read_dir("/").is_ok());
    }

    #[test]
    fn a_thread_that_was_there_before_follows_once_and_takes_those_it_starts_along() {
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work).unwrap()
        };
        let is_denied = |path| fs::read_dir(path).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
        let trail = Trail::default();
        let mut follower = trail.follower();
        let (go, gone) = std::sync::mpsc::channel();
        let (done, on) = std::sync::mpsc::channel();
        let follows = move || {
            gone.recv().unwrap();
            assert!(!is_denied("/"), "it was there before");
            // More often than a thread may have domains, were each time another.
            (0..100).for_each(|_| follower.follow().unwrap());
            assert!(is_denied("/") && !is_denied("/proc/self"));
            let mut child = follower.clone();
            let inherits = move || {
                assert!(is_denied("/"));
                done.send(()).unwrap();
                gone.recv().unwrap();
                child.follow().unwrap();
                assert!(is_denied("/proc/self"), "the second one allows nothing");
            };
            spawn("child", Box::new(inherits)).join().unwrap();
            assert!(!is_denied("/proc/self"), "it has not followed that far");
        };
        let thread = spawn("follower", Box::new(follows));
        let enters = move || {
            Domain::enter(&[HostPath::new("/proc/self", Use::Read)], &trail).unwrap();
            go.send(()).unwrap();
            on.recv().unwrap();
            Domain::enter(&[], &trail).unwrap();
            go.send(()).unwrap();
        };
        spawn("first", Box::new(enters)).join().unwrap();
        thread.join().unwrap();
    }
}
