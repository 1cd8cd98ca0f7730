//! A whole machine: the list of devices and what derives from it.

use std::os::fd::RawFd;
use std::sync::LazyLock;

use clap::ArgMatches;
use device::Calls;
use metadata::MetadataSpec;
use platform::debug_console::DebugConsoleSpec;
use platform::serial::SerialSpec;
use sandbox::{HostPath, Use};
use serde::{Deserialize, Serialize};
use spec::{Facts, Kind, RateLimitGroupSpec, Refusal, Unsupported};
use virtio_devices::block::DiskSpec;
use virtio_devices::console::ConsoleSpec;
use virtio_devices::fs::FsSpec;
use virtio_devices::generic::GenericSpec;
use virtio_devices::net::NetSpec;
use virtio_devices::pmem::PmemSpec;
use virtio_devices::rng::RngSpec;
use virtio_devices::vsock::VsockSpec;

use crate::flags::{self, Flag};
use crate::hot::{self, Hot, InMachine};
use crate::overrides::{self, Overrides};
use crate::pci_segment;
use crate::plug::Listed;
use crate::{CpusSpec, LandlockRuleSpec, MemorySpec, PayloadSpec, PciSegmentSpec, PlatformSpec, Plug};

/// Generates [`VmSpec`] and what derives from the list of devices.
macro_rules! machine {
    (
        devices { $( $arity:ident $field:ident: $spec:ty, )* }
        unsupported { $( $ufield:ident, )* }
        unsupported_switches { $( $switch:ident, )* }
    ) => {
        /// A machine as asked for: the command line's flags together, and the JSON body of `vm.create`.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct VmSpec {
            /// Processors.
            pub cpus: CpusSpec,
            /// Memory.
            pub memory: MemorySpec,
            /// What to boot.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub payload: Option<PayloadSpec>,
            /// Identity.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub platform: Option<PlatformSpec>,
            /// What the guest finds about itself over its network cards.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub metadata: Option<MetadataSpec>,
            /// Shares of the PCI address windows.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub pci_segments: Option<Vec<PciSegmentSpec>>,
            /// Limits that disks may share.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub rate_limit_groups: Option<Vec<RateLimitGroupSpec>>,
            /// Keeps the process to the paths of the machine.
            pub landlock_enable: bool,
            /// Further paths for it.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub landlock_rules: Option<Vec<LandlockRuleSpec>>,
            $(
                #[doc = concat!("What `--", stringify!($field), "` or its like configures.")]
                #[serde(skip_serializing_if = "Field::is_left_out")]
                pub $field: machine!(@type $arity $spec),
            )*
            $(
                /// Not supported yet.
                #[serde(skip_serializing_if = "spec::Value::is_absent")]
                pub $ufield: Unsupported,
            )*
            $(
                /// Not supported yet; always told, as clients expect.
                pub $switch: Unsupported,
            )*
        }

        $(
            impl Field for $spec {}
            machine!(@listed $arity $field $spec);
        )*

        /// The devices that can be added to a running machine, in the order of the list.
        pub static HOT: LazyLock<Vec<Hot>> = LazyLock::new(|| {
            let mut all = Vec::with_capacity(8);
            $( machine!(@hot $arity all, $spec); )*
            all
        });

        /// What the devices of the list ask of the kernel, by their flags.
        pub static CALLS: &[(&str, Calls)] =
            &[ $( (<$spec as spec::Spec>::FLAG, <$spec as device::Build>::CALLS) ),* ];

        impl VmSpec {
            /// The devices in the order of their PCI slots.
            pub fn devices(&self) -> Vec<&dyn Plug> {
                let mut all: Vec<&dyn Plug> = Vec::new();
                $( machine!(@list $arity all, self.$field); )*
                all
            }

            /// The same, to build them.
            pub fn devices_mut(&mut self) -> Vec<&mut dyn Plug> {
                let mut all: Vec<&mut dyn Plug> = Vec::new();
                $( machine!(@list_mut $arity all, self.$field); )*
                all
            }

            /// Takes the device with this name out, if it is one that can be removed; tells whether there was one.
            pub fn remove(&mut self, id: &str) -> bool {
                $( machine!(@remove $arity self.$field, id); )*
                false
            }

            /// The flags of the devices.
            pub(crate) fn device_flags() -> impl Iterator<Item = Flag> {
                [ $( machine!(@flag $arity $spec) ),* ].into_iter()
            }

            pub(crate) fn take_devices(&mut self, matches: &ArgMatches) -> Result<(), Refusal> {
                $( machine!(@take $arity self.$field, matches); )*
                Ok(())
            }

            /// Replaces properties of devices: see [`Overrides`].
            ///
            /// # Errors
            /// A device that is not there, a property that may not change, or a value that it cannot have.
            pub fn replace(&mut self, overrides: &Overrides) -> Result<(), Refusal> {
                $( machine!(@replace $arity self.$field, overrides); )*
                if let Some(patch) = overrides.one(MetadataSpec::FLAG)? {
                    let changeable = MetadataSpec::KEYS_IN_JSON;
                    self.metadata =
                        Some(overrides::changed(&self.metadata.clone().unwrap_or_default(), patch, changeable)?);
                }
                Ok(())
            }

            /// What devices' flags replace in a saved machine.
            ///
            /// # Errors
            /// What the grammar refused, or a flag without the id of its device.
            pub fn overrides(matches: &ArgMatches) -> Result<Overrides, Refusal> {
                let mut overrides = Overrides::default();
                $( machine!(@overrides $arity $field: $spec, matches, overrides); )*
                machine!(@overrides one metadata: MetadataSpec, matches, overrides);
                Ok(overrides)
            }

            pub(crate) fn first_unsupported(&self) -> Option<&'static str> {
                $( if self.$ufield.0 { return Some(stringify!($ufield)); } )*
                $( if self.$switch.0 { return Some(stringify!($switch)); } )*
                None
            }
        }
    };
    (@type one $spec:ty) => { $spec };
    (@type hot $spec:ty) => { Option<Vec<$spec>> };
    (@alone hot) => { false };
    (@alone only) => { true };
    (@type only $spec:ty) => { Option<$spec> };
    (@listed one $field:ident $spec:ty) => {
        impl Listed for $spec {
            const HOT: bool = false;
            const ALONE: bool = true;
        }
    };
    (@listed $arity:ident $field:ident $spec:ty) => {
        impl Listed for $spec {
            const HOT: bool = true;
            const ALONE: bool = machine!(@alone $arity);
        }
        impl InMachine for $spec {
            type Room = machine!(@type $arity $spec);

            fn room(spec: &mut VmSpec) -> &mut Self::Room {
                &mut spec.$field
            }
        }
    };
    (@hot one $all:ident, $spec:ty) => {};
    (@hot $arity:ident $all:ident, $spec:ty) => { $all.push(Hot::of::<$spec>()) };
    (@remove hot $self:ident.$field:ident, $id:ident) => {
        if hot::take(&mut $self.$field, $id) { return true; }
    };
    (@remove only $self:ident.$field:ident, $id:ident) => {
        if hot::take_only(&mut $self.$field, $id) { return true; }
    };
    (@remove $arity:ident $self:ident.$field:ident, $id:ident) => {};
    (@list one $all:ident, $self:ident.$field:ident) => { $all.push(&$self.$field) };
    (@list hot $all:ident, $self:ident.$field:ident) => {
        $all.extend($self.$field.iter().flatten().map(|s| s as &dyn Plug))
    };
    (@list only $all:ident, $self:ident.$field:ident) => {
        $all.extend($self.$field.iter().map(|s| s as &dyn Plug))
    };
    (@list_mut only $all:ident, $self:ident.$field:ident) => {
        $all.extend($self.$field.iter_mut().map(|s| s as &mut dyn Plug))
    };
    (@list_mut one $all:ident, $self:ident.$field:ident) => { $all.push(&mut $self.$field) };
    (@list_mut hot $all:ident, $self:ident.$field:ident) => {
        $all.extend($self.$field.iter_mut().flatten().map(|s| s as &mut dyn Plug))
    };
    (@flag one $spec:ty) => { Flag::of::<$spec>(false) };
    (@flag only $spec:ty) => { Flag::of::<$spec>(false) };
    (@flag hot $spec:ty) => { Flag::of::<$spec>(true) };
    (@take one $self:ident.$field:ident, $matches:ident) => {
        if let Some(spec) = flags::one($matches)? { $self.$field = spec; }
    };
    (@take only $self:ident.$field:ident, $matches:ident) => {
        if let Some(spec) = flags::one($matches)? { $self.$field = Some(spec); }
    };
    (@replace only $self:ident.$field:ident, $overrides:ident) => {
        if let Some(patch) = $overrides.one(stringify!($field))? {
            let spec = $self.$field.as_mut().ok_or_else(|| {
                Refusal::new(Kind::Absent, concat!("The saved machine has no ", stringify!($field)))
            })?;
            *spec = overrides::patched(spec, patch)?;
        }
    };
    (@replace one $self:ident.$field:ident, $overrides:ident) => {
        if let Some(patch) = $overrides.one(stringify!($field))? {
            $self.$field = overrides::patched(&$self.$field, patch)?;
        }
    };
    (@replace hot $self:ident.$field:ident, $overrides:ident) => {
        for (id, patch) in $overrides.many(stringify!($field))? {
            let mut all = $self.$field.iter_mut().flatten();
            let spec = all.find(|s| s.common().and_then(|c| c.id.as_deref()) == Some(id));
            let spec = spec.ok_or_else(|| absent(stringify!($field), id))?;
            *spec = overrides::patched(spec, patch).map_err(|e| e.within(format!("Cannot change device {id:?}")))?;
        }
    };
    (@overrides hot $field:ident: $spec:ty, $matches:ident, $overrides:ident) => {
        for text in flags::texts($matches, <$spec as spec::Spec>::FLAG).into_iter().flatten() {
            $overrides.push(stringify!($field), overrides::patch_of::<$spec>(text)?);
        }
    };
    (@overrides $arity:ident $field:ident: $spec:ty, $matches:ident, $overrides:ident) => {
        if let Some(text) = flags::text($matches, <$spec as spec::Spec>::FLAG) {
            $overrides.set(stringify!($field), overrides::patch_of::<$spec>(text)?);
        }
    };
    (@take hot $self:ident.$field:ident, $matches:ident) => {
        if let Some(specs) = flags::many($matches)? { $self.$field = Some(specs); }
    };
}

machine! {
    // In the order of PCI slots; the field is the name in JSON. A new device is its file and a line here: `one` that every machine
    // has, `hot` ones, any number of them, which can also be added to a running machine and removed from it, or likewise the `only`
    // one of its kind, which a machine has or has not.
    devices {
        one console: ConsoleSpec,
        hot disks: DiskSpec,
        hot net: NetSpec,
        one rng: RngSpec,
        hot pmem: PmemSpec,
        hot generic_vhost_user: GenericSpec,
        hot fs: FsSpec,
        only vsock: VsockSpec,
        one serial: SerialSpec,
        one debug_console: DebugConsoleSpec,
    }
    unsupported {
        balloon,
        devices,
        gdb,
        ivshmem,
        numa,
        pvmemcontrol,
        rtc,
        tpm,
        user_devices,
        vdpa,
    }
    unsupported_switches { iommu, pvpanic, watchdog, }
}

fn absent(field: &str, id: &str) -> Refusal {
    Refusal::new(Kind::Absent, format!("The saved machine has no device {id:?} among its {field}"))
}

/// A field of [`VmSpec`] in JSON.
trait Field {
    fn is_left_out(&self) -> bool {
        false
    }
}

impl<T> Field for Option<T> {
    fn is_left_out(&self) -> bool {
        self.is_none()
    }
}

impl VmSpec {
    /// Opens what has to be open before the process leaves the host behind.
    ///
    /// # Errors
    /// What the host refused.
    pub fn ahead(&mut self) -> Result<(), Refusal> {
        self.devices_mut().into_iter().try_for_each(Plug::ahead)
    }

    /// The numbers of the descriptors that the description speaks of.
    pub fn lent(&self) -> Vec<RawFd> {
        self.clone().devices_mut().into_iter().flat_map(Plug::descriptors).collect()
    }

    /// Writes defaults that depend on other values.
    pub fn complete(&mut self) {
        self.cpus.max_vcpus = Some(self.cpus.max());
        // A card that brings its own program says with that what memory has to be.
        self.memory.shared |= self.is_by_passt() && !self.memory.is_shared() && !self.memory.mergeable;
    }

    /// Whether passt serves a network card of the machine.
    pub fn is_by_passt(&self) -> bool {
        self.net.iter().flatten().any(|card| card.user.is_on())
    }

    /// What devices may know of the whole.
    pub fn facts(&self) -> Facts {
        Facts {
            boot_vcpus: self.cpus.boot_vcpus,
            shared_memory: self.memory.is_shared(),
            running: false,
            pci_segments: self.platform.as_ref().map_or(1, |p| p.num_pci_segments),
            iommu_segments: Vec::new(),
            rate_limit_groups: self.rate_limit_groups.clone().unwrap_or_default(),
            metadata: self.metadata.is_some(),
        }
    }

    /// The paths of the host's that the machine is made of, and those that it may use besides.
    ///
    /// # Errors
    /// A rule that cannot be understood.
    pub fn paths(&self) -> Result<Vec<HostPath>, Refusal> {
        let payload = self.payload.iter().flat_map(|payload| payload.kernel.iter().chain(&payload.initramfs));
        let mut paths: Vec<HostPath> = payload.map(|path| HostPath::new(path, Use::Read)).collect();
        paths.extend(self.metadata.iter().flat_map(MetadataSpec::paths));
        paths.extend(self.devices().iter().flat_map(|device| device.paths()));
        for rule in self.landlock_rules.iter().flatten() {
            paths.push(rule.path()?);
        }
        Ok(paths)
    }

    /// The share of each PCI segment in the address windows, below 4 GiB and above.
    pub fn segment_weights(&self) -> (Vec<u32>, Vec<u32>) {
        pci_segment::weights(self.facts().pci_segments, self.pci_segments.as_deref().unwrap_or_default())
    }
}
