//! The contracts between devices and the board they are plugged into.
//!
//! A device states what it needs as plain data ([`Needs`]); the board grants it ([`Grant`]) and remembers where everything went
//! ([`Placed`]). Register accesses arrive through a [`Bus`] and answer with an [`Effect`] that the board applies after the
//! device's locks are released. A virtio device implements [`Virtio`] and leaves registers to its host: the PCI transport, a
//! vhost-user server, or a test.
//!
//! Nothing here knows a hypervisor, a command line or a particular device, and no device knows the board's types.

pub mod aperture;
pub mod build;
pub mod bus;
pub mod calls;
pub mod fake;
pub mod grant;
pub mod hexadecimal;
pub mod irq;
pub mod launch;
pub mod limit;
pub mod mapping;
pub mod needs;
pub mod ram;
pub mod ready;
pub mod state;
pub mod table;
pub mod threads;
pub mod virtio;
pub mod worker;

pub use aperture::{Aperture, ApertureNeed};
pub use build::{Build, Built, Host, Kept, Naming};
pub use bus::{Bus, BusError, Space};
pub use calls::Calls;
pub use grant::{
    Counters, Device, DeviceError, Effect, Events, Grant, Placed, PlacedPci, Registers, Request,
};
pub use irq::{Line, MsiMessage, MsiRoute, Vector};
pub use launch::Launcher;
pub use mapping::{MapMode, Mapping};
pub use needs::{
    BarKind, BarNeed, Capability, DoorbellNeed, LineNeed, MsixNeed, Needs, PciIdentity, PciNeeds, Region,
    Span, WindowNeed,
};
pub use ram::Ram;
pub use ready::ready;
pub use state::{Node, State, StateError};
pub use table::{TableEntry, TableSink};
pub use threads::Threads;
pub use virtio::{DriverLink, Ledger, LiveQueue, Virtio, VirtioGrant, VirtioKind};
pub use worker::{Attached, Task, Watch, Worker, Workers};
