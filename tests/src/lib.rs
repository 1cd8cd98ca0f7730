//! What tests of the whole share: starting the programs, talking to them, and leaving nothing behind.
//!
//! The tests themselves are in `tests/tests/`, a file or a directory a subject.

pub mod ask;
pub mod bounds;
pub mod cpio;
pub mod daemon;
pub mod failing;
pub mod functions;
pub mod held;
pub mod image;
pub mod innocent;
pub mod jailed;
pub mod limits;
pub mod linux;
pub mod living;
pub mod outside;
pub mod permissions;
pub mod place;
pub mod probe;
pub mod programs;
pub mod promised;
pub mod remote;
pub mod scratch;
pub mod small;
pub mod stock;
pub mod storage_daemon;
pub mod tap;
pub mod terminal;
pub mod virtiofsd;
pub mod wire;
