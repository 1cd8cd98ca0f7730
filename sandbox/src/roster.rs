//! Who asked for the filters of which thread: the kernel knows that there are filters, not whose.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// By the kernel's numbers of threads; a thread's entry goes with it.
static ROSTER: Mutex<BTreeMap<i32, Vec<String>>> = Mutex::new(BTreeMap::new());

struct Entry(i32);

impl Drop for Entry {
    fn drop(&mut self) {
        ROSTER.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

thread_local! {
    static ENTRY: Entry = Entry({
        // SAFETY: no pointers; it cannot fail.
        unsafe { libc::gettid() }
    });
}

/// This thread has one more filter.
pub(crate) fn enter(asked_by: &str) {
    // A thread that is ending has no more use for an entry.
    let _ = ENTRY.try_with(|entry| {
        let mut roster = ROSTER.lock().unwrap_or_else(PoisonError::into_inner);
        roster.entry(entry.0).or_default().push(asked_by.to_owned());
    });
}

/// Who asked for the filters that a thread put on itself, the last one last; those that it was born with are its parents'.
pub fn asked_by(thread: i32) -> Vec<String> {
    ROSTER.lock().unwrap_or_else(PoisonError::into_inner).get(&thread).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_listed_while_it_lives() {
        let inside = std::thread::Builder::new().name("listed".into()).spawn(|| {
            enter("a part");
            enter("a device");
            // SAFETY: no pointers; it cannot fail.
            let thread = unsafe { libc::gettid() };
            (thread, asked_by(thread))
        });
        let (thread, names) = inside.unwrap().join().unwrap();
        assert_eq!(names, ["a part", "a device"]);
        assert_eq!(asked_by(thread), [""; 0]);
    }
}
