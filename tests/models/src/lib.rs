//! Parts of the VMM whose threads wait for each other, to be run in every order that there is: loom takes the place of the locks.
//!
//! A part is the very source that is shipped, which takes its locks from `crate::sync`. The tests are in `tests/`.

mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
}

/// Where a vCPU's thread stands still.
#[path = "../../../vmm/src/gate.rs"]
pub mod gate;
