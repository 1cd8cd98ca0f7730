//! Snapshots as a whole, with real files.

mod machine;
mod round;
pub(crate) mod scratch;
