//! The virtual machine monitor: options and wiring around the crates below.
//!
//! [`machine`] puts a machine together and takes it apart, [`control`] owns it, [`cli`] is the command line. Devices, tables, boot
//! protocols and the hypervisor live in crates of their own.

pub mod api_socket;
pub mod check_host;
pub mod cli;
pub mod confined;
pub mod control;
pub mod core_scheduling;
pub mod gate;
pub mod launcher;
pub mod logger;
pub mod machine;
pub mod paths;
pub mod ram;
pub mod ram_restore;
pub mod reports;
pub mod signals;
pub mod snapshot;
pub mod vcpus;
pub mod wait;

/// What [`gate`] is built of: `tests/models` has other ones there.
mod sync {
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
}

/// Compiled-in features, as `--version -v` and `vmm.ping` tell them.
pub const FEATURES: &[&str] = &["io_uring", "kvm"];
