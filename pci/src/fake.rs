//! A board's interrupt sources and doorbells for tests: they remember what happened.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use device::{MsiMessage, MsiRoute};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{Doorbells, MsiSource};

/// Interrupt sources that deliver to a test.
#[derive(Default)]
pub struct FakeMsi {
    routes: Mutex<Vec<Arc<FakeRoute>>>,
}

struct FakeRoute {
    gsi: u32,
    event: EventFd,
    message: Mutex<Option<MsiMessage>>,
}

impl FakeMsi {
    /// Sources made so far.
    pub fn made(&self) -> usize {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What the guest's interrupt controller received since the last call.
    pub fn take(&self) -> Vec<MsiMessage> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let arrived = |r: &Arc<FakeRoute>| {
            let message = (*r.message.lock().unwrap_or_else(PoisonError::into_inner))?;
            r.event.read().is_ok().then_some(message)
        };
        routes.iter().filter_map(arrived).collect()
    }
}

impl MsiSource for FakeMsi {
    fn route(&self) -> io::Result<Arc<dyn MsiRoute>> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let gsi = 24 + routes.len() as u32;
        let route =
            Arc::new(FakeRoute { gsi, event: EventFd::new(EFD_NONBLOCK)?, message: Mutex::default() });
        routes.push(route.clone());
        Ok(route)
    }
}

impl MsiRoute for FakeRoute {
    fn gsi(&self) -> u32 {
        self.gsi
    }

    fn update(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = message;
        Ok(())
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}

/// Doorbells that a test rings itself.
#[derive(Default)]
pub struct FakeDoorbells {
    placed: Mutex<Vec<(u64, EventFd)>>,
}

impl FakeDoorbells {
    /// Addresses with a doorbell.
    pub fn addresses(&self) -> Vec<u64> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(a, _)| *a).collect()
    }

    /// Writes to an address; tells whether there was a doorbell.
    pub fn ring(&self, address: u64) -> bool {
        let placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.iter().find(|(a, _)| *a == address).is_some_and(|(_, e)| e.write(1).is_ok())
    }
}

impl Doorbells for FakeDoorbells {
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        if placed.iter().any(|(a, _)| *a == address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        placed.push((address, event.try_clone()?));
        Ok(())
    }

    fn remove(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let at = placed.iter().position(|(a, _)| *a == address).ok_or(io::ErrorKind::NotFound)?;
        placed.remove(at);
        Ok(())
    }
}
