//! How a front end is met: at a socket of ours, to which it comes, or at one of its, to which we go.

use std::path::{Path, PathBuf};

use spec::Refusal;
use terminal::{Listener, socket};

/// See the module.
#[derive(Debug)]
pub enum Door {
    /// Front ends come here.
    Ours(Listener),
    /// Here a front end listens, or will.
    Theirs(PathBuf),
}

impl Door {
    /// Listens at `path`, where a socket that nobody listens on any more is replaced; or is to go there, as a `client`, whenever no front
    /// end is being served. `what` is for messages.
    ///
    /// # Errors
    /// Somebody listens there already, no socket can be there, or the host refused.
    pub fn open(what: &str, path: &Path, client: bool) -> Result<Door, Refusal> {
        let outer = format!("cannot serve {what}");
        if !client {
            return Listener::bind(path).map(Door::Ours).map_err(|e| Refusal::host(outer, e));
        }
        let failed = |e| Refusal::invalid(format!("cannot connect to {}", path.display())).because(e);
        socket::check_path(path).map_err(|e| failed(e).within(outer))?;
        Ok(Door::Theirs(path.to_owned()))
    }
}
