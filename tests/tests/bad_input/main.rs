//! Bad input gets a clear error, and nothing is lost.
//!
//! Each case runs the real program. [`bench::Bench`] checks what every refusal has in common: the exact messages, the exit status,
//! nothing on standard output, and nothing left behind or changed: no file, socket, tap, process or terminal setting.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may as well end there")]

mod api;
mod bench;
mod console;
mod damage;
mod disk;
mod files;
mod held;
mod host;
mod hostile;
mod hotplug;
mod impossible;
mod jail;
mod kernel;
mod life;
mod memory;
mod mutation;
mod namespace;
mod network;
mod options;
mod pmem;
mod restore;
mod restore_devices;
mod saved;
mod server;
mod snapshot;
mod socket;
mod streams;
mod vhost_user;
mod vsock;
