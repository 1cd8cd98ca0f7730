//! From a specification to a device.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use sandbox::HostPath;
use spec::{Facts, PciCommon, Refusal, Spec};

use crate::{Calls, Device, Launcher, Virtio};

/// How a device without a name given by the user is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// There is at most one; this is its name, such as `__rng`.
    Single(&'static str),
    /// A counter shared by all kinds follows: `disk` makes `_disk0`.
    Counted(&'static str),
}

/// What a specification turned into.
pub enum Built {
    /// A virtio device, to be attached by the board's transport.
    Virtio(Box<dyn Virtio>),
    /// A device with registers of its own.
    Device(Box<dyn Device>),
    /// Nothing: the device is switched off.
    Nothing,
}

/// A specification that the board can turn into a device.
pub trait Build: Spec {
    /// Its automatic name.
    const NAMING: Naming;

    /// The properties, by their names in JSON, that may have other values when a saved machine is restored: those that the guest
    /// does not see, or is told of.
    const REPLACEABLE: &'static [&'static str] = &[];

    /// What such devices ask of the kernel.
    const CALLS: Calls = Calls::NONE;

    /// Naming and placement, for PCI devices.
    fn common(&self) -> Option<&PciCommon> {
        None
    }

    /// The same, to write the automatic name back.
    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        None
    }

    /// Whether another process works on guest memory for this device: such memory must be shared, and all there.
    fn shares_memory(&self) -> bool {
        false
    }

    /// Takes descriptors that came with a request for this device, in their order. A device that has no use for them closes them.
    ///
    /// # Errors
    /// They do not fit what was described.
    fn adopt(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), Refusal> {
        drop(descriptors);
        Ok(())
    }

    /// Takes the numbers of descriptors out of the description, for a client that sends the descriptors with a request.
    fn lend(&mut self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Opens what can be had only before the process leaves the host behind, such as taps, for [`Build::build`] to find.
    ///
    /// # Errors
    /// What the host refused.
    fn ahead(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    /// The paths that [`Build::build`] opens, for those who keep the process to them.
    fn paths(&self) -> Vec<HostPath> {
        Vec::new()
    }

    /// Meets the host: opens files, taps, sockets. What the host chose (a tap's name, a MAC, a terminal's path) is written back, so
    /// that `vm.info` shows it and a reboot finds it again.
    ///
    /// # Errors
    /// What the host refused, naming the file or interface.
    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal>;
}

/// What a device may use while it is built.
pub struct Host<'a> {
    /// The device's name.
    pub id: &'a str,
    /// The machine as a whole.
    pub facts: &'a Facts,
    /// What outlives a reboot.
    pub kept: &'a Kept,
}

/// Host resources that stay the same across reboots of one machine: terminals, taps. Emptied when the machine is shut down.
#[derive(Default)]
pub struct Kept {
    resources: Mutex<HashMap<String, Box<dyn Any + Send>>>,
    launcher: Option<Arc<dyn Launcher>>,
}

impl Kept {
    /// Nothing is kept yet, and programs can be started.
    pub fn with_launcher(launcher: Option<Arc<dyn Launcher>>) -> Self {
        Kept { launcher, ..Kept::default() }
    }

    /// Who starts programs, if anybody does.
    pub fn launcher(&self) -> Option<&Arc<dyn Launcher>> {
        self.launcher.as_ref()
    }

    /// The resource of this name, which is that of its device: the one opened before, or a new one.
    ///
    /// # Errors
    /// What opening it answered.
    pub fn keep<T: Clone + Send + 'static, E>(
        &self,
        name: &str,
        open: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut kept = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resource) = kept.get(name).and_then(|r| r.downcast_ref::<T>()) {
            return Ok(resource.clone());
        }
        let resource = open()?;
        kept.insert(name.to_owned(), Box::new(resource.clone()));
        Ok(resource)
    }

    /// The resource of this name, if there is one of this type.
    pub fn find<T: Clone + Send + 'static>(&self, name: &str) -> Option<T> {
        let kept = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(name)?.downcast_ref().cloned()
    }

    /// Lets go of one resource.
    pub fn forget(&self, name: &str) {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_opened_once_until_cleared() {
        let kept = Kept::default();
        let open = |n: u32| kept.keep("__console", || Ok::<_, ()>(n));
        assert_eq!(open(1), Ok(1));
        assert_eq!(open(2), Ok(1));
        assert_eq!(
            (kept.find("__console"), kept.find::<u8>("__console"), kept.find::<u32>("x")),
            (Some(1u32), None, None)
        );
        kept.forget("_net0");
        assert_eq!(open(2), Ok(1));
        kept.forget("__console");
        assert_eq!(open(3), Ok(3));
        kept.clear();
        assert_eq!(open(4), Ok(4));
    }
}
