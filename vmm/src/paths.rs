//! Keeping the process to the paths of its machine (`--landlock`), and knowing what a jail (`--jail`) has.
//!
//! The paths come from the machine's description. What a later question brings is checked against them before anything is opened, so that
//! whoever asks is told which rule is missing.

use std::path::Path;
use std::sync::Arc;

use catalog::VmSpec;
use sandbox::jail::Jail;
use sandbox::paths::{Domain, Trail};
use sandbox::{HostPath, Use};
use spec::{Kind, Refusal};
use virtio_devices::net::TUN_PATH;

/// What the kernel tells the process of itself, which is read whatever the machine is.
const ITSELF: &str = "/proc/self";

/// The process's domains, all of which hold.
#[derive(Debug, Default)]
pub struct Confinement {
    /// What the process uses whatever the machine is.
    own: Vec<HostPath>,
    jail: Option<Arc<Jail>>,
    domains: Vec<Domain>,
    /// For threads that are there already.
    trail: Trail,
}

impl Confinement {
    /// Nothing is confined yet; `own` are paths that the process uses itself. Threads that are there already follow the `trail`.
    pub fn new(own: Vec<HostPath>, jail: Option<Arc<Jail>>, trail: Trail) -> Self {
        Confinement { own, jail, domains: Vec::new(), trail }
    }

    /// How many domains there are, and how many rules they have together.
    pub fn domains(&self) -> (usize, usize) {
        (self.domains.len(), self.domains.iter().map(Domain::rules).sum())
    }

    /// Keeps the calling thread, and those that it starts, to the paths of this machine if it is to be, and `more`. It lasts until the
    /// process ends.
    ///
    /// # Errors
    /// A path that is not there, or a kernel that cannot do it: the machine is not to be run.
    pub fn enter(&mut self, spec: &VmSpec, more: Vec<HostPath>) -> Result<(), Refusal> {
        if !spec.landlock_enable && self.domains.is_empty() && self.jail.is_none() {
            return Ok(());
        }
        let mut paths = [more, spec.paths()?].concat();
        // What an earlier machine brought about stays.
        self.check(&paths)?;
        if !spec.landlock_enable {
            return Ok(());
        }
        paths.extend(self.own.iter().cloned());
        paths.push(HostPath::new(ITSELF, Use::Read));
        let domain = Domain::enter(&paths, &self.trail)
            .map_err(|e| Refusal::host("Cannot confine the process by Landlock", e))?;
        self.domains.push(domain);
        Ok(())
    }

    /// Refuses paths that could not be opened.
    ///
    /// # Errors
    /// The first of them, and what would allow it.
    pub fn check(&self, paths: &[HostPath]) -> Result<(), Refusal> {
        if let Some(jail) = &self.jail
            && let Some(path) = paths.iter().find(|path| !jail.covers(path))
        {
            return Err(not_in_jail(path));
        }
        let outside = paths.iter().find(|path| self.domains.iter().any(|domain| !domain.covers(path)));
        outside.map_or(Ok(()), |path| Err(missing(path, "outside of what Landlock allows this process")))
    }
}

/// Refuses a path, and says which rule would allow it.
fn missing(wanted: &HostPath, what: &str) -> Refusal {
    let access = match wanted.used {
        Use::Read | Use::Connect => "r",
        Use::Write | Use::Output | Use::Listen => "w",
        Use::ReadWrite => "rw",
    };
    let (path, place) = (wanted.path.display(), wanted.place().display());
    let text = format!("{path} is {what}: it would need --landlock-rules path={place},access={access}");
    Refusal::new(Kind::Invalid, text)
}

fn not_in_jail(path: &HostPath) -> Refusal {
    if path.path == Path::new(TUN_PATH) {
        let text = "no tap can be opened in the jail: send it along with the request, as a descriptor";
        return Refusal::new(Kind::Invalid, text);
    }
    missing(path, "not in the jail")
}
