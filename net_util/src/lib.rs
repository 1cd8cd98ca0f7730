//! Taps: opening them, configuring the link, telling the kernel what the other side can take.
//!
//! A [`TapSet`] is one network interface with one file descriptor (a [`Tap`]) per queue pair. It is created under a
//! name that the kernel picks, created or attached to by name, or built from descriptors that the caller was handed.
//! Frames carry a `virtio_net_hdr` of [`VNET_HDR_LEN`] bytes in front and no packet information.
//!
//! This crate knows nothing of virtio: no features, no queues of descriptors, no guest memory.

pub mod calls;
mod error;
mod link;
mod mac;
mod name;
#[cfg(any(test, feature = "testing"))]
pub mod netns;
mod sys;
mod tap;
mod tap_set;
#[cfg(any(test, feature = "testing"))]
pub mod wire;

pub use error::Error;
pub use link::LinkConfig;
pub use mac::{MacAddr, ParseMacError};
pub use name::IfName;
pub use tap::{Offloads, TUN_PATH, Tap, VNET_HDR_LEN, check_tun};
pub use tap_set::{MAX_QUEUE_PAIRS, NAME_TEMPLATE, Origin, TapSet};
