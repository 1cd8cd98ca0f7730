//! Disk images and the engines that read and write them.
//!
//! An [`Image`] is a raw file or a block device, opened once, locked against other users for as long as it lives, and
//! described by plain figures: size, block sizes, whether holes can be punched. An [`Engine`] moves bytes between
//! an image and memory that somebody else owns; there is one engine per queue, and engines of one image know nothing
//! of each other.
//!
//! What this crate never does: look into guest memory, know of virtio, or guess that an image is anything but raw. A
//! format it recognises and does not support is refused, never read as if it were raw.

pub mod calls;
mod direct;
mod engine;
mod error;
mod format;
mod geometry;
mod image;
mod lock;
mod map;
mod qcow2;
mod storage;
mod vectored;
mod vhd;
mod vhdx;
mod vmdk;

pub use direct::Alignment;
pub use engine::{Choice, Engine, MAX_DEPTH, MAX_REQUEST_BYTES, Refused, aio_available, io_uring_available};
pub use error::Error;
pub use format::Format;
pub use geometry::{Sparse, Topology};
pub use image::{Forbidden, Image, Options, Type};
pub use lock::Granularity;
pub use storage::{Access, Storage};
pub use vectored::Segment;

/// The unit in which capacities and request positions are counted, in bytes (virtio 1.3, 5.2.4).
pub const SECTOR: u64 = 512;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
