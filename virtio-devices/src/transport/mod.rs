//! How a virtio device reaches its driver: registers, interrupts and the life of its queues.

pub mod pci;

pub use pci::{TransportError, VirtioPci};
