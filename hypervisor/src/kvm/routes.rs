//! Interrupt routes: KVM's table from GSI to message, and an eventfd for each GSI.
//!
//! A route is *masked* when its eventfd is not bound to its GSI: what is signalled meanwhile stays in the eventfd's counter
//! (which makes it the pending bit) and is delivered on binding. The table itself changes only when a message does: masking
//! and unmasking with the same message, which guests do often, costs one cheap ioctl.
//!
//! GSIs below [`IOAPIC_PINS`] belong to the IOAPIC; KVM looks at their messages to know which vectors' EOIs to report.
//!
//! Lock order: the one mutex here is a leaf. It is never taken to signal.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::irq::{MsiMessage, MsiRoute};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_msi};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result, refused};

/// Pins of the IOAPIC, and first GSI of the MSIs.
pub(super) const IOAPIC_PINS: u32 = 24;
/// KVM's own limit on GSIs.
pub(super) const MAX_ROUTES: u32 = 4096;

/// The table and who holds which GSI.
pub(super) struct Routes {
    fd: Arc<VmFd>,
    /// GSIs are below this.
    limit: u32,
    /// Messages carry 32-bit destinations; see [`kvm_message`].
    wide_destinations: bool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// One element per GSI, as many as were ever needed.
    slots: Vec<Slot>,
    /// KVM's table is older than `slots`.
    stale: bool,
    /// Number of [`Routes::batch`]es under way: the table is not handed to KVM meanwhile.
    batches: u32,
    /// GSIs to be bound once the table is with KVM.
    to_bind: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    /// Held by a [`Route`].
    taken: bool,
    /// Last message; kept while masked.
    message: Option<MsiMessage>,
    /// The eventfd while it is to be bound, and whether KVM has it.
    event: Option<Arc<EventFd>>,
    bound: bool,
}

impl Routes {
    pub(super) fn new(fd: Arc<VmFd>, limit: u32, wide_destinations: bool) -> Self {
        Routes { fd, limit, wide_destinations, table: Mutex::default() }
    }

    /// The table is changed in steps that each leave it whole, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A route with a GSI of its own.
    pub(super) fn allocate(self: &Arc<Self>) -> Result<Route> {
        let event = new_event()?;
        let mut table = self.lock();
        let first = IOAPIC_PINS as usize;
        let free = table.slots.iter().skip(first).position(|slot| !slot.taken).map(|index| first + index);
        let gsi = free.unwrap_or_else(|| table.slots.len().max(first));
        let gsi = u32::try_from(gsi)
            .ok()
            .filter(|gsi| *gsi < self.limit)
            .ok_or(Error::RoutesExhausted(self.limit.saturating_sub(IOAPIC_PINS)))?;
        table.slot(gsi).taken = true;
        Ok(Route { routes: self.clone(), gsi, event })
    }

    /// The route of an IOAPIC pin.
    pub(super) fn take_pin(self: &Arc<Self>, pin: u32) -> Result<Route> {
        if pin >= IOAPIC_PINS {
            return Err(Error::NoSuchPin { pin, pins: IOAPIC_PINS });
        }
        let event = new_event()?;
        let mut table = self.lock();
        let slot = table.slot(pin);
        if slot.taken {
            return Err(refused("take an IOAPIC pin twice")(io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        slot.taken = true;
        Ok(Route { routes: self.clone(), gsi: pin, event })
    }

    /// See [`crate::Vm::batch_routes`].
    pub(super) fn batch(&self, change: &mut dyn FnMut()) -> io::Result<()> {
        /// Ends the batch even when `change` panics.
        struct End<'a>(&'a Routes);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.lock().batches -= 1;
            }
        }
        self.lock().batches += 1;
        let end = End(self);
        change();
        drop(end);
        self.apply(&mut self.lock())
    }

    /// Sends a message at once.
    pub(super) fn send(&self, message: MsiMessage) -> io::Result<()> {
        let message = self.kvm_message(message);
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // A count of 0 says that the guest has the vector blocked: as on hardware, that is no error.
        self.fd.signal_msi(msi)?;
        Ok(())
    }

    /// Sets or masks a route.
    fn update(&self, gsi: u32, event: &Arc<EventFd>, message: Option<MsiMessage>) -> io::Result<()> {
        let mut table = self.lock();
        let slot = table.slot(gsi);
        match message {
            Some(message) => {
                let changed = slot.message != Some(message);
                let bind = slot.event.is_none();
                slot.message = Some(message);
                if bind {
                    slot.event = Some(event.clone());
                    table.to_bind.push(gsi);
                }
                table.stale |= changed;
                self.apply(&mut table)
            }
            None => self.unbind(slot, gsi),
        }
    }

    /// Gives a GSI back. Its line stays in KVM's table until the next change: nothing can raise it.
    fn release(&self, gsi: u32) {
        let mut table = self.lock();
        let slot = table.slot(gsi);
        if let Err(error) = self.unbind(slot, gsi) {
            log::warn!("cannot unbind the interrupt route {gsi}: {error}");
        }
        // The pins' lines decide which EOIs cause exits, so they must not linger.
        let lingers = gsi < IOAPIC_PINS && slot.message.is_some();
        *slot = Slot::default();
        table.stale |= lingers;
        if let Err(error) = self.apply(&mut table) {
            log::warn!("cannot clear the interrupt route {gsi}: {error}");
        }
    }

    fn unbind(&self, slot: &mut Slot, gsi: u32) -> io::Result<()> {
        if let Some(event) = slot.event.take()
            && std::mem::take(&mut slot.bound)
        {
            self.fd.unregister_irqfd(&event, gsi)?;
        }
        Ok(())
    }

    /// Hands the table to KVM if it changed, then binds what waits for it.
    fn apply(&self, table: &mut Table) -> io::Result<()> {
        if table.batches > 0 {
            return Ok(());
        }
        if table.stale {
            let entries: Vec<_> = (0..)
                .zip(&table.slots)
                .filter_map(|(gsi, slot)| Some(self.entry(gsi, slot.message?)))
                .collect();
            let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| io::ErrorKind::OutOfMemory)?;
            self.fd.set_gsi_routing(&routing)?;
            table.stale = false;
        }
        while let Some(gsi) = table.to_bind.pop() {
            let slot = table.slot(gsi);
            // Masked again before the batch ended, or listed twice.
            let Some(event) = slot.event.as_ref().filter(|_| !slot.bound) else { continue };
            if let Err(error) = self.fd.register_irqfd(event, gsi) {
                slot.event = None;
                return Err(error.into());
            }
            slot.bound = true;
        }
        Ok(())
    }

    fn entry(&self, gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
        let message = self.kvm_message(message);
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
        entry.u.msi = kvm_irq_routing_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        entry
    }

    /// KVM wants destination bits above 7 in the upper half of the address; a guest that was offered
    /// `KVM_FEATURE_MSI_EXT_DEST_ID` writes bits 8 to 14 into address bits 5 to 11, which are otherwise 0.
    fn kvm_message(&self, message: MsiMessage) -> MsiMessage {
        const EXTENDED: u64 = 0xfe0;
        let extended = (message.address & EXTENDED) >> 5;
        if !self.wide_destinations || extended == 0 {
            return message;
        }
        MsiMessage { address: (message.address & !EXTENDED) | (extended << 40), data: message.data }
    }
}

impl Table {
    /// The slot of a GSI that was checked against the limit.
    fn slot(&mut self, gsi: u32) -> &mut Slot {
        let index = gsi as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        &mut self.slots[index]
    }
}

fn new_event() -> Result<Arc<EventFd>> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(refused("make an eventfd"))?;
    Ok(Arc::new(event))
}

/// A GSI with its eventfd; dropping it gives both back.
pub(super) struct Route {
    routes: Arc<Routes>,
    gsi: u32,
    event: Arc<EventFd>,
}

impl MsiRoute for Route {
    fn gsi(&self) -> u32 {
        self.gsi
    }

    fn update(&self, message: Option<MsiMessage>) -> io::Result<()> {
        self.routes.update(self.gsi, &self.event, message)
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        self.routes.release(self.gsi);
    }
}
