//! A device's specification, whatever its type.

use std::os::fd::RawFd;

use device::{Build, Built, Host, Naming};
use sandbox::HostPath;
use spec::{Facts, Part, PciCommon, Refusal, Spec};

/// What the board does with every device's specification alike.
pub trait Plug {
    /// The flag without dashes, for messages.
    fn flag(&self) -> &'static str;
    /// Whether such a device can come and go while the machine runs.
    fn hot(&self) -> bool;
    /// Whether there can be only one of its kind.
    fn alone(&self) -> bool;
    /// See [`Build::NAMING`].
    fn naming(&self) -> Naming;
    /// See [`Build::common`].
    fn common(&self) -> Option<&PciCommon>;
    /// See [`Build::common_mut`].
    fn common_mut(&mut self) -> Option<&mut PciCommon>;
    /// See [`Build::shares_memory`].
    fn shares_memory(&self) -> bool;
    /// Everything about this device that can be checked without the host.
    ///
    /// # Errors
    /// A key that is not supported yet, or what [`Spec::check`] refuses.
    fn check(&self, facts: &Facts) -> Result<(), Refusal>;
    /// See [`Build::paths`].
    fn paths(&self) -> Vec<HostPath>;
    /// See [`Build::lend`].
    fn descriptors(&mut self) -> Vec<RawFd>;
    /// See [`Build::ahead`].
    ///
    /// # Errors
    /// What the host refused.
    fn ahead(&mut self) -> Result<(), Refusal>;
    /// See [`Build::build`].
    ///
    /// # Errors
    /// What the host refused.
    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal>;
}

/// A specification that is in the list of devices.
pub(crate) trait Listed {
    /// See [`Plug::hot`].
    const HOT: bool;
    /// See [`Plug::alone`].
    const ALONE: bool;
}

impl<T: Build + Listed> Plug for T {
    fn flag(&self) -> &'static str {
        T::FLAG
    }

    fn hot(&self) -> bool {
        T::HOT
    }

    fn alone(&self) -> bool {
        T::ALONE
    }

    fn naming(&self) -> Naming {
        T::NAMING
    }

    fn common(&self) -> Option<&PciCommon> {
        Build::common(self)
    }

    fn common_mut(&mut self) -> Option<&mut PciCommon> {
        Build::common_mut(self)
    }

    fn shares_memory(&self) -> bool {
        Build::shares_memory(self)
    }

    fn check(&self, facts: &Facts) -> Result<(), Refusal> {
        if let Some(key) = Part::unsupported(self) {
            return Err(Refusal::unsupported(format!("--{} {key}", T::FLAG)));
        }
        if let Some(common) = Build::common(self) {
            common.check(facts)?;
        }
        Spec::check(self, facts)
    }

    fn paths(&self) -> Vec<HostPath> {
        Build::paths(self)
    }

    fn descriptors(&mut self) -> Vec<RawFd> {
        Build::lend(self)
    }

    fn ahead(&mut self) -> Result<(), Refusal> {
        Build::ahead(self)
    }

    fn build(&mut self, host: &Host<'_>) -> Result<Built, Refusal> {
        Build::build(self, host)
    }
}
