//! Doing two things at once, where one of them mostly waits in the kernel.

use std::thread::{Builder, scope};

/// Does `other` on a short-lived thread of that name while the caller does `own`; where the host has no thread left, one after the
/// other.
pub fn beside<O: Send, W>(name: &str, other: impl FnOnce() -> O + Send, own: impl FnOnce() -> W) -> (O, W) {
    // Taken by whoever gets to it: the thread, or the caller if there is none.
    let other = std::sync::Mutex::new(Some(other));
    let take = || other.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    scope(|scope| {
        let thread = Builder::new().name(name.to_owned()).spawn_scoped(scope, || take().map(|other| other()));
        let own = own();
        let answer = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => take().map(|other| other()),
        };
        (answer.expect("it is taken only once"), own)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_answers_come_back_and_both_ran_at_once() {
        let (tell, hear) = std::sync::mpsc::channel();
        let (a, b) = beside("other", move || tell.send(1).map(|()| 2), || hear.recv());
        assert_eq!((a, b), (Ok(2), Ok(1)));
    }

    #[test]
    fn a_panic_beside_is_the_callers() {
        let caught = std::panic::catch_unwind(|| beside("other", || panic!("here"), || 1));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"here"));
    }
}
