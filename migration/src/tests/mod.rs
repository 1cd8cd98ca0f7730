//! Snapshots as a whole, with real files.

mod demand;
mod machine;
mod round;
pub(crate) mod scratch;
