//! Snapshots as a whole, with real files.

mod alone;
mod damage;
mod demand;
mod folder;
mod machine;
mod round;
pub(crate) mod scratch;
