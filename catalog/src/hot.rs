//! Devices that come and go while a machine runs: what derives from the list of devices for them.
//!
//! [`HOT`](crate::machine::HOT) has an entry for each kind; from it come the `vm.add-…` questions of the API and the commands of
//! `ch-remote`.

use std::fmt::Debug;
use std::os::fd::{OwnedFd, RawFd};

use device::Build;
use serde::de::{DeserializeOwned, Error, Unexpected};
use spec::{Kind, Refusal, Spec};

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
    /// Adds it to a machine's description, after others of its kind, and tells how to find it there.
    ///
    /// # Errors
    /// There is one already, and can only be one.
    fn add(self: Box<Self>, spec: &mut VmSpec) -> Result<Last, Refusal>;

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

/// A description that [`VmSpec`] has room for.
pub(crate) trait InMachine: Sized {
    /// Where those of its kind are.
    type Room: Room<Self>;

    /// The place.
    fn room(spec: &mut VmSpec) -> &mut Self::Room;
}

/// A place for descriptions of one kind.
pub(crate) trait Room<T> {
    /// Adds one; gives it back if there is no room.
    fn add(&mut self, device: T) -> Result<(), T>;

    /// The last one.
    fn last(&mut self) -> Option<&mut T>;
}

/// Any number.
impl<T> Room<T> for Option<Vec<T>> {
    fn add(&mut self, device: T) -> Result<(), T> {
        self.get_or_insert_default().push(device);
        Ok(())
    }

    fn last(&mut self) -> Option<&mut T> {
        self.as_mut()?.last_mut()
    }
}

/// At most one.
impl<T> Room<T> for Option<T> {
    fn add(&mut self, device: T) -> Result<(), T> {
        if self.is_some() {
            return Err(device);
        }
        *self = Some(device);
        Ok(())
    }

    fn last(&mut self) -> Option<&mut T> {
        self.as_mut()
    }
}

/// What there is to say when there can be only one.
pub fn too_many(flag: &str) -> Refusal {
    Refusal::new(Kind::Conflict, format!("Too many virtio-{flag} devices"))
}

impl<T: Build + Plug + InMachine + Debug + Send + 'static> Addable for T {
    fn add(self: Box<Self>, spec: &mut VmSpec) -> Result<Last, Refusal> {
        T::room(spec).add(*self).map_err(|_| too_many(T::FLAG))?;
        Ok(|spec| T::room(spec).last().map(|last| last as &mut dyn Plug))
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
    pub(crate) const fn of<T: Build + Plug + InMachine + Debug + Send + 'static>() -> Self {
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

/// Whether this is the device's name.
fn is_named(device: &impl Plug, id: &str) -> bool {
    device.common().and_then(|common| common.id.as_deref()) == Some(id)
}

/// Takes the only device of its kind out if this is its name.
pub(crate) fn take_only<T: Plug>(only: &mut Option<T>, id: &str) -> bool {
    only.take_if(|device| is_named(device, id)).is_some()
}

/// Takes the device with this name out of a list; a list that becomes empty goes too.
pub(crate) fn take<T: Plug>(list: &mut Option<Vec<T>>, id: &str) -> bool {
    let Some(devices) = list else { return false };
    let Some(at) = devices.iter().position(|device| is_named(device, id)) else { return false };
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
            let last = disk.add(&mut spec).unwrap();
            assert_eq!(last(&mut spec).unwrap().common().unwrap().id.as_deref(), Some(id));
        }
        let net = (hot("net").from_json)(br#"{"id":"n"}"#).unwrap();
        assert!(net.hot());
        net.add(&mut spec).unwrap();
        assert_eq!(spec.disks.as_ref().unwrap().len(), 2);
        assert!(spec.remove("a") && !spec.remove("a") && !spec.remove("__rng"));
        assert!(spec.remove("n") && spec.net.is_none());
        assert_eq!(spec.disks.as_ref().unwrap()[0].pci.id.as_deref(), Some("b"));
        let hot: Vec<_> = spec.devices().iter().filter(|d| d.hot()).map(|d| d.flag()).collect();
        assert_eq!(hot, ["disk"]);
    }

    #[test]
    fn there_is_one_of_some_kinds_at_most() {
        let mut spec = VmSpec::default();
        let vsock = |id| (hot("vsock").from_text)(&format!("cid=3,socket=/s,id={id}")).unwrap();
        let last = vsock("v").add(&mut spec).unwrap();
        assert_eq!(last(&mut spec).unwrap().common().unwrap().id.as_deref(), Some("v"));
        let refusal = vsock("w").add(&mut spec).err().unwrap();
        assert_eq!(
            (refusal.kind(), refusal.to_string().as_str()),
            (Kind::Conflict, "Too many virtio-vsock devices")
        );
        assert!(!spec.remove("w") && spec.remove("v") && !spec.remove("v"));
        assert_eq!(spec, VmSpec::default());
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
