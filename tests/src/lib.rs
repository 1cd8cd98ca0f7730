//! What tests of the whole share: starting the programs, talking to them, and leaving nothing behind.
//!
//! The tests themselves are in `tests/tests/`, a file a subject.
