//! Virtio devices and their drivers in two processes, with a socket between them.
//!
//! [`front`] is a device whose rings another process serves. The rest is a host of devices: each is served over a socket to a front end
//! in another process, which runs the guest.
//!
//! Written from the vhost-user protocol (QEMU, `docs/interop/vhost-user.rst`). A [`Server`] has a thread that talks to one front end
//! after the other; the device ([`device::Virtio`]) serves the rings on threads of its own, as it does under the PCI transport.
//!
//! ```text
//!   accept ─► features, memory, rings ─► SET_VRING_KICK + ENABLE: start_queue ⇄ GET_VRING_BASE: stop_queue ─► hang-up: reset ─┐
//!     ▲                                                                                                                      │
//!     └──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The front end is not trusted: what it says is checked, what it sends is bounded, memory that it takes away under our feet
//! ([`fault`]) ends its connection and nothing else. Its own guest's memory is its own business.
//!
//! What is not offered: packed rings, logging of dirty pages, postcopy, polled rings, an IOMMU.

pub mod calls;
mod channel;
pub mod daemon;
mod door;
mod error;
mod fault;
pub mod front;
mod inflight;
mod link;
mod memory;
mod replay;
mod ring;
mod server;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
mod wire;

pub use door::Door;
pub use error::PeerError;
pub use front::BackError;
pub use server::Server;
pub use wire::MAX_QUEUES;
