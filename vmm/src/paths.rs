//! Keeping the process to the paths of its machine (`--landlock`).
//!
//! The paths come from the machine's description. What a later question brings is checked against them before anything is opened, so that
//! whoever asks is told which rule is missing.

use catalog::VmSpec;
use sandbox::paths::Domain;
use sandbox::{HostPath, Use};
use spec::{Kind, Refusal};

/// What is read whatever the machine is: where random numbers come from, and by what a snapshot finds the pages that hold anything.
const OF_EVERY_PROCESS: [&str; 4] = ["/dev/random", "/dev/urandom", "/proc/self/maps", "/proc/self/pagemap"];

/// The process's domains, all of which hold.
#[derive(Debug, Default)]
pub struct Confinement {
    /// What the process uses whatever the machine is.
    own: Vec<HostPath>,
    domains: Vec<Domain>,
}

impl Confinement {
    /// Nothing is confined yet; `own` are paths that the process uses itself.
    pub fn new(own: Vec<HostPath>) -> Self {
        Confinement { own, domains: Vec::new() }
    }

    /// Keeps the calling thread, and those that it starts, to the paths of this machine if it is to be, and `more`. It lasts until the
    /// process ends.
    ///
    /// # Errors
    /// A path that is not there, or a kernel that cannot do it: the machine is not to be run.
    pub fn enter(&mut self, spec: &VmSpec, more: Vec<HostPath>) -> Result<(), Refusal> {
        if !spec.landlock_enable && self.domains.is_empty() {
            return Ok(());
        }
        let mut paths = [more, spec.paths()?].concat();
        // What an earlier machine brought about stays.
        self.check(&paths)?;
        if !spec.landlock_enable {
            return Ok(());
        }
        paths.extend(self.own.iter().cloned());
        paths.extend(OF_EVERY_PROCESS.map(|path| HostPath::new(path, Use::Read)));
        let domain =
            Domain::enter(&paths).map_err(|e| Refusal::host("Cannot confine the process by Landlock", e))?;
        self.domains.push(domain);
        Ok(())
    }

    /// Refuses paths that could not be opened.
    ///
    /// # Errors
    /// The first of them, and what would allow it.
    pub fn check(&self, paths: &[HostPath]) -> Result<(), Refusal> {
        let outside = paths.iter().find(|path| self.domains.iter().any(|domain| !domain.covers(path)));
        let Some(HostPath { path, used }) = outside else { return Ok(()) };
        let (path, access) = match used {
            Use::Read => (path.clone(), "r"),
            Use::Listen => (path.parent().unwrap_or(path).to_owned(), "w"),
            Use::Write | Use::Output => (path.clone(), "w"),
            Use::ReadWrite => (path.clone(), "rw"),
        };
        let path = path.display();
        Err(Refusal::new(
            Kind::Invalid,
            format!(
                "{path} is outside of what Landlock allows this process: it would need --landlock-rules path={path},access={access}"
            ),
        ))
    }
}
