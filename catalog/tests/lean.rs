//! What flags cost a start that does not have them: nothing, since its command line is read on the way to the guest's first instruction.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use catalog::VmSpec;
use catalog::flags::Purpose;
use clap::Command;

/// Counts what the thread asks for.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all of it is the system's allocator; counting allocates nothing, and the counter has nothing that would be dropped.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promises are those that it wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; it came from there.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many pieces of memory the flags of a machine take for this line.
fn pieces(words: &[&str]) -> usize {
    let words: Vec<_> = words.iter().map(Into::into).collect();
    let command = Command::new("x");
    let before = COUNT.get();
    let command = VmSpec::add_flags(command, Purpose::Parsing(&words));
    let taken = COUNT.get() - before;
    assert_eq!(command.get_arguments().count(), words.len());
    taken
}

#[test]
fn a_flag_that_is_not_given_is_not_made() {
    assert_eq!(pieces(&[]), 0);
    assert_ne!(pieces(&["--kernel"]), 0);
    assert_ne!(pieces(&["--net", "--rtc", "--landlock"]), 0);
}
