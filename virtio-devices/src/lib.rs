//! Virtio devices, one file or folder each, and the PCI transport that carries them.
//!
//! A device implements [`device::Virtio`] and knows no registers; [`transport`] knows registers and no device.

pub mod block;
pub mod buffers;
pub mod console;
pub mod fs;
pub mod generic;
pub mod net;
pub mod pmem;
mod rate;
mod remote;
pub mod rng;
pub mod transport;
pub mod vsock;
