//! Threads that were there before a process was kept to paths. The kernel restricts a thread and those that it starts, so the others follow by
//! themselves, before they do anything more.

use std::sync::{Arc, Mutex, PoisonError};

use landlock::RulesetCreated;

use super::PathError;
use crate::call::{Call, Set, prctl};

/// System calls of whoever follows.
pub const FOLLOW: Set =
    &[prctl(&[libc::PR_SET_NO_NEW_PRIVS as u32]), Call::any(libc::SYS_landlock_restrict_self)];

/// The domains that a process has entered, one after another. None is ever left.
#[derive(Clone, Debug, Default)]
pub struct Trail(Arc<Mutex<Vec<RulesetCreated>>>);

impl Trail {
    pub(super) fn add(&self, entered: RulesetCreated) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entered);
    }

    /// A follower for a thread that has entered them all so far, or is started by one that has.
    pub fn follower(&self) -> Follower {
        let entered = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        Follower { trail: self.clone(), entered }
    }
}

/// How far a thread has come; by default one that has nobody to follow. A thread that it starts goes on with a copy.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    trail: Trail,
    entered: usize,
}

impl Follower {
    /// Has the calling thread enter what it has not entered.
    ///
    /// # Errors
    /// The host refuses; the thread must not go on as if it had.
    pub fn follow(&mut self) -> Result<(), PathError> {
        let trail = self.trail.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(next) = trail.get(self.entered) {
            next.try_clone().map_err(PathError::Copy)?.restrict_self().map_err(PathError::Kernel)?;
            self.entered += 1;
        }
        Ok(())
    }
}
