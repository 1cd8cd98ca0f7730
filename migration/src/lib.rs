//! A machine in files: the directory of a snapshot, guest memory in a sparse file, and the ways back into memory.
//!
//! What a state means is its device's business ([`device::state`]); here are the container, its files and its checks. Nothing here
//! knows a hypervisor or a particular device. Everything that is read is untrusted.
//!
//! [`Directory`] writes a snapshot, [`Source`] reads one. Its files are `config.json`, the machine as it was configured; `memory-ranges`, the
//! ranges of guest memory one after the other, with holes where it holds zeros; and `state.json`, which says what the others have to be, holds
//! the states of devices, and comes last.

mod backing;
pub mod calls;
mod checksum;
mod copy;
mod directory;
mod error;
mod extents;
mod files;
mod manifest;
mod mapping;
mod pager;
mod presence;
mod progress;
mod source;
#[cfg(test)]
mod tests;
mod userfault;
mod write;

pub use backing::Backing;
pub use directory::{Directory, Written};
pub use error::Error;
pub use files::{CONFIG, MEMORY, STATE};
pub use manifest::TEXT_LIMIT;
pub use pager::Pager;
pub use progress::Progress;
pub use source::Source;
pub use userfault::DEVICE as USERFAULT_DEVICE;
pub use write::Memory;

/// What memory is made of in a snapshot, in bytes; a multiple of it on hosts with larger pages.
const PAGE: u64 = 4096;
