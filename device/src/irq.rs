//! Interrupts as devices and the board's parts see them.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A level or edge input of the interrupt controller, wired at build time.
pub trait Line: Send + Sync {
    /// Raises and lowers the line once (edge).
    fn pulse(&self);

    /// Holds the line at a level until changed.
    fn set(&self, asserted: bool);
}

/// One MSI-X vector of a PCI function. Masked vectors remember the signal in the pending bit array.
pub trait Vector: Send + Sync {
    /// Signals the vector.
    fn signal(&self);

    /// An eventfd by which another process signals the vector without us; masking applies to it all the same.
    ///
    /// # Errors
    /// None could be had.
    fn event(&self) -> io::Result<EventFd>;
}

/// What a message-signalled interrupt writes, and where (PCI Local Bus 3.0 §6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// The address, within 0xfee00000-0xfeefffff on x86.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// A host interrupt source (GSI) with an eventfd; dropping it gives both back.
pub trait MsiRoute: Send + Sync {
    /// The number of the source.
    fn gsi(&self) -> u32;

    /// Sets the message that the source delivers; `None` masks it.
    ///
    /// # Errors
    /// What the hypervisor answered.
    fn update(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Writing to it delivers the message, from any process.
    fn event(&self) -> &EventFd;

    /// Delivers the message now.
    ///
    /// # Errors
    /// What the write to the eventfd answered.
    fn signal(&self) -> io::Result<()> {
        self.event().write(1)
    }
}
