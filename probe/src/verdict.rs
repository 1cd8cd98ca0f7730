//! What becomes of a test, and the macros that end one early.

use crate::text::Text;

/// Why there is no `PASS`.
pub(crate) enum Stop {
    Fail(Text),
    /// The machine lacks what the test is about.
    Skip(Text),
}

pub(crate) type Outcome = Result<Text, Stop>;

/// Ends the test as failed.
macro_rules! fail {
    ($($arg:tt)*) => { return Err($crate::verdict::Stop::Fail(text!($($arg)*))) };
}

/// Ends the test as not applicable.
macro_rules! skip {
    ($($arg:tt)*) => { return Err($crate::verdict::Stop::Skip(text!($($arg)*))) };
}

/// Ends the test as failed unless the condition holds.
macro_rules! check {
    ($condition:expr, $($arg:tt)*) => { if !$condition { fail!($($arg)*) } };
}
