//! Where a vCPU's accesses go, and what their effects do.

use std::ops::ControlFlow;
use std::sync::Arc;

use device::limit::LogLimit;
use device::{Bus, Effect, Events, Request, guest_warn};
use hypervisor::Exits;
use pci::Segment;
use platform::ioapic::Ioapic;

use super::board::Board;

/// Shared by all vCPU threads; nothing here is locked.
pub(super) struct GuestExits {
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    segments: Vec<Arc<Segment>>,
    ioapic: Arc<Ioapic>,
    events: Arc<dyn Events>,
    unclaimed: LogLimit,
    ejects: LogLimit,
}

impl GuestExits {
    pub(super) fn new(board: &Board, events: Arc<dyn Events>) -> Self {
        GuestExits {
            ports: board.ports(),
            memory: board.memory(),
            segments: board.segments(),
            ioapic: board.ioapic(),
            events,
            unclaimed: LogLimit::new(),
            ejects: LogLimit::new(),
        }
    }

    /// Applies what a write asked for; the device's locks are released by now.
    fn apply(&self, effect: Effect) -> ControlFlow<()> {
        let request = match effect {
            Effect::None => return ControlFlow::Continue(()),
            Effect::Decode { segment } => {
                if let Some(segment) = self.segments.get(usize::from(segment)) {
                    segment.sync();
                }
                return ControlFlow::Continue(());
            }
            Effect::Eject { segment, slots } => {
                self.eject(segment, slots);
                return ControlFlow::Continue(());
            }
            Effect::Reset => Request::Reset,
            Effect::PowerOff => Request::PowerOff,
        };
        self.events.request(request);
        ControlFlow::Break(())
    }

    /// Hides what the guest gives back. The rest, closing files and ending threads, is the control thread's: waiting for it here
    /// could be waiting for a pause that waits for us.
    fn eject(&self, number: u16, slots: u32) {
        let hidden = self.segments.get(usize::from(number)).map_or(0, |segment| segment.eject(slots));
        if hidden != 0 {
            self.events.request(Request::Eject { segment: number, slots: hidden });
        }
        if hidden != slots {
            let ignored = slots & !hidden;
            guest_warn!(
                self.ejects,
                "eject of slots {ignored:#x} of PCI segment {number}: nothing there can leave"
            );
        }
    }

    fn unclaimed(&self, what: &str, address: u64, length: usize) {
        // Kernels look for devices that are not there as a matter of course.
        if log::log_enabled!(log::Level::Debug)
            && let Some(dropped) = self.unclaimed.pass()
        {
            log::debug!("nobody answers a {what} of {length} bytes at {address:#x} ({dropped} more)");
        }
    }
}

impl Exits for GuestExits {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        if !self.ports.read(u64::from(port), data) {
            self.unclaimed("port read", u64::from(port), data.len());
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) -> ControlFlow<()> {
        match self.ports.write(u64::from(port), data) {
            Some(effect) => self.apply(effect),
            None => {
                self.unclaimed("port write", u64::from(port), data.len());
                ControlFlow::Continue(())
            }
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if !self.memory.read(address, data) {
            self.unclaimed("read", address, data.len());
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) -> ControlFlow<()> {
        match self.memory.write(address, data) {
            Some(effect) => self.apply(effect),
            None => {
                self.unclaimed("write", address, data.len());
                ControlFlow::Continue(())
            }
        }
    }

    fn ioapic_eoi(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }
}
