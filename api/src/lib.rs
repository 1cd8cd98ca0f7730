//! How a running VMM is talked to: actions, the HTTP server and client that carry them, and the event monitor.
//!
//! [`action`] is the one list of what can be asked; routes, `ch-remote`'s commands and their help derive from it. Server threads
//! parse and enqueue ([`calls`]); only the control thread, which owns the machine, answers. Nothing here touches a machine.

pub mod action;
pub mod bodies;
pub mod calls;
pub mod confinement;
pub mod events;
pub mod http;
pub mod info;

pub use action::Action;
pub use calls::{Call, Caller, Inbox, Reply};
pub use confinement::VmmConfinement;
pub use events::Monitor;
pub use http::{client, server};
pub use info::{DeviceNode, PciDeviceInfo, Resource, VmInfo, VmState, VmmPing};
