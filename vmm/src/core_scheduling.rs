//! Core scheduling: which threads may share a physical core with a vCPU (Linux `Documentation/admin-guide/hw-vuln/core-scheduling`).
//!
//! Threads with the same cookie may run on sibling hyper-threads at the same time, others may not. Hosts without hyper-threads or
//! without the feature answer with an error that means "nothing to protect from".

use std::io;
use std::sync::{Arc, OnceLock};

use catalog::cpus::CoreScheduling;
use sandbox::{Call, call};

const PR_SCHED_CORE: libc::c_int = 62;
const CREATE: libc::c_ulong = 1;
const SHARE_FROM: libc::c_ulong = 3;
/// The scope of a call: one thread.
const THREAD: libc::c_ulong = 0;

/// The system call by which a thread joins.
pub const JOIN: Call = call::prctl(&[PR_SCHED_CORE as u32]);

/// What a vCPU's thread does about its cookie.
#[derive(Clone)]
pub struct Cookie {
    mode: CoreScheduling,
    first: Arc<OnceLock<libc::pid_t>>,
}

impl Cookie {
    /// The cookie of one machine.
    pub fn new(mode: CoreScheduling) -> Self {
        Cookie { mode, first: Arc::default() }
    }

    /// Takes a cookie for the calling thread: the machine's, its own, or none.
    pub fn join(&self) {
        let result = match self.mode {
            CoreScheduling::Off => Ok(()),
            CoreScheduling::Vcpu => prctl(CREATE, 0),
            CoreScheduling::Vm => {
                let mut created = Ok(());
                let first = *self.first.get_or_init(|| {
                    created = prctl(CREATE, 0);
                    // SAFETY: gettid has no preconditions.
                    unsafe { libc::gettid() }
                });
                // SAFETY: as above.
                if first == unsafe { libc::gettid() } { created } else { prctl(SHARE_FROM, first) }
            }
        };
        if let Err(e) = result {
            log::debug!("no core scheduling on this host: {e}");
        }
    }
}

fn prctl(command: libc::c_ulong, pid: libc::pid_t) -> io::Result<()> {
    // SAFETY: these commands take integers only and change nothing but the calling thread's cookie.
    if unsafe { libc::prctl(PR_SCHED_CORE, command, pid, THREAD, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
