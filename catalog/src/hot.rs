//! Devices that come and go while a machine runs: what derives from the list of devices for them.
//!
//! [`HOT`](crate::machine::HOT) has an entry for each kind; from it come the `vm.add-…` questions of the API and the commands of
//! `ch-remote`.

use std::fmt::Debug;
use std::os::fd::{OwnedFd, RawFd};

use device::Build;
use serde::de::{DeserializeOwned, Error, Unexpected};
use spec::{Refusal, Spec};

use crate::{Flag, Plug, VmSpec};

/// A kind of device that can be added to a running machine.
pub struct Hot {
    /// The flag that describes one; its name without dashes is part of the question's.
    pub flag: fn() -> Flag,
    /// The same name.
    pub name: &'static str,
    /// Reads a device from a request's body.
    pub from_json: fn(&[u8]) -> Result<Addition, serde_json::Error>,
    /// Reads a device as written after the flag.
    pub from_text: fn(&str) -> Result<Addition, Refusal>,
}

/// A device to be added.
pub type Addition = Box<dyn Addable>;

/// Finds the last device of one kind in a machine's description.
pub type Last = fn(&mut VmSpec) -> Option<&mut dyn Plug>;

/// The description of a device that can be added to a running machine.
pub trait Addable: Plug + Debug + Send {
    /// Adds it to a machine's description, at the end of its list, and tells how to find it there.
    fn add(self: Box<Self>, spec: &mut VmSpec) -> Last;

    /// See [`Build::adopt`].
    ///
    /// # Errors
    /// They do not fit the description.
    fn adopt(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), Refusal>;

    /// See [`Build::lend`].
    fn lend(&mut self) -> Vec<RawFd>;

    /// The body of a request.
    ///
    /// # Errors
    /// None in practice: descriptions are plain values.
    fn to_json(&self) -> Result<String, serde_json::Error>;
}

/// A description that has a list in [`VmSpec`].
pub(crate) trait InList: Sized {
    fn list(spec: &mut VmSpec) -> &mut Option<Vec<Self>>;
}

impl<T: Build + Plug + InList + Debug + Send + 'static> Addable for T {
    fn add(self: Box<Self>, spec: &mut VmSpec) -> Last {
        T::list(spec).get_or_insert_default().push(*self);
        |spec| T::list(spec).as_mut()?.last_mut().map(|last| last as &mut dyn Plug)
    }

    fn adopt(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), Refusal> {
        Build::adopt(self, descriptors)
    }

    fn lend(&mut self) -> Vec<RawFd> {
        Build::lend(self)
    }

    fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

impl Hot {
    /// The entry of a description.
    pub(crate) const fn of<T: Build + Plug + InList + Debug + Send + 'static>() -> Self {
        Hot {
            flag: || Flag::of::<T>(true),
            name: T::FLAG,
            from_json: |text| Ok(Box::new(object::<T>(text)?)),
            from_text: |text| Ok(Box::new(<T as Spec>::parse(text)?)),
        }
    }
}

/// Reads a JSON object. Derived deserializers also take the fields' values in a list, and an empty one for everything.
///
/// # Errors
/// It is no object, or not one of this form.
pub fn object<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(Error::invalid_type(Unexpected::Seq, &"a JSON object"));
    }
    serde_json::from_slice(text)
}

/// Takes the device with this name out of a list; a list that becomes empty goes too.
pub(crate) fn take<T: Plug>(list: &mut Option<Vec<T>>, id: &str) -> bool {
    let Some(devices) = list else { return false };
    let named = |device: &T| device.common().and_then(|common| common.id.as_deref()) == Some(id);
    let Some(at) = devices.iter().position(named) else { return false };
    devices.remove(at);
    if devices.is_empty() {
        *list = None;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::HOT;

    fn hot(name: &str) -> &'static Hot {
        HOT.iter().find(|hot| hot.name == name).unwrap()
    }

    #[test]
    fn a_device_is_added_at_the_end_of_its_list_and_taken_out_by_name() {
        let mut spec = VmSpec::default();
        for id in ["a", "b"] {
            let disk = (hot("disk").from_text)(&format!("path=/x,id={id}")).unwrap();
            let last = disk.add(&mut spec);
            assert_eq!(last(&mut spec).unwrap().common().unwrap().id.as_deref(), Some(id));
        }
        let net = (hot("net").from_json)(br#"{"id":"n"}"#).unwrap();
        assert!(net.hot());
        net.add(&mut spec);
        assert_eq!(spec.disks.as_ref().unwrap().len(), 2);
        assert!(spec.remove("a") && !spec.remove("a") && !spec.remove("__rng"));
        assert!(spec.remove("n") && spec.net.is_none());
        assert_eq!(spec.disks.as_ref().unwrap()[0].pci.id.as_deref(), Some("b"));
        let hot: Vec<_> = spec.devices().iter().filter(|d| d.hot()).map(|d| d.flag()).collect();
        assert_eq!(hot, ["disk"]);
    }

    #[test]
    fn what_is_written_after_a_flag_becomes_the_same_as_json() {
        let disk = (hot("disk").from_text)("path=/x,readonly=on,pci_segment=1").unwrap();
        let again = (hot("disk").from_json)(disk.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!(format!("{disk:?}"), format!("{again:?}"));
        assert!((hot("disk").from_json)(b"[]").is_err());
        assert!((hot("disk").from_text)("nope=1").is_err());
        let mut net = (hot("net").from_text)("fd=[7,8],num_queues=4").unwrap();
        assert_eq!(net.lend(), [7, 8]);
        assert!(!net.to_json().unwrap().contains("fds"));
    }
}
