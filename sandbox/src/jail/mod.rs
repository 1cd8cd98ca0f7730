//! A jail: namespaces of its own, an empty root, an id that owns nothing, no capabilities, limits.
//!
//! [`enter`] splits the program in two. The process that was started stays outside: it hands signals on, waits, clears away, and ends as
//! the other one does ([`Outer`]). The program's work goes on in the other one, which sees the paths of its [`Plan`] and nothing else of
//! the host's files. A third process does nothing: it is the first of the process namespace, whose ordinary processes signals would
//! not reach if they were the first.
//!
//! ```text
//!   started process ── stays outside: no capabilities, its filter, the id it had
//!     ├─ first of the namespace: empty root, waits for the outer one's end
//!     └─ the program: the root of the plan; goes on where enter() was called
//! ```
//!
//! A path is resolved once, in the mount namespace of the jail and before its root is left; what is found is what is
//! mounted, at the path as it was written, and nothing can be exchanged afterwards. As root ids are dropped: files that only their owner may use are mounted
//! so that the owner's place is the jail's (an id-mapped mount), and device nodes are made anew. An ordinary user keeps the id, in a user
//! namespace that has no other.
//!
//! What has to be open before (devices of the host, taps, the log) is opened by whoever calls. Nothing here knows a device.

mod descriptors;
mod environment;
mod group;
mod ids;
mod kernel;
mod outer;
mod root;
mod source;

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::Mode;
use crate::paths::HostPath;
pub use descriptors::{close_all_but, inherited};
pub use group::Limits;
pub use ids::Owner;
pub use outer::{End, Outer};
pub use root::Place;

/// What a jail is to be.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The user and the group to become; root only.
    pub owner: Owner,
    /// Stay in the host's network namespace.
    pub host_network: bool,
    /// How many descriptors may be open.
    pub files: Option<u64>,
    /// What a control group limits.
    pub limits: Limits,
    /// The paths that are in it.
    pub paths: Vec<HostPath>,
}

/// Descriptors that may be open unless a plan says otherwise, or fewer if those who started the program may not have as many.
pub const FILES: u64 = 4096;

/// Why a process could not enter its jail; it must not go on as if it had.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct JailError {
    what: String,
    #[source]
    source: Option<io::Error>,
}

impl JailError {
    fn new(what: impl Into<String>) -> JailError {
        JailError { what: what.into(), source: None }
    }

    /// Names the limit of the plan that this step has met, if it looks like one.
    fn within(mut self, plan: &Plan) -> JailError {
        let met = match self.source.as_ref().and_then(io::Error::raw_os_error) {
            Some(libc::EMFILE) => plan.files.map(|files| format!("files={files}")),
            Some(libc::EAGAIN) => plan.limits.pids.map(|pids| format!("pids={pids}")),
            _ => None,
        };
        if let Some(met) = met {
            self.what = format!("{} with {met}", self.what);
        }
        self
    }
}

/// Names the step that failed.
fn at(what: impl Into<String>) -> impl FnOnce(io::Error) -> JailError {
    move |source| JailError { what: what.into(), source: Some(source) }
}

/// On which side of the wall a process finds itself.
#[derive(Debug)]
pub enum Side {
    /// In the jail: the work goes on here.
    Inside(Jail),
    /// Outside: [`Outer::wait`] is all that is left to do.
    Outside(Outer),
}

/// The jail that this process is in.
#[derive(Debug)]
pub struct Jail {
    /// The process outside, by the number that whoever started it knows.
    pub outer: u32,
    /// The namespaces outside, by their names below `/proc/self/ns`.
    pub outside: BTreeMap<String, String>,
    places: Vec<Place>,
}

impl Jail {
    /// Whether this may be done with a path: it leads to something that was put into the jail for that.
    pub fn covers(&self, wanted: &HostPath) -> bool {
        let subject = wanted.subject();
        // Of something that is not there yet, it is the directory that counts.
        let real = subject.canonicalize().ok().or_else(|| subject.parent()?.canonicalize().ok());
        let Some(real) = real else { return false };
        let beneath = |place: &&Place| real.starts_with(&place.path);
        self.places.iter().filter(beneath).any(|place| place.writable || !wanted.used.writes())
    }
}

/// The namespaces of this process, by their names below `/proc/self/ns`.
///
/// # Errors
/// They cannot be read.
pub fn namespaces() -> io::Result<BTreeMap<String, String>> {
    let one = |name: &str| {
        let link = std::fs::read_link(Path::new("/proc/self/ns").join(name))?;
        Ok((name.to_owned(), link.display().to_string()))
    };
    ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"].into_iter().map(one).collect()
}

/// Puts the program into a jail. Called by the only thread there is, with the signals blocked that the program reads.
///
/// # Errors
/// The step that the host refused. Nothing is left of what was done before, but a process that was on its way inside must end.
pub fn enter(plan: &Plan, mode: Mode) -> Result<Side, JailError> {
    let privileged = ids::privileged().map_err(at("cannot read the process's capabilities"))?;
    let owner = plan.owner.resolve(privileged)?;
    let outside = namespaces().map_err(at("cannot read the process's namespaces"))?;
    let directory = std::env::current_dir().map_err(at("cannot find the working directory"))?;
    let outer = std::process::id();
    environment::forget();
    // A signal from here on waits for whoever clears away.
    let begun = outer::Begun::new()?;
    let group = group::Group::make(&plan.limits, outer)?;
    if owner.is_none() {
        ids::unshare_users()?;
    }
    kernel::unshare(libc::CLONE_NEWPID).map_err(at("cannot make a process namespace"))?;
    let Some(first) = begun.fork()? else { outer::first(begun, owner, mode) };
    let inner = match begun.fork() {
        Ok(inner) => inner,
        Err(e) => {
            begun.abandon(&[first]);
            return Err(e);
        }
    };
    let Some(inner) = inner else {
        // The outer process removes it.
        let group = group.map(ManuallyDrop::new);
        let place = Inside { plan, owner, directory };
        let places = begun.inside(|| place.settle(group.as_deref())).map_err(|e| e.within(plan))?;
        return Ok(Side::Inside(Jail { outer, outside, places }));
    };
    Ok(Side::Outside(begun.outside(first, inner, group, mode)?))
}

/// The way into the jail.
struct Inside<'a> {
    plan: &'a Plan,
    owner: Option<ids::Ids>,
    directory: PathBuf,
}

impl Inside<'_> {
    fn settle(&self, group: Option<&group::Group>) -> Result<Vec<Place>, JailError> {
        if let Some(group) = group {
            group.join()?;
        }
        environment::limit(self.plan.files.unwrap_or(FILES), self.plan.files.is_some())?;
        let network = if self.plan.host_network { 0 } else { libc::CLONE_NEWNET };
        root::namespaces(network)?;
        let proc = root::processes()?;
        let users = self.owner.map(|ids| ids::namespace(&proc, ids, ids)).transpose();
        let users = users.map_err(at("cannot make a user namespace"))?;
        let places = root::build(&self.plan.paths, &self.directory, self.owner, Some(&proc))?;
        if let Some(ids) = self.owner {
            ids::become_owner(ids, users.as_ref())?;
        }
        ids::drop_capabilities(0)?;
        // What it may know of itself (/proc/self/pagemap) it may know after the change of ids too.
        kernel::set_dumpable(true).map_err(at("cannot keep /proc/self"))?;
        Ok(places)
    }
}
